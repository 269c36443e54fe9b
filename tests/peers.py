"""The two ends of a test: plain clients, and a server that hands its connections to the test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct

import trustme

import pyloop

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


def reset(end):
    """Close the socket of something that has a transport with a reset."""
    sock = end.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.transport.abort()


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


@functools.cache
def tls_contexts():
    """A server's and a client's SSLContext, which trust each other on 127.0.0.1."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def until(condition):
    """Turn the loop until `condition()` holds: for states that no event tells of."""
    while not condition():
        await asyncio.sleep(0)


class Serving:
    """A server whose connections stay open and come to the test: `async with serving() as s`."""

    def __init__(self, **options):
        self.arrivals = asyncio.Queue()
        self.server = pyloop.Server(lambda: Held(self), **options)

    async def __aenter__(self):
        await self.server.start()
        return self

    async def __aexit__(self, *exc_info):
        await self.server.stop()

    async def conn(self):
        return await self.arrivals.get()


class Held(pyloop.Protocol):
    def __init__(self, serving):
        self.serving = serving
        self.messages = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, conn):
        self.conn = conn
        conn.state = self
        self.serving.arrivals.put_nowait(conn)

    def message_received(self, message):
        self.messages.append(message)

    def connection_lost(self, exc):
        self.lost.set_result(exc)
