"""asyncio's stream transports: what is called when, and what they tell about themselves.

How they write is in test_transports_write.py, how they read in test_transports_read.py, what they
do when something fails in test_transports_faults.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import weakref

import pytest
from peers import RESET, until
from transports import (
    ORACLE,
    BufferedRecorder,
    Contextual,
    Recorder,
    attached,
    receive,
    tcp_pair,
    turns,
    var,
)

pytestmark = ORACLE


# ---- the order of things ----


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_callbacks_come_in_order_and_once_each(run, kind):
    async def main():
        protocol = kind()
        async with attached(protocol) as (transport, peer):
            assert protocol.calls == ["made"] and protocol.transport is transport
            peer.send(b"one")
            await until(lambda: protocol.data)
            peer.send(b"two")
            peer.shutdown(socket.SHUT_WR)
            assert await protocol.lost is None
            assert protocol.calls == ["made", b"one", b"two", "eof", "lost"]
            assert await receive(peer, 1) == b""
        await turns()
        assert protocol.calls[-2:] == ["eof", "lost"]

    run(main())


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_eof_received_returning_true_keeps_the_write_side(run, kind):
    async def main():
        protocol = kind(keep_open=True)
        async with attached(protocol) as (transport, peer):
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: "eof" in protocol.calls)
            await turns()
            assert not transport.is_closing()
            transport.write(b"still here")
            assert await receive(peer, 10) == b"still here"
            transport.close()
            assert await receive(peer, 1) == b"" and await protocol.lost is None
            assert protocol.calls == ["made", "eof", "lost"]

    run(main())


def test_connection_made_comes_before_create_connection_returns(loop, run):
    async def main():
        server_side = []

        class Told(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                server_side.append(self)

        server = await loop.create_server(Told, "127.0.0.1", 0)
        transport, protocol = await loop.create_connection(
            Recorder, *server.sockets[0].getsockname()
        )
        assert protocol.calls == ["made"] and protocol.transport is transport
        await until(lambda: server_side)
        transport.write(b"hello")
        await until(lambda: server_side[0].data == b"hello")
        transport.close()
        assert await protocol.lost is None and await server_side[0].lost is None
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("server_side", [False, True])
def test_ended_in_connection_made_is_made_and_lost(loop, run, end, server_side):
    class Brief(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"bye")
            getattr(transport, end)()
            getattr(transport, end)()
            assert transport.is_closing() and not transport.is_reading()

    async def main():
        mine, peer = tcp_pair()
        with peer:
            peer.setblocking(False)
            made = loop.connect_accepted_socket if server_side else loop.create_connection
            transport, protocol = await made(Brief, sock=mine)
            assert await protocol.lost is None
            assert protocol.calls == ["made", "lost"]
            if end == "close":
                assert await receive(peer, 4) == b"bye"
            assert transport.is_closing()

    run(main())


def test_closed_in_data_received_is_called_with_no_more(run):
    class Once(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.close()

    async def main():
        protocol = Once()
        async with attached(protocol) as (_, peer):
            peer.send(b"1")
            peer.shutdown(socket.SHUT_WR)
            assert await protocol.lost is None
            assert protocol.calls == ["made", b"1", "lost"]

    run(main())


def test_close_lets_what_is_queued_leave_first_and_delivers_nothing_more(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            data = os.urandom(3 << 20)
            transport.write(data)
            transport.close()
            assert transport.is_closing() and not transport.is_reading()
            await turns(5)
            assert not protocol.lost.done() and transport.get_write_buffer_size() > 0
            assert await receive(peer, len(data) + 1) == data
            assert await protocol.lost is None
            assert [call for call in protocol.calls if call != "pause"] in (
                ["made", "lost"],
                ["made", "resume", "lost"],
            )

    run(main())


def test_write_after_close_while_output_is_queued_leaves_too(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(3 << 20))
            transport.close()
            transport.write(b"the end")
            received = await receive(peer, (3 << 20) + 8)
            assert len(received) == (3 << 20) + 7 and received.endswith(b"the end")
            assert await protocol.lost is None

    run(main())


def test_abort_drops_what_is_queued(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(3 << 20))
            transport.abort()
            transport.abort()
            transport.close()
            assert not protocol.lost.done(), "never from within abort()"
            assert await protocol.lost is None and transport.get_write_buffer_size() == 0
            assert len(await receive(peer, 3 << 20)) < 3 << 20

    run(main())


def test_abort_ends_a_close_that_its_peer_holds_up(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            transport.write(bytes(3 << 20))
            transport.close()
            await turns(5)
            assert not protocol.lost.done()
            transport.abort()
            assert await protocol.lost is None

    run(main())


def test_close_while_paused_is_told(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.pause_reading()
            peer.send(b"unread")
            await turns()
            transport.close()
            assert await protocol.lost is None
            transport.resume_reading()
            assert protocol.calls == ["made", "lost"]

    run(main())


# ---- what they tell ----


def test_is_an_asyncio_transport_and_can_be_referred_to_weakly(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            assert isinstance(transport, asyncio.Transport)
            assert weakref.ref(transport)() is transport
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("socket").fileno() >= 0

    run(main())


ADDRESSES = {
    "ipv4": (lambda: tcp_pair(socket.AF_INET)),
    "ipv6": (lambda: tcp_pair(socket.AF_INET6)),
    "unix": socket.socketpair,
}


@pytest.mark.parametrize("family", ADDRESSES)
@pytest.mark.parametrize("end", ["close", "reset"])
def test_extra_info_stays_after_the_end(run, family, end):
    class Asks(Recorder):
        def connection_lost(self, exc):
            self.told = [self.transport.get_extra_info(name) for name in ("sockname", "peername")]
            super().connection_lost(exc)

    async def main():
        sockets = ADDRESSES[family]()
        names = [sockets[0].getsockname(), sockets[0].getpeername()]
        protocol = Asks()
        async with attached(protocol, sockets) as (transport, peer):
            sock = transport.get_extra_info("socket")
            assert sock.getsockname() == names[0] and sock.family == sockets[0].family
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if end == "close":
                transport.close()
            else:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                peer.close()
            await protocol.lost
        assert protocol.told == names
        assert [transport.get_extra_info(name) for name in ("sockname", "peername")] == names
        assert transport.get_extra_info("socket").fileno() == -1
        assert transport.get_extra_info("sslcontext") is None
        assert transport.get_extra_info("no such", 5) == 5

    run(main())


def test_extra_info_of_accepted_connections_names_the_client(loop, run, tmp_path):
    async def exchange(make_server, connect):
        accepted = []
        server = await make_server(lambda: accepted.append(Recorder()) or accepted[-1])
        here, protocol = await connect(server.sockets[0].getsockname())
        await until(lambda: accepted and accepted[0].transport)
        there = accepted[0].transport
        names = [here.get_extra_info(name) for name in ("sockname", "peername")]
        assert [there.get_extra_info(name) for name in ("peername", "sockname")] == names
        assert there.get_extra_info("peername") == names[0], "also when asked twice"
        here.close()
        await asyncio.gather(protocol.lost, accepted[0].lost)
        server.close()
        await server.wait_closed()
        return names

    async def main():
        for host in ("127.0.0.1", "::1"):
            names = await exchange(
                lambda factory, host=host: loop.create_server(factory, host, 0),
                lambda name: loop.create_connection(Recorder, *name[:2]),
            )
            assert names[0][0] == host and len(names[0]) == (2 if host == "127.0.0.1" else 4)
        for path in (str(tmp_path / "sock"), f"\0{tmp_path}"):
            names = await exchange(
                lambda factory, path=path: loop.create_unix_server(factory, path),
                lambda name: loop.create_unix_connection(Recorder, name),
            )
            assert names[0] == "" and os.fsencode(names[1]) == os.fsencode(path)

    run(main())


def test_addresses_are_those_of_asyncio(loop, run):
    """An abstract name is bytes, an unnamed one ""."""

    async def main():
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(b"\0pyloop-test-%d" % os.getpid())
            name = client.getsockname()
            client.setblocking(False)
            accepted = []
            server = await loop.create_unix_server(
                lambda: accepted.append(Recorder()) or accepted[-1], f"\0pyloop-to-{os.getpid()}"
            )
            await loop.sock_connect(client, server.sockets[0].getsockname())
            await until(lambda: accepted and accepted[0].transport)
            assert accepted[0].transport.get_extra_info("peername") == name
            assert type(name) is bytes
        await accepted[0].lost
        server.close()
        await server.wait_closed()

    run(main())


# ---- contexts ----


def test_server_protocols_are_called_in_the_context_of_create_servers_caller(loop, run):
    async def main():
        values, accepted = [], []
        var.set("caller")

        def factory():
            values.append(("factory", var.get()))
            accepted.append(Contextual(values))
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        var.set("later")
        transport, protocol = await loop.create_connection(
            Recorder, *server.sockets[0].getsockname()
        )
        transport.write(b"data")
        transport.write_eof()
        await until(lambda: accepted and accepted[0].lost.done())
        await protocol.lost
        assert dict(values) == dict.fromkeys(["factory", "made", "data", "eof", "lost"], "caller")
        server.close()
        await server.wait_closed()

    run(main())


# ---- whose fd it is ----


def test_fd_of_a_transport_is_for_no_reader_or_writer(loop, run):
    async def main():
        mine, peer = socket.socketpair()
        protocol = Recorder()
        async with attached(protocol, (mine, peer)) as (transport, _):
            used = f"File descriptor .* is used by transport .*fd={mine.fileno()}"
            for fd in (mine, mine.fileno()):
                for call in (loop.add_reader, loop.add_writer):
                    with pytest.raises(RuntimeError, match=used):
                        call(fd, print)
                for call in (loop.remove_reader, loop.remove_writer):
                    with pytest.raises(RuntimeError, match=used):
                        call(fd)
            peer.send(b"unharmed")
            await until(lambda: protocol.data == b"unharmed")
            assert not transport.is_closing()
            peer.send(b"-")
            await until(lambda: protocol.data == b"unharmed-")

    run(main())
