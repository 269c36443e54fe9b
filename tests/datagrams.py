"""Datagram endpoints for tests, on any loop: a protocol that remembers, and ways to make two ends.

async with endpoint(local_addr=LOCAL) as peer:
    peer.transport.sendto(b"ping", address)
    data, sender = await peer.next()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import BACKENDS

import pyloop

LOCAL = ("127.0.0.1", 0)


@pytest.fixture(params=[*BACKENDS, "asyncio"], name="loop")
def either_loop(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[asyncio.AbstractEventLoop]:
    """A pyloop.Loop on each backend, and asyncio's own loop, whose word is law."""
    monkeypatch.delenv("PYLOOP_BACKEND", raising=False)
    stock = request.param == "asyncio"
    loop = asyncio.SelectorEventLoop() if stock else pyloop.Loop(backend=request.param)
    yield loop
    loop.close()


class Peer(asyncio.DatagramProtocol):
    """Notes what it is told: `calls` by name, datagrams, errors, and the end in `lost`."""

    transport: Any

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inbox: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.calls.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.inbox.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.writable.clear()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)

    @property
    def address(self) -> Any:
        return self.transport.get_extra_info("sockname")

    async def next(self) -> tuple[bytes, Any]:
        return await self.inbox.get()

    async def take(self, count: int) -> list[bytes]:
        return [(await self.inbox.get())[0] for _ in range(count)]


@contextlib.asynccontextmanager
async def endpoint(factory: Any = Peer, **options: Any) -> AsyncIterator[Any]:
    """create_datagram_endpoint, closed at the end; 127.0.0.1 is meant by nothing."""
    loop = asyncio.get_running_loop()
    options = options or {"local_addr": LOCAL}
    transport, protocol = await loop.create_datagram_endpoint(factory, **options)
    try:
        yield protocol
    finally:
        if isinstance(protocol, Peer):
            transport.abort()
            await protocol.lost
        else:
            transport.close()
            await asyncio.sleep(0)


def udp(family: int = socket.AF_INET, address: Any = LOCAL) -> socket.socket:
    """A bound socket that blocks, for at most 30 seconds."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(30)
    sock.bind(address)
    return sock


@contextlib.contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets: the first does not block, and becomes an endpoint's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    theirs.settimeout(30)
    with ours, theirs:
        yield ours, theirs
