"""Echo servers written with asyncio, on any of its event loops: pyloop.Loop and its peers.

    python asyncio_echo.py --loop uvloop --kind streams --framing lines
    python asyncio_echo.py --loop pyloop --backend select --kind response2 --file FILE

Prints "listening PORT" when ready and runs until SIGTERM. Each kind is written as
its users write it; `protocol-tuned` is what somebody who profiles would write.
`writes16` and `response2` are asked for slices of a file, by 8 bytes each: offset and
length, big-endian. The file may be made later, before the first request.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import socket
import ssl
import struct
from collections.abc import Callable, Iterator

BACKLOG = 4096
HEADER_BYTES = 128  # of response2
REQUEST = struct.Struct("!II")  # offset and length
LIMIT = 64 * 1024 * 1024  # of StreamReader: the largest message of the benchmarks fits


# ---- streams ----


async def stream_raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(256 * 1024):
        writer.write(data)
        await writer.drain()
    writer.close()


async def stream_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def stream_prefix4(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(head, "big"))
            writer.write(head + body)
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()


# ---- protocols ----


class RawProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class LinesProtocol(asyncio.Protocol):
    """One write per line, as most protocols do it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.part = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.part = (self.part + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")


class TunedLinesProtocol(LinesProtocol):
    """One split and one writelines per receive."""

    def data_received(self, data: bytes) -> None:
        *lines, self.part = (self.part + data if self.part else data).split(b"\n")
        self.transport.writelines([line + b"\n" for line in lines])


class Prefix4Protocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.part = bytearray()

    def data_received(self, data: bytes) -> None:
        self.part += data
        while len(self.part) >= 4:
            end = 4 + struct.unpack_from(">I", self.part)[0]
            if len(self.part) < end:
                return
            self.transport.write(bytes(self.part[:end]))
            del self.part[:end]


class RawBuffered(asyncio.BufferedProtocol):
    """Receives into one buffer for all connections: echoing leaves nothing in it."""

    buffer = bytearray(256 * 1024)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(memoryview(self.buffer)[:nbytes]))


def in_sixteen(data: bytes) -> Iterator[bytes]:
    """Cut into 16 parts: what a program that does not gather its output writes."""
    size = -(-len(data) // 16)
    return (data[at : at + size] for at in range(0, len(data), size))


def in_two(data: bytes) -> Iterator[bytes]:
    """Cut off a header: web frameworks write it and the body one by one."""
    return iter((data[:HEADER_BYTES], data[HEADER_BYTES:]))


class Answers(dict[bytes, tuple[bytes, ...]]):
    """The parts of the answer to a request. Made once: that they are written is what costs."""

    def __init__(self, path: str, cut: Callable[[bytes], Iterator[bytes]]) -> None:
        self.path = path
        self.cut = cut

    def __missing__(self, request: bytes) -> tuple[bytes, ...]:
        offset, length = REQUEST.unpack(request)
        with open(self.path, "rb") as file:
            file.seek(offset)
            self[request] = parts = tuple(self.cut(file.read(length)))
        return parts


class AnswerProtocol(asyncio.Protocol):
    """One request at a time, and a write for each part of its answer."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        write = self.transport.write
        for part in self.answers[data]:
            write(part)


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


# ---- sockets ----


async def echo_socket(loop: asyncio.AbstractEventLoop, conn: socket.socket) -> None:
    with conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := await loop.sock_recv(conn, 64 * 1024):
            await loop.sock_sendall(conn, data)


async def accept_sockets(loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
    """Accept for ever, with a task for each connection."""
    listener.setblocking(False)
    tell(listener.getsockname()[1])
    tasks = set()
    while True:
        conn, _ = await loop.sock_accept(listener)
        task = loop.create_task(echo_socket(loop, conn))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


# ---- the server ----

STREAMS = {"raw": stream_raw, "lines": stream_lines, "prefix4": stream_prefix4}
PROTOCOLS = {
    ("protocol", "raw"): RawProtocol,
    ("protocol", "lines"): LinesProtocol,
    ("protocol", "prefix4"): Prefix4Protocol,
    ("protocol-tuned", "raw"): RawProtocol,
    ("protocol-tuned", "lines"): TunedLinesProtocol,
    ("buffered", "raw"): RawBuffered,
}
CUTS = {"writes16": in_sixteen, "response2": in_two}
LOOPS = ["asyncio", "uvloop", "rloop", "aiofastnet", "aiofastnet-uvloop", "pyloop"]
SERVED = {  # kind and framing
    *itertools.product(["streams"], STREAMS),
    *PROTOCOLS,
    *itertools.product([*CUTS, "sock", "udp"], ["raw"]),
}


def loop_factory(name: str, backend: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    if name == "rloop":
        import rloop

        return rloop.new_event_loop
    if name == "aiofastnet":  # transports of its own, on asyncio's loop
        import aiofastnet

        return aiofastnet.loop_factory(asyncio.SelectorEventLoop)
    if name == "aiofastnet-uvloop":  # or on uvloop
        import aiofastnet
        import uvloop

        return aiofastnet.loop_factory(uvloop.new_event_loop)
    if name == "pyloop":
        import pyloop

        return functools.partial(pyloop.new_event_loop, backend)
    return asyncio.SelectorEventLoop


def tell(port: int) -> None:
    print("listening", port, flush=True)


async def serve_connections(args: argparse.Namespace, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    port = listener.getsockname()[1]
    if args.kind == "streams":
        start = functools.partial(asyncio.start_server, STREAMS[args.framing], limit=LIMIT)
    else:
        if cut := CUTS.get(args.kind):
            protocol = functools.partial(AnswerProtocol, Answers(args.file, cut))
        else:
            protocol = PROTOCOLS[args.kind, args.framing]
        start = functools.partial(loop.create_server, protocol)
    more = {}
    if args.tls:
        more["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        more["ssl"].load_cert_chain(args.tls)
    async with await start(sock=listener, backlog=BACKLOG, **more):
        tell(port)
        await loop.create_future()  # not serve_forever, which closes the socket with rloop


async def serve_datagrams() -> None:
    loop = asyncio.get_running_loop()
    made = await loop.create_datagram_endpoint(DatagramEcho, local_addr=("127.0.0.1", 0))
    tell(made[0].get_extra_info("sockname")[1])
    await loop.create_future()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    text = "of --loop pyloop: auto, select, poll or epoll (auto)"
    parser.add_argument("--backend", default="auto", help=text)
    parser.add_argument("--kind", choices=sorted({kind for kind, _ in SERVED}), default="protocol")
    parser.add_argument("--framing", choices=["raw", "lines", "prefix4"], default="raw")
    parser.add_argument("--file", help="what writes16 and response2 answer from")
    parser.add_argument("--tls", metavar="PEM", help="serve TLS; the file has key and certificates")
    args = parser.parse_args()
    if args.kind in CUTS and not args.file:
        parser.error(f"--kind {args.kind} needs --file")
    if (args.kind, args.framing) not in SERVED:
        parser.error(f"no {args.kind} server for framing {args.framing}")
    return args


async def serve(args: argparse.Namespace) -> None:
    if args.kind == "udp":
        return await serve_datagrams()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        if args.kind == "sock":
            await accept_sockets(asyncio.get_running_loop(), listener)
        else:
            await serve_connections(args, listener)


def main() -> None:
    args = parse()
    with asyncio.Runner(loop_factory=loop_factory(args.loop, args.backend)) as runner:
        runner.run(serve(args))


if __name__ == "__main__":
    main()
