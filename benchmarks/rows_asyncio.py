"""The rows of the asyncio face: the same servers on pyloop.Loop and on the other loops.

Ratios are to uvloop: a figure below 1 is ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import tools
from row import C_EPOLL, LEVEL, Row, Target, cffi_alone, native, on_asyncio

LOOPS = ("pyloop", "uvloop", "asyncio", "rloop", "aiofastnet", "aiofastnet-uvloop")
SIZES = (  # name, bytes on the wire, connections
    ("1b", 1, 100),
    ("100b", 100, 100),
    ("1k", 1024, 100),
    ("10k", 10 * 1024, 100),
    ("100k", 100 * 1024, 10),
    ("1m", 1024 * 1024, 10),
)
SMALL = {"framing": "raw", "size": 100, "inflight": 1, "connections": 100}
SMALL_TITLE = "100 bytes, 1 in flight, 100 connections"
FILE = str(tools.BUILD / "answers")  # not the one of the files rows, which may run beside it
ASKED = {**SMALL, "file": FILE}
ASKED_TITLE = "asked for by 8 bytes, 1 in flight, 100 connections"
TLS_HELD = 500


def ahead(kind: str, of: str, limit: float = LEVEL) -> Target:
    """The promise that pyloop.Loop is level with another loop, or so far ahead of it."""
    return Target(f"pyloop.Loop {kind}", f"{of} {kind}", ahead=limit)


def protocol_rows() -> Iterator[Row]:
    """The echo by which loops are compared, in every size."""
    for name, size, connections in SIZES:
        peers = [on_asyncio(loop, "protocol") for loop in LOOPS]
        targets = [ahead("protocol", "asyncio")]
        if name == "100b":
            peers[1:1] = [cffi_alone(peers[0]), on_asyncio("pyloop select", "protocol")]
            of = {"uvloop": 1.15, "asyncio": 3.0, "rloop": 3.0}
            targets = [ahead("protocol", other, limit) for other, limit in of.items()]
        yield Row(
            f"asyncio-protocol-{name}",
            f"asyncio Protocol echo: {size:,} bytes, 1 in flight, {connections} connections",
            {**SMALL, "size": size, "connections": connections},
            (C_EPOLL, *peers),
            tuple(targets),
            floor="uvloop protocol",
            rough=name != "100b",
        )


def _row(
    kind: str, title: str, load: dict[str, object], *targets: Target, args: tuple[str, ...] = ()
) -> Row:
    """One kind of server on every loop; unless told otherwise it is to be level with asyncio."""
    rough, targets = not targets, targets or (ahead(kind, "asyncio"),)
    peers = tuple(on_asyncio(loop, kind, *args) for loop in LOOPS)
    floor = f"uvloop {kind}"
    return Row(f"asyncio-{kind}", f"asyncio {title}", load, peers, targets, floor, rough=rough)


def kind_rows() -> Iterator[Row]:
    """The other ways to write a server with asyncio."""
    from_file = ("--file", FILE)
    lines = {"framing": "lines", "size": 64, "inflight": 16, "connections": 50}
    yield _row("buffered", f"BufferedProtocol echo: {SMALL_TITLE}", SMALL)
    yield _row(
        "streams",
        "streams echo: 64-byte lines, 16 in flight, 50 connections",
        lines,
        ahead("streams", "uvloop", 1.3),
    )
    yield _row(
        "writes16",
        f"Protocol, 16 writes of 16 bytes: {ASKED_TITLE}",
        {**ASKED, "size": 256},
        ahead("writes16", "uvloop", 4.0),
        args=from_file,
    )
    yield _row(
        "response2",
        f"Protocol, a header of 128 bytes and a body of 1 KiB: {ASKED_TITLE}",
        {**ASKED, "size": 1152},
        args=from_file,
    )
    yield _row(
        "sock",
        f"sock_recv and sock_sendall echo: {SMALL_TITLE}",
        SMALL,
        ahead("sock", "uvloop", 1.0),
    )
    for name, size in (("100b", 100), ("1200b", 1200)):
        title = f"datagram echo: {size:,} bytes, 1 in flight on each of 50 sockets"
        load = {**SMALL, "size": size, "connections": 50, "udp": True}
        yield replace(_row("udp", title, load), key=f"asyncio-udp-{name}")


TLS = ("--tls", str(tools.CERTIFICATE))
TLS_TOOLS = ("trustme", "load_tls")


def tls_row() -> Row:
    """The echo over TLS: mostly OpenSSL's work, and how often it is asked."""
    loops = [loop for loop in LOOPS if loop != "rloop"]
    peers = [on_asyncio(loop, "protocol", *TLS) for loop in loops]
    return Row(
        "asyncio-tls",
        f"asyncio Protocol echo over TLS: {SMALL_TITLE}",
        SMALL,
        (*peers, native("epoll", "function", *TLS)),
        tuple(ahead("protocol", loop) for loop in loops if not loop.startswith("pyloop")),
        floor="uvloop protocol",
        tls=True,
        tools=TLS_TOOLS,
        rough=True,
    )


def idle_tls_row() -> Row:
    """What an idle connection over TLS costs: mostly what OpenSSL needs, and some buffers."""
    peers = [on_asyncio(loop, "protocol", *TLS) for loop in ("pyloop", "uvloop", "asyncio")]
    return Row(
        "idle-rss-tls",
        f"Idle TLS connection: resident memory each, {TLS_HELD} held after one echo each",
        {"size": 64},
        (*peers, native("epoll", "function", *TLS)),
        (Target("pyloop.Loop protocol", "asyncio protocol", at_most=0.95),),
        floor=None,
        unit="B",
        way="memory",
        hold=TLS_HELD,
        max_rounds=3,
        tls=True,
        tools=TLS_TOOLS,
    )


def all_rows() -> list[Row]:
    """Return the rows of the asyncio face; all of them have a target."""
    return [*protocol_rows(), *kind_rows(), tls_row(), idle_tls_row()]
