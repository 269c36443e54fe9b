"""Numbers of closed sockets: what a call left watched under one harms no later owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

import pytest
from ends import pair, started
from peers import until

import pyloop
from pyloop.core import lib

IDLE = 0.01
MOST_TURNS = 50  # of an idle loop in that time, with room for everything but spinning


@pytest.fixture(params=["closed", "copied"])
def left(request, loop, run, caplog):
    """The number of a socket that was closed while watched; "copied": the file is still open."""
    with contextlib.ExitStack() as stack:

        async def leave():
            ours, theirs = pair()
            stack.enter_context(theirs)
            task = await started(loop.sock_recv(ours, 8))
            theirs.send(b"one")
            await task
            fd = ours.fileno()
            if request.param == "copied":
                copy = stack.enter_context(socket.socket(fileno=os.dup(fd)))
                assert copy.fileno() > fd
                theirs.send(b"two")  # which the copy does not read
            ours.close()
            assert fd in loop._selector.get_map()
            return fd

        with caplog.at_level(logging.WARNING, "pyloop"):
            yield leave
    assert caplog.get_records("call") == []
    assert not [key for key in loop._selector.get_map().values() if key.data != (None, None)]


async def is_idle(loop):
    """Does the loop turn only when something happens?"""
    await asyncio.sleep(0)
    turns = loop.stats().ticks
    await asyncio.sleep(IDLE)
    return loop.stats().ticks - turns < MOST_TURNS


async def by_sock_recv(loop, fd):
    ours, theirs = pair()
    with ours, theirs:
        assert ours.fileno() == fd
        task = await started(loop.sock_recv(ours, 8))
        assert await is_idle(loop) and not task.done()
        theirs.send(b"fresh")
        assert await task == b"fresh"


async def by_add_reader(loop, fd):
    reader, writer = os.pipe()
    assert reader == fd
    called = asyncio.Event()
    loop.add_reader(reader, called.set)
    try:
        assert await is_idle(loop) and not called.is_set()
        os.write(writer, b"x")
        await called.wait()
    finally:
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)


async def by_add_writer(loop, fd):
    ours, theirs = pair()
    with ours, theirs:
        assert ours.fileno() == fd
        called = asyncio.Event()
        loop.add_writer(fd, called.set)
        await called.wait()
        assert loop.remove_writer(fd)


async def by_transport(loop, fd):
    ours, theirs = pair()
    assert ours.fileno() == fd
    reader, writer = await asyncio.open_connection(sock=ours)
    with theirs:
        waiting = await started(reader.read(8))
        assert await is_idle(loop)
        theirs.send(b"fresh")
        assert await waiting == b"fresh"
        writer.close()
        await writer.wait_closed()


OWNERS = [by_sock_recv, by_add_reader, by_add_writer, by_transport]


@pytest.mark.parametrize("own", OWNERS, ids=lambda own: own.__name__)
def test_reused_number_serves_its_new_owner(loop, run, left, own):
    async def main():
        await own(loop, await left())

    run(main())


def test_connection_accepted_in_the_core_may_have_the_number(loop, run, left, tmp_path):
    async def main():
        numbers = []
        path = str(tmp_path / "s")

        def echo(conn, line):
            numbers.append(lib.pl_conn_fd(conn._ptr, conn.id))
            conn.send(line)

        async with pyloop.Server(echo, path=path, framing=pyloop.Lines()):
            client = socket.socket(socket.AF_UNIX)
            fd = await left()
            with client:
                client.connect(path)
                client.setblocking(False)
                await asyncio.sleep(0)
                assert await is_idle(loop)
                client.send(b"fresh\n")
                assert await loop.sock_recv(client, 8) == b"fresh\n"
            assert numbers == [fd]

    run(main())


def test_connection_that_is_opened_may_have_the_number(loop, run, left, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        async with pyloop.Server(lambda conn, line: conn.send(line), path=path) as server:
            fd = await left()
            conn = await pyloop.connect(path=path)
            assert lib.pl_conn_fd(conn._ptr, conn.id) == fd
            assert await is_idle(loop)
            conn.send(b"fresh")
            assert await conn.receive() == b"fresh"
            conn.abort()
            await until(lambda: not server.connections)

    run(main())


def test_listener_may_have_the_number(loop, run, left, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        fd = await left()
        async with pyloop.Server(lambda conn, line: conn.send(line), path=path) as server:
            assert [sock.fileno() for sock in server.sockets] == [fd]
            assert await is_idle(loop)
            conn = await pyloop.connect(path=path)
            conn.send(b"fresh")
            assert await conn.receive() == b"fresh"
            conn.abort()
            await until(lambda: not server.connections)

    run(main())


def test_number_that_nobody_takes_is_forgotten_in_silence(loop, run, left):
    async def main():
        fd = await left()
        for _ in range(3):
            await asyncio.sleep(0)
        assert await is_idle(loop)
        if loop.backend != "epoll":  # which does not say so
            assert fd not in loop._selector.get_map()

    run(main())  # and `left` has seen to what was logged


def test_socket_closed_while_watched_for_both_is_forgotten_in_silence(loop, run, caplog):
    """It is readable by the copy's life, and what is left to want of it cannot be told to epoll."""

    async def main():
        ours, theirs = pair()
        with theirs, ours.dup():
            waiting = [
                await started(loop.sock_recv(ours, 8)),
                await started(loop.sock_sendall(ours, bytes(1 << 20))),
            ]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            fd = ours.fileno()
            assert loop._selector.get_key(fd).events == 3
            theirs.send(b"one")
            ours.close()
            await until(lambda: fd not in loop._selector.get_map())
            assert await is_idle(loop)

    with caplog.at_level(logging.WARNING, "pyloop"):
        run(main())
    assert caplog.records == []


def test_callback_whose_fd_is_closed_is_missed_aloud(backend, loop, run, caplog):
    async def main():
        ours, theirs = pair()
        with theirs:
            fd = ours.fileno()
            loop.add_reader(ours, print)
            ours.close()
            await until(lambda: fd not in loop._selector.get_map())
            return fd

    if backend == "epoll":
        pytest.skip("epoll drops a closed fd and does not say so")
    with caplog.at_level(logging.ERROR, "pyloop"):
        fd = run(main())
    assert caplog.messages == [f"fd {fd} was closed while it was watched; its watcher is dropped"]


def test_socket_closed_while_a_call_waits_ends_the_call(loop, run, backend):
    """At once where the kernel says so, on epoll when somebody else has the number."""

    async def main():
        ours, theirs = pair()
        with theirs:
            task = await started(loop.sock_recv(ours, 8))
            ours.close()
            more = pair()
            with more[0], more[1]:
                tasks = [await started(loop.sock_recv(sock, 8)) for sock in more]
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await task
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


def test_two_socket_objects_of_one_number_wait_without_spinning(loop, run):
    async def main():
        ours, theirs = pair()
        alias = socket.socket(fileno=ours.fileno())
        with theirs:
            tasks = [await started(loop.sock_recv(sock, 1)) for sock in (ours, alias, ours)]
            assert await is_idle(loop)
            theirs.send(b"abc")
            assert await asyncio.gather(*tasks) == [b"a", b"b", b"c"]
            alias.detach()
            ours.close()

    run(main())


def test_fd_of_a_connection_is_refused_to_callbacks_and_calls(loop, run, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        async with pyloop.Server(lambda conn, line: None, path=path) as server:
            conn = await pyloop.connect(path=path)
            fd = lib.pl_conn_fd(conn._ptr, conn.id)
            alias = socket.socket(fileno=fd)
            alias.setblocking(False)
            said = f"^File descriptor {fd} is used by transport <"
            with pytest.raises(RuntimeError, match=said):
                loop.add_reader(fd, print)
            with pytest.raises(RuntimeError, match=said):
                loop.add_writer(fd, print)
            with pytest.raises(RuntimeError, match=f"fd={fd}, .* is used by transport <"):
                await loop.sock_recv(alias, 8)
            for remove in (loop.remove_reader, loop.remove_writer):
                with pytest.raises(RuntimeError, match=said):
                    remove(fd)
            assert not loop.remove_reader(0)
            alias.detach()
            with pytest.raises(RuntimeError, match=r"is used by transport None"):
                loop.add_reader(server.sockets[0].fileno(), print)
            conn.abort()
            await until(lambda: not server.connections)

    run(main())
