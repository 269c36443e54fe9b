"""Handlers that raise: logged with the address, that connection aborted, the others unharmed."""

from __future__ import annotations

import asyncio
import socket

import pytest
from peers import answer, deaf_peer, peer_of, read_all, until

import pyloop

BIG = bytes(4 << 20)


class Faulty(pyloop.Protocol):
    """Raise `error` in the callback named `place`, when the peer asked for it."""

    place = "none"
    error: BaseException = LookupError("a fault")
    called: set
    lost: list

    def at(self, name):
        self.called.add(name)
        if name == self.place and self.conn.state != "good":
            raise self.error

    def connection_made(self, conn):
        self.conn = conn
        if conn.server.peers_made:
            conn.state = "good"
        conn.server.peers_made.append(conn)
        self.at("connection_made")

    def message_received(self, message):
        if message == b"flood":
            self.conn.write(BIG)
        elif message == b"abort":
            self.conn.abort()
        else:
            self.at("message_received")
            self.conn.send(message)

    def eof_received(self):
        self.at("eof_received")

    def connection_lost(self, exc):
        self.lost.append((self.conn.peername, exc))
        self.at("connection_lost")

    def pause_writing(self):
        self.at("pause_writing")

    def resume_writing(self):
        self.at("resume_writing")


def faulty(place, error=None):
    members = {"place": place, "called": set(), "lost": []}
    if error is not None:
        members["error"] = error
    return type("Faulty", (Faulty,), members)


class FaultyServer(pyloop.Server):
    def __init__(self, handler):
        super().__init__(handler, framing=pyloop.Lines())
        self.peers_made = []


async def provoke(server, place, loop):
    """Make the first peer of `server` reach the callback; return its address."""
    with deaf_peer(server) as sock:
        address = sock.getsockname()
        if place == "message_received":
            await loop.sock_sendall(sock, b"hello\n")
        elif place == "eof_received":
            sock.shutdown(1)
        elif place == "connection_lost":
            await loop.sock_sendall(sock, b"abort\n")
        elif place != "connection_made":
            await loop.sock_sendall(sock, b"flood\n")
        try:
            await read_all(sock)
        except ConnectionResetError:
            pass
        else:
            assert place == "connection_lost", "expected a reset"
        return address


PLACES = [
    "connection_made",
    "message_received",
    "eof_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
]


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
@pytest.mark.parametrize("place", PLACES)
def test_callback_that_raises_is_logged_and_aborts_its_connection_only(run, caplog, place, error):
    kind = faulty(place, error("a fault"))

    async def main():
        loop = asyncio.get_running_loop()
        async with FaultyServer(kind) as server:
            address = await provoke(server, place, loop)
            async with peer_of(server) as good:
                assert await answer(good, b"still here\n") == b"still here\n"
                await until(lambda: len(server.connections) == 1)
            records = [entry for entry in caplog.records if entry.name == "pyloop"]
            assert ["{}:{}".format(*address) in entry.getMessage() for entry in records] == [True]
            assert records[0].exc_info[1] is kind.error
            first = [exc for peername, exc in kind.lost if peername == address]
            if place == "connection_lost":
                assert isinstance(first[0], ConnectionAbortedError)
            else:
                assert first == [kind.error]

    run(main())


def test_message_handler_that_raises_drops_what_follows_of_that_connection(run, caplog):
    async def main():
        seen = []

        def handler(conn, message):
            seen.append(message)
            if message == b"bad":
                raise LookupError("bad")

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (reader, writer):
                writer.write(b"a\nbad\nb\nc\n")
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert seen == [b"a", b"bad"]
            assert server.stats().aborts == 1

    run(main())


# ---- SystemExit and KeyboardInterrupt ----


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt()])
def test_exit_from_a_handler_leaves_run(backend, error):
    def handler(conn, message):
        raise error

    with socket.socket() as peer:

        def on_start(server):
            peer.connect(("127.0.0.1", server.port))  # the backlog takes it
            peer.send(b"x")

        server = pyloop.Server(handler, on_start=on_start)
        with pytest.raises(type(error)) as info:
            pyloop.run(server, backend=backend)
        assert info.value is error
        assert server.sockets == ()


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt()])
def test_exit_from_a_coroutine_handler_leaves_run(backend, error):
    async def handler(conn):
        await conn.receive()
        raise error

    with socket.socket() as peer:

        def on_start(server):
            peer.connect(("127.0.0.1", server.port))
            peer.send(b"x")

        with pytest.raises(type(error)):
            pyloop.run(pyloop.Server(handler, on_start=on_start, drain_timeout=0), backend=backend)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_conversation_that_exits_ends_its_connection(loop, error):
    async def handler(conn):
        await conn.receive()
        raise error

    async def visit(server):
        async with peer_of(server) as (reader, writer):
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()

    server = pyloop.Server(handler, drain_timeout=0)
    loop.run_until_complete(server.start())
    task = loop.create_task(visit(server))
    with pytest.raises(error):
        loop.run_until_complete(task)
    try:
        loop.run_until_complete(asyncio.wait_for(task, 5))
    finally:
        loop.run_until_complete(server.stop())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_events_behind_an_exit_are_delivered_when_the_loop_runs_on(loop, error):
    got = []

    def handler(conn, message):
        if message == b"exit":
            raise error
        got.append(message)
        conn.send(message)

    server = pyloop.Server(handler, framing=pyloop.Lines())
    loop.run_until_complete(server.start())
    peers = [
        loop.run_until_complete(asyncio.open_connection("127.0.0.1", server.port)) for _ in range(5)
    ]
    for number, (_, writer) in enumerate(peers):
        writer.write(b"%d\nexit\n%d\n" % (number, number))
    exits = 0

    async def all_answered():
        for number, (reader, _) in enumerate(peers):
            assert await reader.readexactly(4) == b"%d\n%d\n" % (number, number)

    task = loop.create_task(all_answered())
    while not task.done():
        try:
            loop.run_until_complete(task)
        except error:
            exits += 1
    assert exits == 5
    assert sorted(got) == sorted(b"%d" % number for number in range(5) for _ in range(2))
    for _, writer in peers:
        writer.transport.abort()
    loop.run_until_complete(server.stop())


@pytest.mark.parametrize("place", PLACES)
def test_loop_runs_on_after_an_interrupt_in_each_callback(loop, place):
    kind = faulty(place, KeyboardInterrupt("from " + place))
    server = FaultyServer(kind)
    loop.run_until_complete(server.start())
    task = loop.create_task(visit(server, kind))
    interrupts = 0
    while not task.done():
        try:
            loop.run_until_complete(asyncio.wait_for(asyncio.shield(task), 20))
        except KeyboardInterrupt:
            interrupts += 1
    task.result()
    assert interrupts == 1
    loop.run_until_complete(asyncio.wait_for(server.stop(), 5))
    assert len(server.connections) == 0
    assert len(kind.lost) == len(server.peers_made)


async def visit(server, kind):
    """Provoke the callback and leave; then be served as before."""
    loop, place = asyncio.get_running_loop(), kind.place
    with deaf_peer(server) as sock:
        if place == "connection_lost":
            await loop.sock_sendall(sock, b"abort\n")
        elif place in ("pause_writing", "resume_writing"):
            await loop.sock_sendall(sock, b"flood\n")
            while place not in kind.called:  # a connection that is closing is told no more
                await loop.sock_recv(sock, 1 << 16)
        elif place != "connection_made":
            await loop.sock_sendall(sock, b"hello\n")
        sock.shutdown(1)
        try:
            await read_all(sock)
        except OSError:
            pass
    async with peer_of(server) as good:
        assert await answer(good, b"still here\n") == b"still here\n"
