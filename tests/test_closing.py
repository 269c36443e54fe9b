"""The end of a connection: close, abort, and what it does afterwards."""

from __future__ import annotations

import asyncio

import pytest
from peers import Serving, answer, deaf_peer, exchange, peer_of, read_all, reset, until

import pyloop

# ---- ending ----


def test_close_flushes_and_the_peer_reads_to_the_end(run):
    big = bytes(range(256)) * 20_000

    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.send(big)
            conn.close()
            assert conn.is_closing
            assert await reader.read() == big
            writer.close()
            assert await conn.state.lost is None

    run(main())


def test_close_twice_and_abort_after_the_end_are_nothing(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.close()
            conn.close()
            await reader.read()
            await until(lambda: conn.state.lost.done() or conn.close())
            conn.close()
            conn.abort()
            conn.pause_reading()
            conn.resume_reading()
            assert conn.buffered == 0

    run(main())


def test_abort_resets_the_peer_and_is_connection_aborted(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.abort()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert type(await conn.state.lost) is ConnectionAbortedError
            assert serving.server.stats().aborts == 1

    run(main())


def test_abort_drops_queued_output(run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(bytes(8_000_000))
                assert conn.buffered > 0
                conn.abort()
                with pytest.raises(ConnectionResetError):
                    await read_all(sock)
            assert conn.buffered == 0

    run(main())


def test_messages_behind_a_close_are_dropped(run):
    async def main():
        seen = []

        def handler(conn, message):
            seen.append(message)
            conn.send(b"one is enough")
            conn.close()

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"1\n2\n3\n") == b"one is enough\n"
        assert seen == [b"1"]

    run(main())


def test_close_of_another_connection_in_the_same_batch_drops_its_messages(run):
    async def main():
        conns, seen = [], []

        def handler(conn, message):
            seen.append(message)
            if message.startswith(b"hello"):
                conns.append(conn)
                conn.send(message)
            elif len(seen) == 3:  # the first of the batch closes the other
                next(other for other in conns if other is not conn).close()

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as a, peer_of(server) as b:
                for peer in (a, b):
                    await answer(peer, b"hello\n")
                for _, writer in (a, b):
                    writer.get_extra_info("socket")
                    writer.write(b"one\ntwo\n")  # both are there before the loop waits again
                await asyncio.wait(
                    [asyncio.create_task(peer[0].read()) for peer in (a, b)],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                await until(lambda: len(seen) >= 4)
        assert seen == [b"hello", b"hello", b"one", b"two"]

    run(main())


def test_close_by_another_handler_flushes_what_was_sent_to_a_conversation(run, caplog):
    async def main():
        conns = {}

        async def handler(conn):
            async for name in conn:
                conns[name] = conn
                if name == b"kick":
                    conns[b"victim"].send(b"bye")
                    conns[b"victim"].close()
                else:
                    conn.send(b"in")

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as victim, peer_of(server) as (_, kicker):
                await answer(victim, b"victim\n", 3)
                kicker.write(b"kick\n")
                assert await victim[0].read() == b"bye\n"
        assert caplog.records == []

    run(main())


def test_wait_closed_returns_when_all_is_out(run):
    async def main():
        async with Serving(linger=30) as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.send(bytes(3_000_000))
            conn.close()
            waiting = [asyncio.create_task(conn.wait_closed()) for _ in range(2)]
            assert len(await reader.read()) == 3_000_000
            assert not any(task.done() for task in waiting)
            writer.close()
            await asyncio.gather(*waiting)
            assert conn.state.lost.done()
            await conn.wait_closed()

    run(main())


# ---- after the end ----


def test_send_on_a_closing_or_lost_connection_is_dropped_and_counted(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.close()
            conn.send(b"x")
            conn.write(b"x")
            assert serving.server.stats().dropped == 2
            assert await reader.read() == b""
            writer.close()
            await conn.state.lost
            conn.send(b"x")
            conn.write(b"x")
            assert serving.server.stats().dropped == 4

    run(main())


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_drain_after_the_end_raises_connection_closed(run, how):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (_, writer):
            conn = await serving.conn()
            if how == "reset":
                reset(writer)
            else:
                getattr(conn, how)()
                with pytest.raises(pyloop.ConnectionClosed, match="drain: the connection to 127"):
                    await conn.drain()
                writer.close()
            await conn.state.lost
            with pytest.raises(pyloop.ConnectionClosed):
                await conn.drain()

    run(main())


def test_receive_after_close_raises_connection_closed_also_when_lost(run):
    async def main():
        outcome = asyncio.get_running_loop().create_future()

        async def handler(conn):
            errors = []
            conn.close()
            for _ in range(2):
                try:
                    errors.append(await conn.receive())
                except pyloop.ConnectionClosed as exc:
                    errors.append(str(exc))
                await conn.wait_closed()
            outcome.set_result((errors, conn.peername))

        async with pyloop.Server(handler) as server:
            assert await exchange(server, b"") == b""
            errors, _ = await outcome
            assert ["receive: the connection to" in str(error) for error in errors] == [True] * 2

    run(main())


@pytest.mark.parametrize("turns", [0, 3])
def test_receive_after_abort_raises_connection_closed(run, turns):
    """Messages that came before it are dropped, as after close()."""

    async def main():
        outcome = asyncio.get_running_loop().create_future()

        async def handler(conn):
            assert await conn.receive() == b"one"  # "two" and "three" wait behind it
            conn.abort()
            errors = []
            for _ in range(3):
                try:
                    errors.append(await conn.receive())
                except pyloop.ConnectionClosed as exc:
                    errors.append(str(exc))
                for _ in range(turns):
                    await asyncio.sleep(0)
            with pytest.raises(pyloop.ConnectionClosed, match="drain: the connection to"):
                await conn.drain()
            outcome.set_result(errors)

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (_, writer):
                writer.write(b"one\ntwo\nthree\n")
                errors = await outcome
        assert ["receive: the connection to" in str(error) for error in errors] == [True] * 3

    run(main())


def test_receive_of_a_client_after_its_abort_raises_connection_closed(run):
    async def greet(conn):
        conn.write(b"one\ntwo\nthree\n")
        await conn.receive()

    async def main():
        async with pyloop.Server(greet, framing=pyloop.Lines()) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines())
            assert await conn.receive() == b"one"
            conn.abort()
            with pytest.raises(pyloop.ConnectionClosed, match="receive: the connection to"):
                await conn.receive()
            await conn.wait_closed()
            with pytest.raises(pyloop.ConnectionClosed, match="receive: the connection to"):
                await conn.receive()

    run(main())


def test_broadcast_to_a_closing_connection_does_not_raise(run):
    async def main():
        async with Serving(framing=pyloop.Lines()) as serving:
            async with peer_of(serving.server) as (reader1, _), peer_of(serving.server) as (r2, _):
                first, second = await serving.conn(), await serving.conn()
                first.close()
                serving.server.broadcast(b"news")
                assert await r2.readexactly(5) == b"news\n"
                assert await reader1.read() == b""
                serving.server.broadcast(b"x", exclude=second)
                with pytest.raises(ValueError, match="contains"):
                    serving.server.broadcast(b"a\nb")
                serving.server.broadcast(b"end", exclude=[first])
                assert await r2.readexactly(4) == b"end\n"

    run(main())
