"""loop.sendfile over asyncio's stream transports."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest
from peers import RESET, until
from transports import Recorder, attached, fill, receive, tcp_pair, turns

DATA = os.urandom(1 << 20)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with open(path, "rb") as opened:
        yield opened


@pytest.fixture
def large(tmp_path):
    """More than any socket takes."""
    with open(tmp_path / "large", "w+b") as opened:
        opened.truncate(1 << 28)
        yield opened


def test_file_follows_what_is_queued_and_precedes_what_comes_later(loop, run, file):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            before = fill(transport, protocol)
            sending = loop.create_task(loop.sendfile(transport, file, 10, 500_000))
            await turns()
            with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
                transport.write(b"too early")
            with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
                transport.writelines([b"too early"])
            with pytest.raises(RuntimeError, match="another one is in progress"):
                await loop.sendfile(transport, file)
            assert await receive(peer, len(before)) == before
            assert await receive(peer, 500_000) == DATA[10:500_010]
            assert await sending == 500_000 and file.tell() == 500_010
            transport.write(b"later")
            assert await receive(peer, 5) == b"later"
            assert transport.is_reading()
            peer.send(b"answer")
            await until(lambda: protocol.data == b"answer")
            assert protocol.calls == ["made", "pause", "resume", b"answer"]

    run(main())


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4 << 20, 8 << 20)])
def test_limits_set_while_a_file_waits_let_it_not_go_first(loop, run, file, low, high):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            before = os.urandom(3 << 20)
            transport.write(before)
            sending = loop.create_task(loop.sendfile(transport, file))
            await turns()
            transport.set_write_buffer_limits(high=high, low=low)
            assert transport.get_write_buffer_limits() == (low, high)
            await turns()
            assert await receive(peer, len(before)) == before
            assert await receive(peer, len(DATA)) == DATA
            assert await sending == len(DATA)
            assert transport.get_write_buffer_limits() == (low, high)
            transport.write(bytes(1 << 20))
            paused = protocol.calls.count("pause") - protocol.calls.count("resume")
            assert paused == (transport.get_write_buffer_size() > high)

    run(main())


def test_resume_that_is_due_already_lets_no_file_go_first(loop, run, file):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            before = os.urandom(3 << 20)
            transport.write(before)
            transport.set_write_buffer_limits(high=8 << 20, low=4 << 20)  # PL_EV_RESUME is due
            sending = loop.create_task(loop.sendfile(transport, file))
            await turns()
            assert await receive(peer, len(before)) == before
            assert await receive(peer, len(DATA)) == DATA
            assert await sending == len(DATA)

    run(main())


def test_cancelled_before_it_began_leaves_the_transport_as_it_was(loop, run, file):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            before = fill(transport, protocol)
            sending = loop.create_task(loop.sendfile(transport, file))
            await turns()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            transport.write(b"on")
            assert await receive(peer, len(before) + 2) == before + b"on"
            assert transport.is_reading()

    run(main())


def test_without_an_fd_to_spare_it_fails_and_the_transport_goes_on(loop, run, file):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    await loop.sendfile(transport, file, fallback=False)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            transport.write(b"on")
            assert await receive(peer, 2) == b"on"
            assert await loop.sendfile(transport, file, 0, 5) == 5
            assert await receive(peer, 5) == DATA[:5]

    run(main())


@pytest.mark.parametrize("sockets", [tcp_pair, socket.socketpair])
@pytest.mark.parametrize("waiting", [False, True], ids=["sending", "waiting"])
@pytest.mark.parametrize("end", ["abort", "reset"])
def test_connection_that_ends_meanwhile_fails_it(loop, run, large, end, waiting, sockets):
    async def main():
        protocol = Recorder()
        async with attached(protocol, sockets()) as (transport, peer):
            if waiting:
                fill(transport, protocol)
            sending = loop.create_task(loop.sendfile(transport, large))
            await turns(5)
            assert not sending.done()
            if end == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                peer.close()
            else:
                transport.abort()
            done, _ = await asyncio.wait([sending], timeout=20)
            assert done and isinstance(sending.exception(), OSError)
            transport.abort()
            exc = await protocol.lost
            assert exc is None or isinstance(exc, OSError)
            assert protocol.calls.count("lost") == 1

    run(main())


def test_close_meanwhile_fails_it_and_closes(loop, run, large):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            sending = loop.create_task(loop.sendfile(transport, large))
            await turns(5)
            transport.close()
            done, _ = await asyncio.wait([sending], timeout=20)
            assert done and isinstance(sending.exception(), OSError)
            assert await protocol.lost is None
            with pytest.raises(RuntimeError, match="Transport is closing"):
                await loop.sendfile(transport, large)

    run(main())
