"""asyncio's servers on listeners of the core, and the ways to a transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

import pytest
from peers import until
from transports import ORACLE, Made, Recorder, receive, turns

pytestmark = ORACLE


def connect(server):
    return socket.create_connection(server.sockets[0].getsockname())


def test_server_that_was_not_started_accepts_when_it_is(loop, run):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0, start_serving=False)
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        assert not server.is_serving()
        await server.start_serving()
        await server.start_serving()
        with connect(server) as peer:
            peer.send(b"hello")
            await until(lambda: made and made[0].data == b"hello")
        await made.all_lost()
        server.close()
        await server.wait_closed()
        assert not server.is_serving()

    run(main())


def test_closed_server_resets_who_waits_and_keeps_who_was_accepted(loop, run):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        peer = connect(server)
        await until(lambda: made)
        late = connect(server)
        server.close()
        server.close()
        assert server.sockets == ()
        with contextlib.suppress(ConnectionResetError):
            late.settimeout(20)
            assert late.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        peer.send(b"still served")
        await until(lambda: made[0].data == b"still served")
        made[0].transport.write(b"answer")
        peer.setblocking(False)
        assert await receive(peer, 6) == b"answer"
        peer.close()
        late.close()
        await made.all_lost()
        await server.wait_closed()
        assert len(made) == 1

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before 3.12 it did not wait")
def test_wait_closed_waits_for_the_connections(loop, run):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        with connect(server):
            await until(lambda: made)
            server.close()
            waiting = loop.create_task(server.wait_closed())
            await turns(5)
            assert not waiting.done()
            made[0].transport.abort()
            await waiting
            await made.all_lost()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in 3.13")
@pytest.mark.parametrize("call", ["close_clients", "abort_clients"])
def test_clients_of_a_server_are_ended_by_it(loop, run, call):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        peers = [connect(server) for _ in range(3)]
        await until(lambda: len(made) == 3)
        server.close()
        getattr(server, call)()
        await server.wait_closed()
        await made.all_lost()
        for peer in peers:
            assert peer.recv(1) == b""
            peer.close()

    run(main())


def test_listening_socket_of_the_caller_is_used_and_closed(loop, run):
    async def main():
        made = Made()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = await loop.create_server(made.factory, sock=listener)
            assert server.sockets[0].getsockname() == listener.getsockname()
            with connect(server) as peer:
                peer.send(b"x")
                await until(lambda: made and made[0].data)
            server.close()
            await server.wait_closed()
            assert listener.fileno() == -1
        await made.all_lost()

    run(main())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_socket_accepted_by_others_becomes_a_transport(loop, run, family):
    async def main():
        if family == socket.AF_INET:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                peer = socket.create_connection(listener.getsockname())
                sock = listener.accept()[0]
        else:
            sock, peer = socket.socketpair()
        with peer:
            peer.setblocking(False)
            transport, protocol = await loop.connect_accepted_socket(Recorder, sock)
            transport.write(b"hello")
            assert await receive(peer, 5) == b"hello"
            assert transport.get_extra_info("peername") == peer.getsockname()
            transport.close()
            await protocol.lost

    run(main())


def test_client_binds_to_its_local_address(loop, run):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        transport, protocol = await loop.create_connection(
            Recorder, *server.sockets[0].getsockname(), local_addr=("127.0.0.2", 0)
        )
        assert transport.get_extra_info("sockname")[0] == "127.0.0.2"
        await until(lambda: made and made[0].transport)
        assert made[0].transport.get_extra_info("peername")[0] == "127.0.0.2"
        transport.close()
        await protocol.lost
        await made.all_lost()
        server.close()
        await server.wait_closed()

    run(main())


def test_client_takes_the_address_that_answers(loop, run, monkeypatch):
    """Happy eyeballs: the first address refuses, the second one is there."""

    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def getaddrinfo(*args, **kwargs):
            kind = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
            return [
                (socket.AF_INET6, *kind, ("::1", port, 0, 0)),
                (socket.AF_INET, *kind, ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        transport, protocol = await loop.create_connection(
            Recorder, "two.test", port, happy_eyeballs_delay=0.01
        )
        assert transport.get_extra_info("peername") == ("127.0.0.1", port)
        transport.close()
        await protocol.lost
        await made.all_lost()
        server.close()
        await server.wait_closed()

    run(main())


def test_connect_that_is_refused_leaves_no_fd(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, *address)
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Recorder, f"/tmp/none-{os.getpid()}")

    run(main())


def test_connect_that_is_cancelled_leaves_no_fd(loop, run):
    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0)
        for steps in range(6):
            connecting = loop.create_task(
                loop.create_connection(Recorder, *server.sockets[0].getsockname())
            )
            await turns(steps)
            connecting.cancel()
            try:
                transport, protocol = await connecting
            except asyncio.CancelledError:
                continue
            transport.close()
            await protocol.lost
        await turns(5)
        server.close()
        await made.all_lost()
        await server.wait_closed()

    run(main())


def test_hundreds_at_once_are_each_served_once(loop, run):
    """More than the budget of one turn."""

    async def main():
        made = Made()
        server = await loop.create_server(made.factory, "127.0.0.1", 0, backlog=512)
        peers = [connect(server) for _ in range(200)]
        for number, peer in enumerate(peers):
            peer.send(b"%d" % number)
        await until(lambda: len(made) == 200 and all(each.data for each in made))
        assert sorted(int(each.data) for each in made) == list(range(200))
        for peer in peers:
            peer.close()
        await made.all_lost()
        server.close()
        await server.wait_closed()

    run(main())
