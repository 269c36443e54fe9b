"""TLS as a loop does it all day: more of what tests/operations.py has."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tls import HOST, client_context, server_context

import pyloop


class Echoing(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.write(bytearray(data))
        if data == b"raise":
            raise LookupError("a fault")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


def encrypted(loop: pyloop.Loop, count: int) -> None:
    """Over a transport: handshake, messages, and an end, which is every other time a fault."""

    async def main() -> None:
        for last in (b"last!", b"raise"):
            ours, peer = socket.socketpair()
            protocol = Echoing()
            serving = loop.create_task(
                loop.connect_accepted_socket(lambda: protocol, ours, ssl=server_context())  # noqa: B023
            )
            reader, writer = await asyncio.open_connection(
                sock=peer, ssl=client_context(), server_hostname=HOST
            )
            await serving
            for _ in range(count // 20):
                writer.write(b"data")
                assert await reader.readexactly(8) == b"datadata"
            writer.write(last)
            if last == b"raise":
                await protocol.lost
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass
            await protocol.lost

    loop.run_until_complete(main())


def encrypted_native(loop: pyloop.Loop, count: int) -> None:
    def echo(conn: Any, message: bytes) -> None:
        conn.send(message)
        conn.write(b"more\n")
        for wrong in ("text", None, b"two\nlines"):
            try:
                conn.send(wrong)
            except (TypeError, ValueError):
                pass
        if message == b"raise":
            raise LookupError("a fault")

    async def main() -> None:
        server = pyloop.Server(echo, framing=pyloop.Lines(), ssl=server_context())
        async with server:
            for last in (b"last", b"raise"):
                conn = await pyloop.connect(
                    HOST, server.port, framing=pyloop.Lines(), ssl=client_context()
                )
                for _ in range(count // 20):
                    conn.send(b"line")
                    assert [await conn.receive() for _ in range(2)] == [b"line", b"more"]
                conn.send(last)
                try:
                    await conn.receive()
                except OSError:  # the handler that raises resets it
                    pass
                conn.close()
                await conn.wait_closed()

    loop.run_until_complete(main())
