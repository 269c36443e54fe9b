"""backend="auto" starts on select and moves when it must; select refuses what does not fit."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import select
import socket
import time

import pytest
from conftest import AUTO_TOO
from peers import answer, peer_of, until

import pyloop
from pyloop.core import lib

FD_SETSIZE = lib.pl_fdset_size()
MOST_WATCHED = 64
STRONGEST = "epoll" if hasattr(select, "epoll") else "poll"


def echo(conn, message):
    conn.send(message)


@pytest.fixture
def many_fds():
    """Room for fds above FD_SETSIZE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, FD_SETSIZE + 500)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def new_loop(backend):
    loop = pyloop.Loop(backend)
    try:
        yield loop
    finally:
        loop.close()


@contextlib.contextmanager
def socketpairs(count):
    pairs = [socket.socketpair() for _ in range(count)]
    try:
        yield pairs
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


@contextlib.contextmanager
def low_fds_taken():
    """Every free fd below FD_SETSIZE is taken, so that the next one is not below."""
    gc.collect()
    taken = []
    try:
        while not taken or taken[-1] < FD_SETSIZE - 1:
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def high(sock):
    """A copy of a socket whose fd is above FD_SETSIZE."""
    copy = socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE + 7))
    copy.setblocking(False)
    with copy:
        yield copy


# ---- the move ----


def test_auto_starts_on_select():
    with new_loop("auto") as loop:
        assert loop.backend == loop.stats().backend == "select"


@pytest.mark.parametrize("name", ["select", "poll", "epoll"])
def test_named_backend_is_used_and_stays(name, many_fds):
    if not hasattr(select, name):
        pytest.skip(f"no {name} on this platform")
    with new_loop(name) as loop, socketpairs(MOST_WATCHED + 1) as pairs:
        for sock, _ in pairs:
            loop.add_reader(sock, print)
        assert loop.backend == name


def test_the_sixty_fifth_watched_fd_moves_and_never_back():
    with new_loop("auto") as loop, socketpairs(MOST_WATCHED + 2) as pairs:
        watched = 0
        while loop.backend == "select":
            loop.add_reader(pairs[watched][0], print)
            watched += 1
        assert loop.backend == STRONGEST
        assert watched <= MOST_WATCHED + 1 <= watched + 2  # the loop watches two fds of its own
        for sock, _ in pairs:
            loop.remove_reader(sock)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert loop.backend == STRONGEST


def test_reading_and_writing_on_one_fd_count_once():
    with new_loop("auto") as loop, socketpairs(40) as pairs:
        for sock, _ in pairs:
            loop.add_reader(sock, print)
            loop.add_writer(sock, print)
        assert loop.backend == "select"


def test_fd_that_does_not_fit_moves(many_fds):
    with new_loop("auto") as loop, socketpairs(1) as [(sock, other)], high(sock) as copy:
        loop.add_reader(copy, loop.stop)
        assert loop.backend == STRONGEST
        other.send(b"x")
        loop.run_forever()
        assert copy.recv(1) == b"x"
        loop.remove_reader(copy)


def test_what_was_ready_before_the_move_is_reported_after_it():
    with new_loop("auto") as loop, socketpairs(200) as pairs:
        got = []

        def read(number):
            got.append((number, pairs[number][0].recv(10)))
            if len(got) == len(pairs):
                loop.stop()

        for number, (sock, other) in enumerate(pairs):
            other.send(b"%d" % number)
            loop.add_reader(sock, read, number)
        assert loop.backend == STRONGEST
        loop.run_forever()
        assert sorted(got) == [(number, b"%d" % number) for number in range(len(pairs))]
        for sock, _ in pairs:
            loop.remove_reader(sock)


@AUTO_TOO
def test_move_in_the_middle_of_traffic_loses_nothing(run, loop, backend):
    async def client(server, number, started):
        async with peer_of(server) as (reader, writer):
            for turn in range(30):
                line = b"%d %d\n" % (number, turn)
                assert await answer((reader, writer), line) == line
                started.set()
                await asyncio.sleep(0)
            writer.write(b"x\n" * 5_000)
            writer.write_eof()
            assert await reader.read() == b"x\n" * 5_000

    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            started = asyncio.Event()
            clients = []
            for number in range(60):  # two fds each
                clients.append(asyncio.create_task(client(server, number, started)))
                await started.wait()
                started.clear()
            await asyncio.gather(*clients)

    run(main(), timeout=60)
    assert loop.backend == (STRONGEST if backend == "auto" else backend)


def test_accepting_many_at_once_moves_and_serves_all(many_fds):
    async def main():
        async with pyloop.Server(echo) as server, contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(peer_of(server)) for _ in range(100)]
            assert asyncio.get_running_loop().backend == STRONGEST
            for number, peer in enumerate(peers):
                assert await answer(peer, b"%d" % number) == b"%d" % number

    pyloop.run(main(), backend="auto")


def test_auto_accepts_fds_that_do_not_fit_select(many_fds):
    async def main():
        async with pyloop.Server(echo) as server:
            with socket.create_connection(("127.0.0.1", server.port), 30) as sock, low_fds_taken():
                sock.send(b"hello")
                await until(lambda: server.stats().messages_out)
                assert asyncio.get_running_loop().backend == STRONGEST
                assert server.stats().refused == 0
                (conn,) = server.connections
                assert lib.pl_conn_fd(conn._ptr, conn.id) >= FD_SETSIZE

    pyloop.run(main(), backend="auto")


# ---- plain select ----


def test_add_reader_of_an_fd_that_does_not_fit_select_is_a_value_error(many_fds):
    with new_loop("select") as loop, socketpairs(1) as [(sock, _)], high(sock) as copy:
        for add in (loop.add_reader, loop.add_writer):
            with pytest.raises(ValueError, match=rf"fd \d+ .*FD_SETSIZE \({FD_SETSIZE}\).*auto"):
                add(copy, print)
        loop.add_reader(sock, loop.stop)  # the loop is unharmed
        loop.remove_reader(sock)


def test_accepted_fd_that_does_not_fit_select_is_refused_and_the_rest_go_on(many_fds, caplog):
    async def main():
        started = time.monotonic()
        async with pyloop.Server(echo) as server, peer_of(server) as good:
            await answer(good, b"before")
            address = ("127.0.0.1", server.port)
            with contextlib.ExitStack() as stack:
                refused = [
                    stack.enter_context(socket.create_connection(address, 30)) for _ in range(5)
                ]
                with low_fds_taken():
                    await until(lambda: server.stats().refused == 5)
                    for sock in refused:
                        assert sock.recv(1) == b""
                    assert await answer(good, b"still served") == b"still served"
            async with peer_of(server) as peer:  # low fds are free again
                assert await answer(peer, b"after") == b"after"
            assert server.stats().accepted == 2
            assert asyncio.get_running_loop().backend == "select"
        return time.monotonic() - started

    seconds = pyloop.run(main(), backend="select")
    records = [record for record in caplog.records if record.name == "pyloop"]
    assert 1 <= len(records) <= 1 + seconds
    text = records[0].getMessage()
    assert f"FD_SETSIZE ({FD_SETSIZE})" in text and 'backend="auto"' in text


@pytest.mark.parametrize("name", ["poll", "epoll"])
def test_other_backends_have_no_such_limit(many_fds, name):
    with new_loop(name) as loop, socketpairs(1) as [(sock, other)], high(sock) as copy:
        loop.add_reader(copy, loop.stop)
        other.send(b"x")
        loop.run_forever()
        loop.remove_reader(copy)


def test_connect_on_select_to_an_fd_that_does_not_fit_is_an_error_and_leaks_nothing(many_fds):
    async def main():
        async with pyloop.Server(echo) as server:
            with low_fds_taken():
                before = len(os.listdir("/proc/self/fd"))
                with pytest.raises((ValueError, OSError)):
                    await pyloop.connect("127.0.0.1", server.port)
                gc.collect()
                assert len(os.listdir("/proc/self/fd")) == before

    pyloop.run(main(), backend="select")
