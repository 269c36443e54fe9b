"""server.stats() and loop.stats(): each counter moves as its documentation says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import resource
import socket
import threading
import time

import pytest
from peers import Serving, answer, deaf_peer, exchange, peer_of, until

import pyloop


def echo(conn, message):
    conn.send(message)


SERVER_FIELDS = [
    "accepted",
    "open",
    "refused",
    "accept_pauses",
    "messages_in",
    "messages_out",
    "bytes_in",
    "bytes_out",
    "framing_errors",
    "timeouts",
    "write_limit_aborts",
    "aborts",
    "dropped",
]


def moved(before, after):
    """The fields that differ, and by how much."""
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in SERVER_FIELDS)
    return {name: new - old for name, old, new in pairs if new != old}


def test_all_is_zero_before_start_and_frozen():
    stats = pyloop.Server(echo).stats()
    assert isinstance(stats, pyloop.ServerStats)
    assert [getattr(stats, name) for name in SERVER_FIELDS] == [0] * len(SERVER_FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.accepted = 1


def test_a_snapshot_does_not_change(run):
    async def main():
        async with pyloop.Server(echo) as server:
            before = server.stats()
            await exchange(server, b"x")
            assert before.accepted == 0 and server.stats().accepted == 1

    run(main())


def test_served_connection_counts_messages_and_bytes(run):
    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            async with peer_of(server) as peer:
                await until(lambda: server.stats().open == 1)
                await answer(peer, b"one\r\ntwo\n", 8)
                expected = {"accepted": 1, "open": 1, "bytes_in": 9, "bytes_out": 8}
                expected |= {"messages_in": 2, "messages_out": 2}
                assert moved(pyloop.Server(echo).stats(), server.stats()) == expected
            await until(lambda: server.stats().open == 0)
            assert server.stats().accepted == 1

    run(main())


def test_write_counts_as_message_out_and_broadcast_once_per_connection(run):
    async def main():
        async with Serving() as serving:
            server = serving.server
            async with peer_of(server) as (reader1, _), peer_of(server) as (reader2, _):
                conn = await serving.conn()
                await serving.conn()
                conn.write(b"x")
                server.broadcast(b"y")
                assert await reader1.readexactly(2) == b"xy"
                assert await reader2.readexactly(1) == b"y"
                assert server.stats().messages_out == 3

    run(main())


def test_unfinished_message_is_no_message(run):
    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (_, writer):
                writer.write(b"no end")
                await until(lambda: server.stats().bytes_in == 6)
                assert server.stats().messages_in == 0

    run(main())


def test_framing_error_is_counted(run):
    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines(4)) as server:
            await exchange(server, b"12345678\n")
            await exchange(server, b"ok\n")
            assert server.stats().framing_errors == 1
            assert server.stats().messages_in == 1

    run(main())


@pytest.mark.parametrize("kind", ["idle_timeout", "message_timeout"])
def test_timeout_is_counted_and_is_exc(run, kind):
    async def main():
        async with Serving(framing=pyloop.Lines(), **{kind: 0.05}) as serving:
            async with peer_of(serving.server) as (reader, writer):
                conn = await serving.conn()
                writer.write(b"never ending")
                assert await reader.read() == b""
                writer.close()
                exc = await conn.state.lost
                assert type(exc) is TimeoutError and kind in str(exc)
                assert serving.server.stats().timeouts == 1

    run(main())


def test_idle_timeout_ends_in_spite_of_bytes_of_an_unfinished_message(run):
    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines(), idle_timeout=0.2) as server:
            async with peer_of(server) as (reader, writer):
                ended = asyncio.create_task(reader.read())
                while not ended.done():
                    with contextlib.suppress(OSError):
                        writer.write(b"x")
                    await asyncio.wait([ended], timeout=0.02)
                assert server.stats().timeouts == 1
                assert server.stats().messages_in == 0

    run(main())


def test_aborts_and_write_limit_aborts(run):
    async def main():
        async with Serving(write_limit=1000) as serving:
            server = serving.server
            with deaf_peer(server):
                conn = await serving.conn()
                conn.abort()
                conn.abort()
                assert moved(pyloop.Server(echo).stats(), server.stats()) == {
                    "accepted": 1,
                    "aborts": 1,
                }
            before = server.stats()
            with deaf_peer(server):
                conn = await serving.conn()
                conn.send(bytes(8 << 20))
                conn.send(b"too much")
                change = moved(before, server.stats())
                assert (change["aborts"], change["write_limit_aborts"]) == (1, 1)
                assert change["messages_out"] == 1

    run(main())


def test_handler_that_raises_counts_as_abort(run, caplog):
    def handler(conn, message):
        raise LookupError("no")

    async def main():
        async with pyloop.Server(handler) as server:
            async with peer_of(server) as (reader, writer):
                writer.write(b"x")
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert server.stats().aborts == 1

    run(main())


def test_dropped_counts_sends_to_a_closing_connection(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server):
            conn = await serving.conn()
            conn.close()
            conn.send(b"a")
            conn.write(b"b")
            serving.server.broadcast(b"c")
            assert serving.server.stats().dropped == 3
            assert serving.server.stats().messages_out == 0

    run(main())


@contextlib.contextmanager
def no_more_fds():
    """Take the fds away: every open(), socket() and accept() fails with EMFILE."""
    gc.collect()
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_accept_pauses_are_counted_and_the_waiting_are_served(run):
    async def main():
        async with pyloop.Server(echo) as server:
            with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
                sock.send(b"hello")
                with no_more_fds():
                    await until(lambda: server.stats().accept_pauses >= 2)
                    assert server.stats().accepted == 0
                await until(lambda: server.stats().bytes_out)
                assert sock.recv(10) == b"hello"
            assert server.stats().refused == 0

    run(main())


def test_counters_survive_stop_and_go_on_after_another_start(run):
    async def main():
        server = pyloop.Server(echo)
        for turn in (1, 2):
            async with server:
                await exchange(server, b"x")
            assert (server.stats().accepted, server.stats().open) == (turn, 0)

    run(main())


def test_open_is_zero_after_a_stop_that_had_to_abort(run):
    async def hang(conn):
        await asyncio.get_running_loop().create_future()

    async def main():
        server = pyloop.Server(hang, drain_timeout=0)
        await server.start()
        async with peer_of(server):
            await until(lambda: server.connections)
            await server.stop()
        assert server.stats().open == 0

    run(main())


# ---- loop.stats() ----


def test_loop_stats_are_frozen_and_name_the_backend(loop):
    stats = loop.stats()
    assert isinstance(stats, pyloop.LoopStats)
    assert stats.backend == loop.backend
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.ticks = 1


def test_ticks_count_turns_and_events_what_they_brought(loop):
    before = loop.stats()
    for _ in range(10):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert loop.stats().ticks == before.ticks + 10
    assert loop.stats().events == before.events
    first, second = socket.socketpair()
    with first, second:
        loop.add_reader(first, loop.stop)
        second.send(b"x")
        loop.run_forever()
        loop.remove_reader(first)
    assert loop.stats().events == before.events + 1


def test_waiting_and_working_time_add_up(loop):
    before = loop.stats()
    loop.run_until_complete(asyncio.sleep(0.05))
    after = loop.stats()
    assert after.wait_seconds - before.wait_seconds > 0.04
    assert after.busy_seconds >= before.busy_seconds


def test_wakes_count_what_other_threads_ended(loop):
    def wake():
        while loop._counters.running_since:  # it does not wait yet
            time.sleep(0)
        loop.call_soon_threadsafe(loop.stop)

    before = loop.stats().wakes
    thread = threading.Thread(target=wake)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    loop.run_until_complete(asyncio.sleep(0))
    assert loop.stats().wakes == before + 1


def test_stats_may_be_read_from_another_thread(run):
    async def main():
        async with pyloop.Server(echo) as server:
            await exchange(server, b"x")
            loop = asyncio.get_running_loop()
            stats = await loop.run_in_executor(None, server.stats)
            assert moved(stats, server.stats()) == {}
            assert stats.ticks <= server.stats().ticks
            assert (await loop.run_in_executor(None, loop.stats)).ticks > 0

    run(main())


def test_stats_are_read_while_the_loop_is_closed_in_another_thread(backend):
    """What they read is Python's, and stays: the core's memory is gone with the loop."""
    closed, errors = threading.Event(), []

    def read(server, loop):
        while not closed.is_set():
            server.stats()
            try:
                loop.stats()
            except RuntimeError as exc:
                errors.append(str(exc))
                return

    for _ in range(20):
        loop = pyloop.Loop(backend)
        server = pyloop.Server(echo)
        loop.run_until_complete(server.start())
        reader = threading.Thread(target=read, args=(server, loop))
        reader.start()
        loop.close()
        reader.join(60)
        assert not reader.is_alive()
        assert server.stats().ticks == 0
    assert set(errors) == {"Event loop is closed"} and len(errors) == 20
