"""The rows: what is measured of the native face, and which rows there are.

Those of the asyncio face, of the loop by itself and of HTTP stand in rows_*.py, what a row is made
of in row.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import rows_asyncio
import rows_http
import rows_loop
import tools
from row import (
    C_EPOLL,
    C_EPOLL_AGAIN,
    C_SELECT,
    FASTEST,
    FLOOR,
    LEVEL,
    MIB,
    WAYS_AT,
    Peer,
    Row,
    Target,
    cffi_alone,
    native,
    on_asyncio,
    on_gevent,
)

CROWD = 10_000
CROWD_LOOPS = ("pyloop", "uvloop", "asyncio")


def _natives() -> list[Peer]:
    return [native(backend) for backend in ("select", "poll", "epoll", "auto")]


def lines_row() -> Row:
    peers = [C_EPOLL, C_EPOLL_AGAIN, *_natives(), cffi_alone(native("epoll"))]
    peers += [on_asyncio("uvloop", kind) for kind in ("protocol-tuned", "streams")]
    peers += [on_asyncio("asyncio", "streams"), on_gevent()]
    return Row(
        "lines-64",
        "Lines echo: 64-byte lines (newline included), 16 in flight, 50 connections",
        {"framing": "lines", "size": 64, "inflight": 16, "connections": 50},
        tuple(peers),
        (
            Target("pyloop epoll", FLOOR, at_most=1.35),
            Target("pyloop epoll", "uvloop streams", ahead=10.0),
            Target("pyloop epoll", "uvloop protocol-tuned", ahead=1.3),
        ),
    )


def raw_row() -> Row:
    peers = [C_EPOLL, C_EPOLL_AGAIN, C_SELECT, *_natives(), cffi_alone(native("epoll"))]
    peers += [on_asyncio(loop, "protocol") for loop in ("uvloop", "asyncio")] + [on_gevent()]
    return Row(
        "raw-100",
        "Raw echo: 100 bytes, 1 in flight, 100 connections",
        {"framing": "raw", "size": 100, "inflight": 1, "connections": 100},
        tuple(peers),
        (Target("pyloop epoll", FLOOR, at_most=1.10),),
    )


def idle_row() -> Row:
    peers = (
        native("epoll"),
        native("epoll", name="pyloop epoll, Lines", framing="lines"),
        on_asyncio("pyloop", "protocol"),
        on_asyncio("uvloop", "protocol"),
        on_asyncio("asyncio", "protocol"),
    )
    return Row(
        "idle-rss",
        "Idle connection: resident memory each, 5,000 held after one echo each",
        {"framing": "raw", "size": 64},
        peers,
        (
            Target("pyloop epoll", at_most=700.0),
            Target("pyloop.Loop protocol", at_most=1300.0),
        ),
        floor=None,
        unit="B",
        way="memory",
        hold=5000,
        max_rounds=3,
    )


def _piece_peers() -> Iterator[Peer]:
    for mib in (1, 4, 16):
        load = {"size": mib * MIB, "messages": 32 // mib, "warmup-messages": 1}
        yield native("epoll", name=f"pyloop epoll, {mib} MiB", **load)
        yield on_asyncio("uvloop", "streams", name=f"uvloop streams, {mib} MiB", **load)


def pieces_rows() -> Iterator[Row]:
    """Large messages in small pieces: the cost per MiB must not grow with the size."""
    for framing, title in (("prefix4", "LengthPrefixed"), ("lines", "Lines")):
        yield Row(
            f"pieces-{framing}",
            f"{title} echo: one large message at a time, sent in 1 KiB pieces 10 us apart",
            {"framing": framing, "connections": 1, "pieces": 1024, "gap": 10, "seconds": 60},
            tuple(_piece_peers()),
            floor="pyloop epoll, 1 MiB",
            unit="us/MiB",
            max_rounds=5,
        )


def size_rows() -> Iterator[Row]:
    others = [on_asyncio(loop, "protocol") for loop in ("uvloop", "asyncio")]
    peers = (C_EPOLL, native("epoll"), *others, on_gevent())
    sizes = {"100b": 100, "1k": 1024, "10k": 10 * 1024, "100k": 100 * 1024}
    for (name, size), connections in itertools.product(sizes.items(), (1, 10, 100, 1000)):
        yield Row(
            f"raw-{name}-{connections}c",
            f"Raw echo: {size:,} bytes, 1 in flight, {connections} connections",
            {"framing": "raw", "size": size, "inflight": 1, "connections": connections},
            peers,
        )


def handler_rows() -> Iterator[Row]:
    peers = [C_EPOLL]
    for handler in ("function", "class", "coroutine"):
        peers.append(native("epoll", handler, name=f"pyloop {handler}"))
    peers += [on_asyncio("uvloop", kind) for kind in ("protocol", "protocol-tuned", "streams")]
    peers += [on_gevent()]
    for inflight, connections in itertools.product((1, 16), (50, 500)):
        yield Row(
            f"handlers-{inflight}f-{connections}c",
            f"Lines echo by kind of handler: 64-byte lines, {inflight} in flight, "
            f"{connections} connections",
            {"framing": "lines", "size": 64, "inflight": inflight, "connections": connections},
            tuple(peers),
        )


def churn_row() -> Row:
    return Row(
        "churn",
        "Connect, echo 64 bytes, close: 20,000 times, 50 at once",
        {"framing": "raw", "size": 64, "connections": 50, "churn": 20000, "seconds": 120},
        (C_EPOLL, native("epoll"), *(on_asyncio(loop, "protocol") for loop in rows_asyncio.LOOPS)),
        (Target("pyloop.Loop protocol", "asyncio protocol", ahead=LEVEL),),
        unit="us/connection",
        rough=True,
    )


def accept_row() -> Row:
    """Without rloop, which does not close what has ended before a byte came."""
    row = only(churn_row(), lambda name: "rloop" not in name)
    return replace(
        row,
        key="accept-close",
        title="Connect and end the stream; the server closes: 20,000 times, 50 at once, no byte",
        load={**row.load, "silent": True},
        peers=(*row.peers, on_gevent()),
    )


def crowd_row() -> Row:
    """A loop that holds idle connections as well, beside the same loop that holds only the busy."""
    pairs = []
    for alone in (native("epoll"), *(on_asyncio(loop, "protocol") for loop in CROWD_LOOPS)):
        pairs.append((alone, replace(alone, name=f"{alone.name}, crowd", crowd=CROWD)))
    targets = []
    for alone, crowd in pairs[:2]:
        targets.append(Target(crowd.name, alone.name, at_most=1.10))
        targets.append(Target(crowd.name, alone.name, at_most=1.5, figure="p99_us"))
    return Row(
        "crowd",
        f"{CROWD:,} idle connections beside 100 busy ones: Raw echo, 100 bytes, 1 in flight",
        {"framing": "raw", "size": 100, "inflight": 1, "connections": 100},
        tuple(itertools.chain.from_iterable(pairs)),
        tuple(targets),
        floor="pyloop epoll",
        max_rounds=5,
    )


def files_rows() -> Iterator[Row]:
    """Slices of a file that is in the page cache, in each of the ways to send them."""
    path = str(tools.BUILD / "file")

    def sender(name: str, kind: str, needs: str | None = None) -> Peer:
        return Peer(name, "files.py", ("--file", path, "--way", kind), needs)

    for kib in (64, 4, 1024):
        yield Row(
            f"files-{kib}k",
            f"Slices of a file: {kib} KiB, asked for by 8 bytes, 1 in flight, 10 connections",
            {"framing": "raw", "size": kib * 1024, "file": path, "connections": 10},
            (
                sender("plain Python, sendfile", "sendfile"),
                sender("plain Python, read and send", "read"),
                sender("pyloop, MappedFile view", "view", "pyloop"),
                sender("pyloop, MappedFile slice", "slice", "pyloop"),
                sender("pyloop, read", "pyloop-read", "pyloop"),
            ),
            floor="plain Python, sendfile",
            unit="us/MiB",
        )


def way(name: str, *args: str, **load: object) -> Peer:
    """Return one of pyloop's ways to serve with several threads or processes, as a peer."""
    needs = "pyloop.model" if "--model" in args else "pyloop"
    return Peer(name, "pyloop_echo.py", args, needs, load, several=True)


def ways(threads: dict[str, object], forks: dict[str, object]) -> tuple[Peer, ...]:
    """Return the same echo served in all ways; some may have a load of their own."""
    blocking = "--handler", "blocking"
    return (
        C_EPOLL,
        native("auto", name="loop"),
        way("threads", "--model", "thread", *blocking, **threads),
        way("forks", "--model", "fork", *blocking, **forks),
        way("workers", "--workers", "2"),
        way("workers, coroutines", "--workers", "2", "--handler", "coroutine"),
    )


def model_rows() -> Iterator[Row]:
    """What a message and a connection cost in each way to serve, by the number of connections."""
    load = {"framing": "lines", "size": 64, "inflight": 1}
    for connections in WAYS_AT:
        yield Row(
            f"models-message-{connections}c",
            f"Ways to serve: a 64-byte line, 1 in flight, {connections:,} connections",
            {**load, "connections": connections},
            ways({}, {}),
        )
    for connections in WAYS_AT:
        yield Row(
            f"models-connection-{connections}c",
            f"Ways to serve: connect, echo a 64-byte line, close; {connections:,} at once",
            {**load, "connections": connections, "churn": 20000, "seconds": 120},
            ways({"churn": 4000}, {"churn": 1000}),  # dear enough to be told by fewer
            unit="us/connection",
        )


def scaling_row() -> Row:
    """Two workers beside one process, and beside two processes that know nothing of each other."""
    alone = Peer("one process", "pyloop_echo.py", needs="pyloop")
    return Row(
        "scaling-50us",
        "Scaling: a handler computes for 50 us, 64-byte lines, 1 in flight, 64 connections",
        {"framing": "lines", "size": 64, "inflight": 1, "connections": 64},
        (
            alone,
            way("2 workers", "--workers", "2"),
            replace(alone, name="2 processes", copies=2),
        ),
        (
            Target("2 workers", "one process", at_most=1.10),
            Target("2 workers", "2 processes", at_least=0.85),
        ),
        floor="one process",
        compute_us=50,
        pinned=False,
    )


def shortened(row: Row) -> Row:
    """Return `row` to try it out: a tenth of the connections that come and go, or are held."""

    def fewer(load: dict[str, object]) -> dict[str, object]:
        return load | ({"churn": load["churn"] // 10} if "churn" in load else {})

    peers = tuple(
        replace(peer, load=fewer(peer.load), crowd=peer.crowd // 10) for peer in row.peers
    )
    return replace(row, load=fewer(row.load), peers=peers, hold=row.hold // 10)


def only(row: Row, wanted: Callable[[str], object]) -> Row:
    """Return `row` without the peers whose names are not wanted."""
    return replace(row, peers=tuple(peer for peer in row.peers if wanted(peer.name)))


def beside_base(row: Row) -> Row:
    """Return `row` with each peer that is pyloop a second time, on the interpreter of --base."""
    ours = [peer for peer in row.peers if peer.ours]
    theirs = [replace(peer, name=f"{peer.name}, base", base=True) for peer in ours]
    pairs = zip(ours, theirs, strict=True)
    targets = [Target(peer.name, base.name, ahead=LEVEL) for peer, base in pairs]
    return replace(row, peers=(*row.peers, *theirs), targets=(*row.targets, *targets))


def lean(row: Row) -> Row:
    """Return `row` with the control and the peers of its targets, one of which is the floor."""
    named = {name for target in row.targets for name in (target.peer, target.against)}
    named |= {C_EPOLL_AGAIN.name}
    if FASTEST in named:
        named |= {peer.name for peer in row.peers if not peer.ours}
    floor = row.floor if row.floor in named or not row.floor else row.targets[0].against
    rounds = 3 if row.rough else row.max_rounds
    return replace(only(row, named.__contains__), floor=floor, max_rounds=rounds)


def target_rows() -> list[Row]:
    """Return the rows of `make bench`: those with a target that are not long; in five minutes."""
    ours = [lines_row(), raw_row(), idle_row(), churn_row(), accept_row()]
    rest = [*rows_asyncio.all_rows(), *rows_loop.target_rows()]
    return [lean(row) for row in (*ours, *rest)]


def all_rows() -> list[Row]:
    """Return every row: what `make bench-all` runs."""
    first = [lines_row(), raw_row(), idle_row(), *files_rows(), *rows_asyncio.all_rows()]
    more = itertools.chain(pieces_rows(), size_rows(), handler_rows(), rows_loop.all_rows())
    late = [churn_row(), accept_row(), crowd_row(), *rows_http.all_rows()]
    return [*first, *more, *late, *model_rows(), scaling_row()]
