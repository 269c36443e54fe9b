"""Slow peers: high and low water, drain, write_limit."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from peers import Held, Serving, answer, deaf_peer, peer_of, read_all, until

import pyloop
from pyloop.options import HIGH_WATER, LOW_WATER

FLOOD = 8 << 20  # more than the kernel takes of a peer that does not read
LIMIT = 1 << 20


class Watching(pyloop.Protocol):
    """Record (callback, bytes buffered then)."""

    def __init__(self, calls):
        self.calls = calls

    def connection_made(self, conn):
        self.conn = conn

    def pause_writing(self):
        self.calls.append(("pause", self.conn.buffered))

    def resume_writing(self):
        self.calls.append(("resume", self.conn.buffered))

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))


def test_marks_are_those_of_the_manual():
    assert (HIGH_WATER, LOW_WATER) == (64 * 1024, 16 * 1024)


def test_over_high_water_pauses_once_and_low_water_resumes(run):
    async def main():
        calls = []
        async with pyloop.Server(lambda: Watching(calls)) as server:
            with deaf_peer(server) as sock:
                await until(lambda: server.connections)
                (conn,) = server.connections
                sent = 0
                while not calls:
                    conn.write(bytes(10_000))
                    sent += 10_000
                conn.write(bytes(FLOOD))  # no second pause
                assert [call for call, _ in calls] == ["pause"]
                assert HIGH_WATER < calls[0][1] <= HIGH_WATER + 10_000
                loop = asyncio.get_running_loop()
                left = sent + FLOOD
                while left:
                    left -= len(await loop.sock_recv(sock, 1 << 20))
                await until(lambda: len(calls) == 2)
                assert calls[1][0] == "resume" and calls[1][1] <= LOW_WATER

    run(main())


def test_flooded_again_before_the_resume_is_told_it_stays_paused(run):
    made, calls = [], []

    class First(Watching):
        def message_received(self, data):
            victim = made[1].conn
            if calls[-1:] and calls[-1][0] == "pause" and victim.buffered <= LOW_WATER:
                calls[:] = [("flooded", 0)]  # PL_EV_RESUME stands behind this in the batch
                victim.write(bytes(FLOOD))

    def make():
        made.append(Watching(calls) if made else First(calls))
        return made[-1]

    async def main():
        async with pyloop.Server(make) as server, peer_of(server) as (_, talker):
            await until(lambda: server.connections)
            with deaf_peer(server) as sock:
                await until(lambda: len(server.connections) == 2)
                sock.setblocking(False)
                for _ in range(20):  # until it so happens
                    calls.clear()
                    made[1].conn.write(bytes(FLOOD))
                    while calls[-1][0] != "resume" or made[1].conn.buffered:
                        talker.write(b"hello\n")
                        with contextlib.suppress(BlockingIOError):
                            sock.recv(1 << 20)
                        await asyncio.sleep(0)
                    if calls[0][0] == "flooded":
                        break
        assert [call for call, _ in calls[:2]] == ["flooded", "resume"]
        assert calls[1][1] <= LOW_WATER

    run(main())


def test_output_is_offered_to_the_kernel_before_pause_writing_is_called(run):
    """What the kernel takes at once never pauses anybody, however much it is in one turn."""

    async def main():
        calls = []
        async with pyloop.Server(lambda: Watching(calls)) as server, peer_of(server) as (reader, _):
            await until(lambda: server.connections)
            (conn,) = server.connections
            conn.write(bytes(HIGH_WATER + 1))
            assert conn.buffered == 0 and calls == []
            assert server.stats().bytes_out == HIGH_WATER + 1
            await reader.readexactly(HIGH_WATER + 1)

    run(main())


def test_small_sends_of_one_turn_leave_in_one_system_call(run):
    async def main():
        async with Serving(framing=pyloop.Lines()) as serving:
            async with peer_of(serving.server) as (reader, _):
                conn = await serving.conn()
                for _ in range(50):
                    conn.send(b"line")
                assert conn.buffered == 250
                assert serving.server.stats().bytes_out == 0
                assert await reader.read(1000) == b"line\n" * 50

    run(main())


# ---- write_limit ----


def echo(conn, message):
    conn.send(message)


async def fill(sock, data):
    """Send until the server resets."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            await loop.sock_sendall(sock, data)


def test_peer_that_never_reads_is_paused_then_aborted_and_harms_nobody(run):
    calls = []

    class Echo(Watching):
        most = 0

        def message_received(self, message):
            self.conn.send(message)
            Echo.most = max(Echo.most, self.conn.buffered)

    async def main():
        server = pyloop.Server(lambda: Echo(calls), write_limit=LIMIT)
        async with server, peer_of(server) as other:
            await answer(other, b"before")
            with deaf_peer(server) as sock:
                await fill(sock, bytes(1 << 16))
            await until(lambda: len(server.connections) == 1)
            await answer(other, b"after")
            stats = server.stats()
        assert [call for call, _ in calls[:2]] == ["pause", "lost"]
        exc = calls[1][1]
        assert type(exc) is pyloop.WriteLimitError
        assert isinstance(exc, pyloop.ConnectionClosed)
        assert f"more than write_limit={LIMIT} bytes" in str(exc)
        assert LIMIT < Echo.most <= LIMIT + (1 << 18)
        assert (stats.write_limit_aborts, stats.aborts) == (1, 1)

    run(main())


def test_default_write_limit_is_16_mib(run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server):
                conn = await serving.conn()
                for _ in range(40):
                    conn.write(bytes(1 << 20))
                assert isinstance(await conn.state.lost, pyloop.WriteLimitError)
                assert (16 << 20) < serving.server.stats().messages_out << 20 <= (24 << 20)

    run(main())


def test_one_message_of_any_size_may_go(run):
    async def main():
        async with Serving(write_limit=1000) as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(bytes(FLOOD))
                conn.close()
                assert len(await read_all(sock)) == FLOOD
            assert await conn.state.lost is None

    run(main())


def test_send_past_the_limit_aborts_and_does_not_raise(run):
    async def main():
        async with Serving(write_limit=1000) as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(bytes(FLOOD))
                assert conn.send(b"one more") is None
                assert conn.is_closing and conn.buffered == 0
                conn.send(b"and more")
                with pytest.raises(ConnectionResetError):
                    await read_all(sock)
                assert type(await conn.state.lost) is pyloop.WriteLimitError
                with pytest.raises(pyloop.WriteLimitError):
                    await conn.drain()
                assert serving.server.stats().write_limit_aborts == 1

    run(main())


def test_broadcast_past_the_limit_aborts_the_slow_peer_only(run):
    async def main():
        async with Serving(write_limit=1000) as serving:
            with deaf_peer(serving.server):
                slow = await serving.conn()
                async with peer_of(serving.server) as (reader, _):
                    await serving.conn()
                    slow.send(bytes(FLOOD))
                    serving.server.broadcast(b"news")
                    assert await reader.readexactly(4) == b"news"
                    assert type(await slow.state.lost) is pyloop.WriteLimitError

    run(main())


def test_conversation_past_the_limit_gets_write_limit_error(run, caplog):
    async def main():
        outcome = asyncio.get_running_loop().create_future()

        async def handler(conn):
            try:
                while True:
                    conn.send(bytes(1 << 16))  # without drain
                    if conn.is_closing:
                        await conn.receive()
            except BaseException as exc:
                outcome.set_result(exc)
                raise

        async with pyloop.Server(handler, write_limit=LIMIT) as server:
            with deaf_peer(server):
                assert type(await outcome) is pyloop.WriteLimitError
        assert caplog.records == []  # the peer's fault, not the handler's

    run(main())


# ---- drain ----


def test_drain_waits_and_wakes_when_the_peer_reads(run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                await conn.drain()  # nothing queued: at once
                conn.send(bytes(FLOOD))
                waiting = [asyncio.create_task(conn.drain()) for _ in range(3)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert not any(task.done() for task in waiting)
                reading = asyncio.create_task(read_all(sock))
                await asyncio.gather(*waiting)
                assert conn.buffered <= LOW_WATER
                conn.close()
                assert len(await reading) == FLOOD

    run(main())


@pytest.mark.parametrize("how", ["close", "abort"])
def test_drain_that_waits_raises_connection_closed_at_the_end(run, how):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server):
                conn = await serving.conn()
                conn.send(bytes(FLOOD))
                waiting = asyncio.create_task(conn.drain())
                await asyncio.sleep(0)
                getattr(conn, how)()
                with pytest.raises(pyloop.ConnectionClosed):
                    await waiting
                conn.abort()

    run(main())


def test_cancelled_drain_harms_nobody(run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(bytes(FLOOD))
                first, second = (asyncio.create_task(conn.drain()) for _ in range(2))
                await asyncio.sleep(0)
                first.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await first
                reading = asyncio.create_task(read_all(sock))
                await second
                conn.close()
                assert len(await reading) == FLOOD

    run(main())


def test_handler_that_drains_keeps_memory_bounded_and_loses_nothing(run):
    chunk, count = bytes(100_000), 300

    async def main():
        most = 0

        async def handler(conn):
            nonlocal most
            for _ in range(count):
                conn.send(chunk)
                most = max(most, conn.buffered)
                await conn.drain()

        async with pyloop.Server(handler) as server:
            with deaf_peer(server) as sock:
                assert len(await read_all(sock)) == count * len(chunk)
        assert most <= HIGH_WATER + len(chunk)

    run(main())


# ---- write(); loop.stop() ----


def test_write_then_loop_stop_sends(loop):
    serving = Serving()
    loop.run_until_complete(serving.__aenter__())
    with deaf_peer(serving.server) as sock:
        conn = loop.run_until_complete(serving.conn())
        assert isinstance(conn.state, Held)

        def last_words():
            conn.write(b"sent")
            loop.stop()

        loop.call_soon(last_words)
        loop.run_forever()
        sock.setblocking(True)
        sock.settimeout(30)
        assert sock.recv(100) == b"sent"  # the loop does not run
    loop.run_until_complete(serving.__aexit__())
