"""asyncio's stream transports when a protocol, a peer or an fd fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
from peers import RESET, until
from transports import BufferedRecorder, Made, Recorder, attached, fill, receive, tcp_pair, turns


class Reports:
    """What the loop's exception handler was told."""

    def __init__(self, loop):
        self.contexts = []
        loop.set_exception_handler(lambda _, context: self.contexts.append(context))

    @property
    def messages(self):
        return [context["message"] for context in self.contexts]


def raiser(kind, method, error):
    """A protocol whose `method` raises `error()`, after the recorder's own has been called."""

    def fail(self, *args):
        getattr(super(cls, self), method)(*args)
        raise error()

    cls = type("Raises", (kind,), {method: fail})
    return cls


# ---- exceptions out of callbacks ----

ENDS = {  # method: message, whether it ends the connection
    "data_received": "Fatal error: protocol.data_received() call failed.",
    "eof_received": "Fatal error: protocol.eof_received() call failed.",
    "get_buffer": "Fatal error: protocol.get_buffer() call failed.",
    "buffer_updated": "Fatal error: protocol.buffer_updated() call failed.",
}


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
@pytest.mark.parametrize("method", ENDS)
def test_exception_in_a_reading_callback_ends_that_connection_only(loop, run, method, error):
    reports = Reports(loop)
    kind = BufferedRecorder if method in ("get_buffer", "buffer_updated") else Recorder

    async def main():
        bad, good = raiser(kind, method, error)(), kind()
        async with attached(bad) as (transport, one), attached(good) as (_, two):
            for peer in (one, two):
                peer.send(b"data")
                peer.shutdown(socket.SHUT_WR)
            assert type(await bad.lost) is error and await good.lost is None
            assert bad.calls.count("lost") == 1
            assert good.calls == ["made", b"data", "eof", "lost"]
        assert reports.messages == [ENDS[method]]
        assert reports.contexts[0]["transport"] is transport
        assert reports.contexts[0]["protocol"] is bad

    run(main())


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing", "connection_lost"])
def test_exception_in_another_callback_is_reported_and_changes_nothing(loop, run, method):
    reports = Reports(loop)

    async def main():
        protocol = raiser(Recorder, method, ValueError)()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(3 << 20))
            await receive(peer, 3 << 20)
            await until(lambda: "resume" in protocol.calls)
            peer.send(b"data")
            await until(lambda: protocol.data == b"data")
            transport.close()
            await protocol.lost
            assert protocol.calls == ["made", "pause", "resume", b"data", "lost"]
        assert len(reports.contexts) == 1 and type(reports.contexts[0]["exception"]) is ValueError
        assert method in reports.messages[0]
        assert transport.get_extra_info("socket").fileno() == -1

    run(main())


@pytest.mark.parametrize("server_side", [False, True])
def test_exception_in_connection_made_is_reported(loop, run, server_side):
    reports, bad = Reports(loop), []

    async def main():
        kind = raiser(Recorder, "connection_made", ValueError)
        server = await loop.create_server(
            lambda: bad.append((kind if server_side else Recorder)()) or bad[-1], "127.0.0.1", 0
        )
        transport, protocol = await loop.create_connection(
            Recorder if server_side else kind, *server.sockets[0].getsockname()
        )
        await until(lambda: reports.contexts and bad)
        transport.write(b"still served")
        await until(lambda: bad[0].data == b"still served")
        transport.close()
        await protocol.lost
        await bad[0].lost
        server.close()
        await server.wait_closed()
        assert len(reports.contexts) == 1
        assert "connection_made" in reports.messages[0]

    run(main())


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_exception_in_the_servers_factory_costs_that_connection_only(loop, run, error):
    reports, made = Reports(loop), []

    def factory():
        made.append(Recorder())
        if len(made) == 2:
            raise error()
        return made[-1]

    async def main():
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        peers = [socket.create_connection(address) for _ in range(3)]
        for peer in peers:
            peer.settimeout(0)
            await loop.sock_sendall(peer, b"hello")
        with contextlib.suppress(ConnectionResetError):  # it had not read what came
            assert await loop.sock_recv(peers[1], 1) == b""
        await until(lambda: made[0].data == made[2].data == b"hello")
        assert reports.messages == ["Error on transport creation for incoming connection"]
        for peer in peers:
            peer.close()
        await made[0].lost
        await made[2].lost
        server.close()
        await server.wait_closed()

    run(main())


def test_exception_in_the_clients_factory_goes_to_the_caller(loop, run):
    async def main():
        mine, peer = socket.socketpair()
        with mine, peer:
            with pytest.raises(ZeroDivisionError):
                await loop.create_connection(lambda: 1 / 0, sock=mine)

    run(main())


STOPS = ["data_received", "eof_received", "buffer_updated", "get_buffer", "connection_lost"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", STOPS)
def test_interrupt_in_a_callback_leaves_the_loop_and_loses_nothing_of_others(loop, method, error):
    kind = BufferedRecorder if method in ("buffer_updated", "get_buffer") else Recorder
    armed = []

    def fail(self, *args):
        result = getattr(super(Stops, self), method)(*args)
        if armed and armed.pop():
            raise error()
        return result

    Stops = type("Stops", (kind,), {method: fail})

    async def begin():
        pairs = [socket.socketpair() for _ in range(5)]
        made = [await loop.create_connection(Stops, sock=mine) for mine, _ in pairs]
        return [protocol for _, protocol in made], [peer for _, peer in pairs]

    protocols, peers = loop.run_until_complete(begin())
    for peer in peers:
        peer.send(b"data")
        peer.shutdown(socket.SHUT_WR)
    armed += [False, False, True]
    with pytest.raises(error):
        loop.run_forever()
    everybody = asyncio.gather(*(protocol.lost for protocol in protocols))
    loop.run_until_complete(everybody)
    for protocol in protocols:
        assert protocol.data == b"data" and protocol.calls.count("lost") == 1
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["factory", "connection_made"])
def test_interrupt_while_accepting_leaves_the_loop_and_loses_nothing_of_others(loop, where, error):
    made, armed = [], [False, True, False]

    class Accepted(Recorder):
        def __init__(self):
            made.append(self)
            super().__init__()
            if where == "factory" and armed and armed.pop():
                raise error()

        def connection_made(self, transport):
            super().connection_made(transport)
            if where == "connection_made" and armed and armed.pop():
                raise error()

    server = loop.run_until_complete(loop.create_server(Accepted, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    peers = [socket.create_connection(address) for _ in range(4)]
    for peer in peers:
        peer.sendall(b"data")
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(until(lambda: len(made) == 4))
    lost = {id(made[1])} if where == "factory" else set()
    kept = [each for each in made if id(each) not in lost]
    loop.run_until_complete(until(lambda: all(each.data == b"data" for each in kept)))
    for peer in peers:
        peer.close()
    loop.run_until_complete(asyncio.gather(*(each.lost for each in kept)))
    server.close()
    loop.run_until_complete(server.wait_closed())


def test_server_closed_by_its_first_connection_resets_the_others_of_that_turn(loop, run):
    reports = Reports(loop)

    async def main():
        made = Made()

        def factory():
            server.close()
            return made.factory()

        server = await loop.create_server(factory, "127.0.0.1", 0)
        peers = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(5)]
        for peer in peers:
            peer.setblocking(False)
        ended = 0
        for peer in peers:
            with contextlib.suppress(ConnectionResetError):
                assert await loop.sock_recv(peer, 1) == b""
            ended += 1
        assert ended == 5
        for peer in peers:
            peer.close()
        assert [protocol.calls for protocol in made] == [[]]
        assert reports.messages == ["Error on transport creation for incoming connection"]

    run(main())


# ---- peers ----


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_reset_while_idle_is_told_as_such(run, kind):
    async def main():
        protocol = kind()
        async with attached(protocol, tcp_pair()) as (_, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            assert isinstance(await protocol.lost, ConnectionResetError)
            assert protocol.calls == ["made", "lost"]

    run(main())


@pytest.mark.parametrize("closing", [False, True])
def test_reset_while_writing_is_told_once_and_drops_the_rest(run, closing):
    async def main():
        protocol = Recorder()
        async with attached(protocol, tcp_pair()) as (transport, peer):
            fill(transport, protocol)
            if closing:
                transport.close()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            exc = await protocol.lost
            assert isinstance(exc, (ConnectionResetError, BrokenPipeError))
            assert protocol.calls in (
                ["made", "pause", "lost"],
                ["made", "pause", "resume", "lost"],
            )
            assert transport.get_write_buffer_size() == 0

    run(main())


def test_peer_that_never_reads_holds_what_was_written_and_no_more(loop, run):
    """asyncio has no limit but the protocol's: it is paused, and the loop waits without turning."""

    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            fill(transport, protocol)
            size = transport.get_write_buffer_size()
            await turns()
            before = loop.stats().ticks
            await asyncio.sleep(0.05)
            assert loop.stats().ticks - before < 10
            assert transport.get_write_buffer_size() == size < 1 << 20

    run(main())


# ---- fds ----


def test_fd_that_others_closed_is_lost_and_never_closed_again(loop, run, backend):
    async def main():
        protocol = Recorder()
        mine, peer = socket.socketpair()
        async with attached(protocol, (mine, peer)) as (transport, _):
            fd = mine.fileno()
            os.close(fd)
            if backend == "epoll":  # which forgets a closed fd in silence
                transport.abort()
            await protocol.lost
            again = os.open("/dev/null", os.O_RDONLY)
            assert again == fd, "nobody else took the number"
            os.close(again)

    run(main())


def test_number_of_an_fd_that_others_closed_serves_a_new_connection(loop, run):
    """accept gives it to a new connection, which the loss of the old one does not harm."""

    async def main():
        made = []
        server = await loop.create_server(
            lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        old, protocol = socket.socketpair(), Recorder()
        client = socket.socket()
        client.setblocking(False)
        await loop.create_connection(lambda: protocol, sock=old[0])
        os.close(old[0].fileno())
        await loop.sock_connect(client, address)
        await until(lambda: made and made[0].transport)
        await protocol.lost
        await loop.sock_sendall(client, b"hello")
        await until(lambda: made[0].data == b"hello")
        old[1].close()
        client.close()
        await made[0].lost
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("backend", ["select"], indirect=True)
def test_fd_beyond_select_is_refused_with_what_to_do(loop, run, backend):
    reports = Reports(loop)

    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname())
        filler = [os.open("/dev/null", os.O_RDONLY)]
        try:
            while filler[-1] < 1024:
                filler.append(os.dup(filler[0]))
            peer.setblocking(False)
            await until(lambda: reports.contexts)
            high, other = socket.socketpair()
            with high, other, pytest.raises(ValueError, match="limit of backend"):
                await loop.create_connection(Recorder, sock=high)
        finally:
            for fd in filler:
                os.close(fd)
        assert await loop.sock_recv(peer, 1) == b""
        peer.close()
        server.close()
        await server.wait_closed()

    run(main())
    assert 'use backend="auto"' in str(reports.contexts[0]["exception"])
