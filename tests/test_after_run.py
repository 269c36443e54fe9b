"""What is left of a server when its loop is gone: nothing that leaks, nothing that crashes."""

from __future__ import annotations

import gc
import socket

import pytest
from conftest import open_fds
from peers import until

import pyloop


def echo(conn, message):
    conn.send(message)


async def start_and_leave(server):
    await server.start()
    return server.port


@pytest.fixture
def no_new_fds():
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before


@pytest.mark.usefixtures("no_new_fds")
def test_server_whose_loop_has_closed_is_stopped(backend):
    server = pyloop.Server(echo)
    port = pyloop.run(start_and_leave(server), backend=backend)
    assert server.sockets == () and server.port is None
    assert list(server.connections) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert "stopped" in repr(server)


@pytest.mark.usefixtures("no_new_fds")
def test_use_of_a_server_whose_loop_has_closed_is_harmless(backend):
    server = pyloop.Server(echo)
    pyloop.run(start_and_leave(server), backend=backend)
    churn = [bytearray(b"\xa5" * size) for size in range(16, 4000, 8) for _ in range(20)]
    server.broadcast(b"to nobody")
    server.abort()
    pyloop.run(server.stop(), backend=backend)
    pyloop.run(server.stop(), backend=backend)
    assert server.stats().accepted == 0
    del churn


@pytest.mark.usefixtures("no_new_fds")
def test_server_whose_loop_has_closed_serves_again_on_another(backend):
    async def again():
        async with server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines())
            conn.send(b"hello")
            assert await conn.receive() == b"hello"
            conn.close()
            await conn.wait_closed()

    server = pyloop.Server(echo, framing=pyloop.Lines())
    pyloop.run(start_and_leave(server), backend=backend)
    pyloop.run(again(), backend=backend)


@pytest.mark.usefixtures("no_new_fds")
def test_socket_file_of_a_server_whose_loop_has_closed_is_unlinked(backend, tmp_path):
    path = tmp_path / "socket"
    pyloop.run(start_and_leave(pyloop.Server(echo, path=path)), backend=backend)
    assert not path.exists()


@pytest.mark.usefixtures("no_new_fds")
def test_connections_of_a_closed_loop_are_lost_and_gone(backend):
    lost = []

    class Telling(pyloop.Protocol):
        def connection_lost(self, exc):
            lost.append(type(exc))

    async def main():
        await server.start()
        conns.append(await pyloop.connect("127.0.0.1", server.port, protocol=Telling))
        await until(lambda: server.connections)
        conns.extend(server.connections)

    server, conns = pyloop.Server(Telling), []
    pyloop.run(main(), backend=backend)
    assert lost == [ConnectionAbortedError] * 2
    assert list(server.connections) == []
    for conn in conns:
        conn.send(b"dropped")
        conn.abort()


@pytest.mark.usefixtures("no_new_fds")
@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt()], ids=repr)
def test_exit_from_connection_lost_while_the_loop_closes_leaks_no_fd(backend, error):
    class Leaving(pyloop.Protocol):
        def connection_lost(self, exc):
            raise error

    async def main():
        await server.start()
        conn = await pyloop.connect("127.0.0.1", server.port)
        await until(lambda: server.connections)
        return conn

    server = pyloop.Server(Leaving)
    with pytest.raises(type(error)) as info:
        pyloop.run(main(), backend=backend)
    assert info.value is error
    assert server.sockets == ()
    del info
    error.__traceback__ = error.__context__ = None
