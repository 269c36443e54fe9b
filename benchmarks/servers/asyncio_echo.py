"""Echo servers written with asyncio, on any of its event loops: the peers of pyloop.

    python asyncio_echo.py --loop uvloop --kind streams --framing lines

Prints "listening PORT" when ready and runs until SIGTERM. Each kind is written as
its users write it; `protocol-tuned` is what somebody who profiles would write.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import struct
from collections.abc import Callable

LIMIT = 64 * 1024 * 1024  # of StreamReader: the largest message of the benchmarks fits


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


STREAMS = {"raw": stream_raw, "lines": stream_lines, "prefix4": stream_prefix4}
PROTOCOLS = {
    ("protocol", "raw"): RawProtocol,
    ("protocol", "lines"): LinesProtocol,
    ("protocol", "prefix4"): Prefix4Protocol,
    ("protocol-tuned", "raw"): RawProtocol,
    ("protocol-tuned", "lines"): TunedLinesProtocol,
    ("buffered", "raw"): RawBuffered,
}


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    if name == "pyloop":
        import pyloop

        return pyloop.new_event_loop
    return asyncio.SelectorEventLoop


async def serve(kind: str, framing: str) -> None:
    if kind == "streams":
        start = functools.partial(asyncio.start_server, STREAMS[framing], limit=LIMIT)
    else:
        create = asyncio.get_running_loop().create_server
        start = functools.partial(create, PROTOCOLS[kind, framing])
    server = await start(host="127.0.0.1", port=0, backlog=4096)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "pyloop"], default="asyncio")
    kinds = ["streams", "protocol", "protocol-tuned", "buffered"]
    parser.add_argument("--kind", choices=kinds, default="protocol")
    parser.add_argument("--framing", choices=["raw", "lines", "prefix4"], default="raw")
    args = parser.parse_args()
    if args.kind != "streams" and (args.kind, args.framing) not in PROTOCOLS:
        parser.error(f"no {args.kind} server for framing {args.framing}")
    with asyncio.Runner(loop_factory=loop_factory(args.loop)) as runner:
        runner.run(serve(args.kind, args.framing))


if __name__ == "__main__":
    main()
