"""Server: start and stop, where it listens, its hooks, and how many connections it takes."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from peers import peer_of

import pyloop
from pyloop.core import lib


def echo(conn, message):
    conn.send(message)


async def echoes(server, host="127.0.0.1"):
    async with peer_of(server, host) as (reader, writer):
        writer.write(b"ping")
        return await reader.readexactly(4) == b"ping"


# ---- start and stop ----


def test_before_start_there_is_no_port_and_no_socket():
    server = pyloop.Server(echo, port=8888)
    assert server.port is None
    assert server.sockets == ()
    assert len(server.connections) == 0
    assert server.worker_id == 0


def test_started_server_echoes_and_stopped_one_is_gone(run):
    async def main():
        server = pyloop.Server(echo)
        await server.start()
        port = server.port
        assert port > 0
        assert [sock.getsockname() for sock in server.sockets] == [("127.0.0.1", port)]
        assert await echoes(server)
        await server.stop()
        assert (server.port, server.sockets) == (None, ())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    run(main())


def test_stopped_server_starts_again_and_stop_of_a_stopped_one_is_nothing(run):
    async def main():
        server = pyloop.Server(echo)
        await server.stop()
        for _ in range(2):
            await server.start()
            assert await echoes(server)
            await server.stop()
            await server.stop()

    run(main())


def test_async_with_starts_and_stops(run):
    async def main():
        server = pyloop.Server(echo)
        async with server as entered:
            assert entered is server
            assert await echoes(server)
        assert server.port is None

    run(main())


def test_serve_forever_starts_and_serves_until_stop(run):
    async def main():
        started = asyncio.Event()
        server = pyloop.Server(echo, on_start=lambda server: started.set())
        serving = asyncio.create_task(server.serve_forever())
        await started.wait()
        assert await echoes(server)
        await server.stop()
        assert await serving is None

    run(main())


def test_cancelled_serve_forever_stops_the_server(run):
    async def main():
        started = asyncio.Event()
        server = pyloop.Server(echo, on_start=lambda server: started.set())
        serving = asyncio.create_task(server.serve_forever())
        await started.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert server.port is None

    run(main())


def test_second_start_is_a_runtime_error(run):
    async def main():
        async with pyloop.Server(echo) as server:
            with pytest.raises(RuntimeError, match="has been started already"):
                await server.start()
            assert await echoes(server)

    run(main())


def test_second_of_two_concurrent_starts_is_a_runtime_error(run):
    async def main():
        server = pyloop.Server(echo)
        first, second = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
        assert first is None
        assert isinstance(second, RuntimeError) and "has been started already" in str(second)
        assert len(server.sockets) == 1
        assert await echoes(server)
        await server.stop()

    run(main())


def test_concurrent_stops_all_wait_for_the_end(run):
    async def main():
        stopped = []
        server = pyloop.Server(echo, on_stop=stopped.append)
        await server.start()
        await asyncio.gather(server.stop(), server.stop(), server.stop())
        assert stopped == [server]

    run(main())


@pytest.mark.parametrize("method", ["start", "serve_forever", "__aenter__"])
def test_on_another_loop_is_a_runtime_error_that_names_run(method):
    server = pyloop.Server(echo)
    with pytest.raises(RuntimeError, match=r"pyloop\.Loop .*pyloop\.run\(\)"):
        asyncio.run(getattr(server, method)())


def test_without_a_loop_is_a_runtime_error_that_names_run():
    coroutine = pyloop.Server(echo).start()
    with pytest.raises(RuntimeError, match=r"no loop is running.*pyloop\.run\(\)"):
        coroutine.send(None)


# ---- where it listens ----


def test_ipv6_is_served(run):
    async def main():
        async with pyloop.Server(echo, "::1") as server:
            assert server.sockets[0].getsockname()[0] == "::1"
            assert await echoes(server, "::1")

    run(main())


@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], ("127.0.0.1", "127.0.0.2")])
def test_several_hosts_share_one_port(run, hosts):
    async def main():
        async with pyloop.Server(echo, hosts) as server:
            bound = {sock.getsockname()[:2] for sock in server.sockets}
            assert bound == {(host, server.port) for host in hosts}
            for host in hosts:
                assert await echoes(server, host)

    run(main())


def test_empty_host_means_every_address(run):
    async def main():
        async with pyloop.Server(echo, "") as server:
            assert await echoes(server, "127.0.0.1")
            assert await echoes(server, "::1")

    run(main())


def test_socket_handed_in_is_served_and_closed_by_stop(run):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]

    async def main():
        async with pyloop.Server(echo, sock=sock) as server:
            assert server.port == port
            assert await echoes(server)

    run(main())
    assert sock.fileno() == -1


def test_port_taken_names_address_and_port(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def main():
            server = pyloop.Server(echo, port=port)
            with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: ") as info:
                await server.start()
            assert "Address already in use" in str(info.value)
            assert server.sockets == ()

        run(main())


def test_one_taken_address_of_two_closes_the_other(run):
    free = socket.create_server(("127.0.0.1", 0))  # nobody else listens there
    port = free.getsockname()[1]
    with socket.create_server(("127.0.0.2", port)):
        free.close()

        async def main():
            server = pyloop.Server(echo, ["127.0.0.1", "127.0.0.2"], port)
            with pytest.raises(OSError, match=rf"127\.0\.0\.2:{port}"):
                await server.start()
            assert server.sockets == ()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

        run(main())


def test_unresolvable_host_is_named(run):
    async def main():
        with pytest.raises(OSError, match="no such host"):
            await pyloop.Server(echo, "no such host").start()

    run(main())


def test_accepted_sockets_have_nodelay(run):
    async def main():
        made = asyncio.get_running_loop().create_future()

        async def handler(conn):
            made.set_result(lib.pl_conn_fd(conn._ptr, conn.id))  # borrowed: it is the core's
            await conn.receive()

        async with pyloop.Server(handler) as server, peer_of(server):
            sock = socket.socket(fileno=await made)
            try:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert not os.get_blocking(sock.fileno())
                assert not sock.get_inheritable()
            finally:
                sock.detach()

    run(main())


# ---- hooks ----


def test_hooks_plain_and_async_get_the_server_in_order(run):
    async def main():
        calls = []

        def on_start(server):
            calls.append(("start", server, server.port is not None))

        async def on_stop(server):
            calls.append(("stop", server, len(server.connections)))

        server = pyloop.Server(echo, on_start=on_start, on_stop=on_stop)
        async with server, peer_of(server) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
        assert calls == [("start", server, True), ("stop", server, 0)]

    run(main())


def test_async_on_start_ends_before_the_first_connection(run):
    async def main():
        order = []

        async def on_start(server):
            async with peer_of(server):  # the backlog takes it
                order.append("connected")
            order.append("started")

        async def handler(conn):
            order.append("handled")

        async with pyloop.Server(handler, on_start=on_start) as server:
            async with peer_of(server) as (reader, _):
                assert await reader.read() == b""
        assert order[:3] == ["connected", "started", "handled"]

    run(main())


def test_on_start_that_raises_leaves_nothing_open(run):
    async def main():
        async def on_start(server):
            raise LookupError("no database")

        server = pyloop.Server(echo, on_start=on_start)
        with pytest.raises(LookupError, match="no database"):
            await server.start()
        assert server.sockets == ()

    run(main())


def test_on_stop_that_raises_is_raised_by_stop_and_the_server_is_down(run):
    async def main():
        def on_stop(server):
            raise LookupError("no database")

        server = pyloop.Server(echo, on_stop=on_stop)
        await server.start()
        with pytest.raises(LookupError, match="no database"):
            await server.stop()
        assert server.sockets == ()
        await server.stop()

    run(main())


# ---- how many ----


def test_backlog_is_handed_to_listen(run, monkeypatch):
    asked = []

    class Socket(socket.socket):
        def listen(self, backlog):
            asked.append(backlog)
            super().listen(backlog)

    async def main():
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Socket)
            server = pyloop.Server(echo, backlog=7)
            await server.start()
        await server.stop()

    run(main())
    assert asked == [7]


def test_max_connections_pauses_accepting_and_resumes_on_close(run):
    async def main():
        async with pyloop.Server(echo, max_connections=2) as server:
            async with peer_of(server) as (reader1, writer1), peer_of(server) as (reader2, writer2):
                for reader, writer in ((reader1, writer1), (reader2, writer2)):
                    writer.write(b"x")
                    await reader.readexactly(1)
                async with peer_of(server) as (reader3, writer3):  # the backlog holds it
                    writer3.write(b"third")
                    for _ in range(20):  # each a turn in which it could have been accepted
                        writer1.write(b"y")
                        await reader1.readexactly(1)
                    assert len(server.connections) == 2
                    assert server.stats().accepted == 2
                    writer2.close()
                    assert await reader3.readexactly(5) == b"third"
                    assert server.stats().accepted == 3

    run(main())
