"""Servers on Unix sockets: paths, abstract names, and whose the socket file is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
import uuid

import pytest

import pyloop

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


def echo(conn, message):
    conn.send(message)


async def echoes(path):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"ping")
    try:
        return await reader.readexactly(4) == b"ping"
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A short path: sun_path has 108 bytes."""
    monkeypatch.chdir(tmp_path)
    return "socket"


@pytest.mark.parametrize("as_given", [str, os.fsencode, __import__("pathlib").Path])
def test_path_is_served_and_unlinked(run, path, as_given):
    async def main():
        async with pyloop.Server(echo, path=as_given(path)) as server:
            assert server.port is None
            assert [sock.getsockname() for sock in server.sockets] == [path]
            assert await echoes(path)
        assert not os.path.exists(path)

    run(main())


@linux_only
@pytest.mark.parametrize("mark", ["@", "\0"])
def test_abstract_name_is_served_and_makes_no_file(run, path, mark):
    name = f"pyloop-{uuid.uuid4()}"

    async def main():
        async with pyloop.Server(echo, path=mark + name) as server:
            assert server.sockets[0].getsockname() == f"\0{name}".encode()
            assert await echoes("\0" + name)
            assert os.listdir() == []

    run(main())


@linux_only
def test_taken_abstract_name_is_named(run, path):
    name = f"pyloop-{uuid.uuid4()}"

    async def main():
        async with pyloop.Server(echo, path="@" + name):
            with pytest.raises(OSError, match=f"cannot listen on @{name}: Address already in use"):
                await pyloop.Server(echo, path="\0" + name).start()

    run(main())


def test_stale_socket_file_is_replaced(run, path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def main():
        async with pyloop.Server(echo, path=path):
            assert await echoes(path)
        assert not os.path.exists(path)

    run(main())


def test_socket_file_with_a_listener_is_left_alone(run, path):
    async def main():
        async with pyloop.Server(echo, path=path):
            with pytest.raises(OSError, match="cannot listen on socket: Address already in use"):
                await pyloop.Server(echo, path=path).start()
            assert await echoes(path)

    run(main())


def test_listener_with_a_full_backlog_is_somebody(run, path):
    async def main():
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(path)
            busy.listen(0)
            waiting.connect(path)
            with pytest.raises(OSError, match="Address already in use"):
                await pyloop.Server(echo, path=path).start()
            assert os.path.exists(path)

    run(main())


@contextlib.contextmanager
def full_listener(path):
    """A listener whose queue is full, and the clients that wait in it."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(path)
        listener.listen(0)
        listener.setblocking(False)
        full = False
        while not full:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            full = client.connect_ex(path) == errno.EAGAIN
        yield listener


@linux_only
def test_connect_waits_for_room_in_a_full_backlog(run, path):
    async def main():
        loop = asyncio.get_running_loop()
        with full_listener(path) as listener, contextlib.ExitStack() as cleanup:
            connecting = asyncio.create_task(pyloop.connect(path=path, framing=pyloop.Lines()))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not connecting.done()
            accepted = []

            def accept():
                with contextlib.suppress(BlockingIOError):
                    sock = cleanup.enter_context(listener.accept()[0])
                    sock.setblocking(False)
                    accepted.append(sock)

            while not connecting.done():
                accept()
                await asyncio.sleep(0)
            conn = await connecting
            accept()
            conn.send(b"hello")
            assert await loop.sock_recv(accepted[-1], 100) == b"hello\n"
            conn.abort()
            await conn.wait_closed()

    run(main())


@linux_only
def test_connect_that_waits_for_room_ends_when_cancelled_or_when_the_listener_goes(run, path):
    async def main():
        with full_listener(path) as listener:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pyloop.connect(path=path), 0.05)
            connecting = asyncio.create_task(pyloop.connect(path=path))
            await asyncio.sleep(0)
            listener.close()
            with pytest.raises(ConnectionRefusedError, match="cannot connect to socket: "):
                await connecting

    run(main())


def test_ordinary_file_is_never_replaced(run, path):
    with open(path, "w") as file:
        file.write("precious")

    async def main():
        with pytest.raises(OSError, match="cannot listen on socket: Address already in use"):
            await pyloop.Server(echo, path=path).start()

    run(main())
    with open(path) as file:
        assert file.read() == "precious"


def test_file_that_took_the_place_of_ours_is_not_unlinked(run, path):
    async def main():
        async with pyloop.Server(echo, path=path):
            os.rename(path, "moved")
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(path)
        assert os.path.exists(path)

    run(main())


def test_socket_file_of_a_socket_handed_in_stays(run, path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)

    async def main():
        async with pyloop.Server(echo, sock=sock) as server:
            assert server.port is None
            assert await echoes(path)
        assert os.path.exists(path)

    run(main())


def test_forked_child_does_not_unlink(run, path):
    async def main():
        async with pyloop.Server(echo, path=path) as server:
            child = os.fork()
            if not child:
                server._listening.close()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert os.path.exists(path)
            assert await echoes(path)

    run(main())


def test_missing_directory_is_named(run, path):
    async def main():
        with pytest.raises(FileNotFoundError, match="cannot listen on no/such/dir: No such file"):
            await pyloop.Server(echo, path="no/such/dir").start()

    run(main())


def test_path_that_is_too_long_is_named(run):
    path = "x" * 200

    async def main():
        with pytest.raises(OSError, match=f"cannot listen on {path}: .*too long"):
            await pyloop.Server(echo, path=path).start()

    run(main())


def test_peername_of_an_unnamed_client_is_empty_and_server_is_sockname(run, path):
    async def main():
        names = asyncio.get_running_loop().create_future()

        async def handler(conn):
            names.set_result((conn.peername, conn.sockname))
            conn.send(await conn.receive())

        async with pyloop.Server(handler, path=path):
            assert await echoes(path)
        assert await names == ("", path)

    run(main())
