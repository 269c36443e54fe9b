"""Stopping in good order: what has arrived is served, what was sent arrives, nobody is reset."""

from __future__ import annotations

import asyncio

import pytest
from peers import Serving, answer, deaf_peer, exchange, peer_of, read_all, reset, until

import pyloop

TEXT = bytes(range(256)) * 782  # 200,192 bytes


def test_idle_connections_get_end_of_stream_at_once(run):
    async def main():
        async with Serving(drain_timeout=60) as serving:
            first, second = peer_of(serving.server), peer_of(serving.server)
            async with first as (reader1, w1), second as (r2, w2):
                conns = [await serving.conn(), await serving.conn()]
                stopping = asyncio.create_task(serving.server.stop())
                assert (await reader1.read(), await r2.read()) == (b"", b"")
                w1.close()
                w2.close()
                await stopping
                assert [await conn.state.lost for conn in conns] == [None, None]

    run(main())


def test_complete_messages_are_served_before_end_of_stream(run):
    async def main():
        def shout(conn, line):
            conn.send(line.upper())

        server = pyloop.Server(shout, framing=pyloop.Lines())
        await server.start()
        async with peer_of(server) as (reader, writer):
            await answer((reader, writer), b"first\n")
            writer.write(b"one\ntwo\nunfinis")  # in the kernel before stop looks
            await server.stop()
            assert await reader.read() == b"ONE\nTWO\n"

    run(main())


def test_connection_still_in_the_batch_is_served_too(run):
    """More messages than one budget: all that the last receive took is delivered."""
    lines = b"".join(b"%d\n" % number for number in range(8_000))

    async def main():
        got = []

        def handler(conn, line):
            got.append(line)
            if len(got) == 1:
                stops.append(asyncio.get_running_loop().create_task(server.stop()))

        stops = []
        server = pyloop.Server(handler, framing=pyloop.Lines())
        await server.start()
        async with peer_of(server) as (reader, writer):
            writer.write(lines)
            assert await reader.read() == b""
        await stops[0]
        assert got == lines.split(b"\n")[: len(got)]
        assert len(got) >= 4096

    run(main())


class EchoAtEnd(pyloop.Protocol):
    """Answer at end of stream with more than one send takes."""

    def connection_made(self, conn):
        self.conn = conn

    def eof_received(self):
        self.conn.write(TEXT)
        self.conn.pause_reading()


def test_linger_lets_all_arrive_at_a_peer_with_unread_input_here(run):
    """close() with unread input resets the peer and destroys what was sent: pyloop lingers."""

    async def main():
        async with Serving(linger=30) as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.pause_reading()
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, bytes(30_000))  # never read here
                conn.write(TEXT)
                conn.close()
                assert await read_all(sock) == TEXT
            assert await conn.state.lost is None

    run(main())


def test_stop_lets_all_arrive_at_a_peer_with_unread_input_here(run):
    async def main():
        server = pyloop.Server(EchoAtEnd, linger=30)
        await server.start()
        with deaf_peer(server) as sock:
            await until(lambda: server.connections)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, bytes(1000))
            stopping = asyncio.create_task(server.stop())
            reading = asyncio.create_task(read_all(sock))
            await until(lambda: server.stats().messages_out)
            await loop.sock_sendall(sock, bytes(1000))  # arrives after the last receive
            assert await reading == TEXT
            sock.close()
            await stopping

    run(main())


def test_linger_ends_by_itself_when_the_peer_never_closes(run):
    async def main():
        async with Serving(linger=0.05) as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.close()
            assert await reader.read() == b""
            assert await conn.state.lost is None

    run(main())


def test_linger_zero_closes_without_waiting(run):
    async def main():
        async with Serving(linger=0) as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.send(b"bye")
            conn.close()
            assert await conn.state.lost is None
            assert await reader.read() == b"bye"

    run(main())


def test_peer_that_resets_while_lingering_is_no_error(run):
    async def main():
        async with Serving(linger=30) as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.close()
            await reader.read()
            reset(writer)
            assert await conn.state.lost is None

    run(main())


# ---- drain_timeout ----


def test_conversation_over_drain_timeout_is_cancelled_and_aborted(run):
    async def main():
        outcome = []

        async def handler(conn):
            conn.send(b"busy")
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise

        server = pyloop.Server(handler, drain_timeout=0.05)
        await server.start()
        async with peer_of(server) as (reader, _):
            await reader.readexactly(4)
            await server.stop()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert outcome == ["cancelled"]
        assert server.stats().aborts == 1

    run(main())


def test_protocol_over_drain_timeout_is_lost_by_connection_aborted(run):
    async def main():
        async with Serving(drain_timeout=0.05) as serving:
            with deaf_peer(serving.server):
                conn = await serving.conn()
                conn.write(bytes(8 << 20))  # never taken
                await serving.server.stop()
                assert type(await conn.state.lost) is ConnectionAbortedError

    run(main())


def test_conversation_has_until_drain_timeout_to_finish(run):
    async def main():
        finish = asyncio.Event()

        async def handler(conn):
            async for _ in conn:
                pass
            await finish.wait()
            conn.send(b"finished")

        server = pyloop.Server(handler, drain_timeout=60)
        await server.start()
        async with peer_of(server) as (reader, writer):
            await until(lambda: server.connections)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server.sockets == ())
            finish.set()
            assert await reader.read() == b"finished"
            writer.close()
            await stopping

    run(main())


def test_abort_during_stop_ends_it_at_once(run):
    async def main():
        async def handler(conn):
            await asyncio.get_running_loop().create_future()

        server = pyloop.Server(handler, drain_timeout=60)
        await server.start()
        async with peer_of(server) as (reader, _):
            await until(lambda: server.connections)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server.sockets == ())
            server.abort()
            await stopping
            with pytest.raises(ConnectionResetError):
                await reader.read()

    run(main())


def test_no_new_connection_is_accepted_while_stopping(run):
    async def main():
        finish = asyncio.Event()

        async def handler(conn):
            await finish.wait()

        server = pyloop.Server(handler, drain_timeout=60)
        await server.start()
        port = server.port
        async with peer_of(server) as (reader, writer):
            await until(lambda: server.connections)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server.sockets == ())
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            assert server.stats().accepted == 1
            finish.set()
            await reader.read()
            writer.close()
            await stopping

    run(main())


def test_stop_from_a_handler_does_not_wait_for_itself(run):
    async def main():
        async def handler(conn):
            await conn.receive()
            stops.append(asyncio.create_task(server.stop()))
            conn.send(b"stopping")

        stops = []
        server = pyloop.Server(handler)
        await server.start()
        assert await exchange(server, b"x") == b"stopping"
        await stops[0]
        assert server.port is None

    run(main())


async def converse(conn):
    async for message in conn:
        await stop_here(conn, message)


async def stop_here(conn, message):
    try:
        await conn.server.stop()
    except RuntimeError as exc:
        conn.send(str(exc).encode())


@pytest.mark.parametrize("handler", [converse, stop_here])
def test_stop_awaited_in_a_handler_of_its_own_says_what_to_do(run, handler):
    async def main():
        stopped = []
        server = pyloop.Server(
            handler, framing=pyloop.Lines(), drain_timeout=0.05, on_stop=stopped.append
        )
        async with server, peer_of(server) as (reader, writer):
            for _ in range(2):
                writer.write(b"stop\n")
                line = await reader.readline()
                assert b"asyncio.create_task(server.stop())" in line
            assert stopped == [] and server.sockets
        assert stopped == [server]

    run(main())


@pytest.mark.parametrize("kind", ["function", "conversation", "per message"])
def test_stop_as_a_task_from_a_handler_stops_in_good_order(run, kind):
    async def main():
        stops = []

        def function(conn, message):
            stops.append(asyncio.create_task(conn.server.stop()))
            conn.send(b"stopping")

        async def conversation(conn):
            async for message in conn:
                function(conn, message)

        async def per_message(conn, message):
            function(conn, message)

        handlers = {"function": function, "conversation": conversation, "per message": per_message}
        server = pyloop.Server(handlers[kind], framing=pyloop.Lines(), drain_timeout=60)
        await server.start()
        async with peer_of(server) as (reader, writer):
            writer.write(b"stop\n")
            assert await reader.read() == b"stopping\n"
            writer.close()
            await stops[0]
        assert server.port is None and server.stats().aborts == 0

    run(main())


def test_handler_may_await_the_stop_of_another_server(run):
    async def main():
        def echo(conn, message):
            conn.send(message)

        async def stop_other(conn):
            await other.stop()
            conn.send(b"stopped")

        other = pyloop.Server(echo)
        await other.start()
        async with pyloop.Server(stop_other) as server:
            assert await exchange(server, b"") == b"stopped"
            assert other.sockets == ()

    run(main())


def test_connection_accepted_but_unserved_gets_its_answer_or_a_clean_end(run):
    """Connections of the last batch are not reset by stop."""

    async def main():
        def echo(conn, message):
            conn.send(message)

        server = pyloop.Server(echo, framing=pyloop.Lines())
        await server.start()
        async with peer_of(server) as (reader, writer):
            writer.write(b"hello\n")
            await until(lambda: server.stats().accepted)
            await server.stop()
            assert await reader.read() in (b"hello\n", b"")

    run(main())
