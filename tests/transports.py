"""What the tests of asyncio's transports share: protocols that remember, and two ends of a socket.

Tests of what asyncio itself promises run on asyncio's loop too, which is how they are known to be
that: `pytestmark = ORACLE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket

import pytest
from conftest import BACKENDS

ORACLE = pytest.mark.parametrize("backend", [*BACKENDS, "asyncio"], indirect=True)


class Recorder(asyncio.Protocol):
    """Remembers what it is called with: `calls`, in order, and `data`, joined."""

    def __init__(self, keep_open=False):
        self.calls = []
        self.data = bytearray()
        self.transport = None
        self.keep_open = keep_open
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data):
        assert type(data) is bytes
        self.data += data
        self.calls.append(data)

    def eof_received(self):
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def connection_lost(self, exc):
        self.calls.append("lost")
        self.lost.set_result(exc)


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same through a buffer of `size` bytes of its own."""

    data_received = None

    def __init__(self, size=1 << 16, keep_open=False):
        super().__init__(keep_open)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        assert sizehint == -1 or sizehint > 0  # what had been held back
        return self.buffer

    def buffer_updated(self, nbytes):
        assert type(nbytes) is int
        self.calls.append(bytes(self.buffer[:nbytes]))
        self.data += self.buffer[:nbytes]


var = contextvars.ContextVar("var", default="nothing")


class Contextual(Recorder):
    """Remembers the variable's value in each callback, and sets it."""

    def __init__(self, values):
        self.values = values
        super().__init__()

    def _note(self, name):
        self.values.append((name, var.get()))

    def connection_made(self, transport):
        super().connection_made(transport)
        self._note("made")

    def data_received(self, data):
        super().data_received(data)
        self._note("data")

    def eof_received(self):
        self._note("eof")

    def pause_writing(self):
        super().pause_writing()
        self._note("pause")

    def resume_writing(self):
        super().resume_writing()
        self._note("resume")

    def connection_lost(self, exc):
        self._note("lost")
        super().connection_lost(exc)


class Refills(Recorder):
    """Writes more from within resume_writing, `left` times."""

    left = 5

    def resume_writing(self):
        super().resume_writing()
        if self.left:
            self.left -= 1
            self.transport.write(bytes(2 << 20))


class Made(list):
    """The protocols that its `factory` made."""

    def factory(self):
        self.append(Recorder())
        return self[-1]

    async def all_lost(self):
        for protocol in self:
            await protocol.lost


def tcp_pair(family=socket.AF_INET):
    """Two connected TCP sockets."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        return client, listener.accept()[0]


@contextlib.asynccontextmanager
async def attached(protocol, sockets=None):
    """A transport with `protocol` over one of two sockets, and the other one, non-blocking."""
    mine, peer = sockets or socket.socketpair()
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, sock=mine)
    try:
        yield transport, peer
    finally:
        peer.close()
        if not protocol.lost.done():  # asyncio's own has no loop then
            transport.abort()
        async with asyncio.timeout(20):
            await protocol.lost


async def receive(sock, count):
    """Read `count` bytes from a non-blocking socket, fewer at end of stream."""
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < count and (piece := await loop.sock_recv(sock, count - len(data))):
        data += piece
    return bytes(data)


def fill(transport, protocol, size=1 << 16):
    """Write until the protocol is asked to pause; return all that was written."""
    written = bytearray()
    while protocol.calls.count("pause") == protocol.calls.count("resume"):
        piece = bytes([len(written) // size % 251]) * size
        transport.write(piece)
        written += piece
    return bytes(written)


async def turns(count=3):
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)
