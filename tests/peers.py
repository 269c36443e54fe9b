"""Plain clients for tests of servers: asyncio streams, with nothing of pyloop's framing in them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's value with which close() resets."""


@contextlib.asynccontextmanager
async def peer_of(server, host="127.0.0.1", **options):
    """A client of a TCP server: its reader and writer; closed without ceremony."""
    reader, writer = await asyncio.open_connection(host, server.port, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def exchange(server, data, **options):
    """Send `data` and end of stream; return all that comes back."""
    async with peer_of(server, **options) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        return await reader.read()


async def answer(peer, data, count=None):
    """Send `data`, return as many bytes as that, or `count`."""
    reader, writer = peer
    writer.write(data)
    return await reader.readexactly(len(data) if count is None else count)


def reset(writer):
    """Close a client's socket with a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@contextlib.contextmanager
def deaf_peer(server, receive_buffer=4096):
    """A blocking client socket with a small receive buffer, which reads only when told to."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", server.port))
        sock.setblocking(False)
        yield sock


async def read_all(sock):
    """Read a non-blocking socket to its end of stream on the running loop."""
    loop = asyncio.get_running_loop()
    pieces = []
    while piece := await loop.sock_recv(sock, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


async def until(condition):
    """Turn the loop until `condition()` holds: for states that no event tells of."""
    while not condition():
        await asyncio.sleep(0)
