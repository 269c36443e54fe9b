"""What stats() tells beyond a server's own counters: turns of loops, lag, processes, workers."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from peers import exchange

import pyloop
from pyloop.core import lib
from pyloop.page import Page


def echo(conn, message):
    conn.send(message)


def test_server_stats_tell_of_the_loop_that_serves(run):
    async def main():
        server = pyloop.Server(echo)
        assert (server.stats().ticks, server.stats().busy_seconds) == (0, 0)
        async with server:
            await exchange(server, b"x")
            loop = asyncio.get_running_loop().stats()
            stats = server.stats()
            assert (stats.ticks, stats.busy_seconds) == (loop.ticks, loop.busy_seconds)
            assert stats.lag == loop.lag
        assert server.stats().ticks == 0

    run(main())


def test_lag_counts_each_turn_by_how_long_it_was(loop):
    before = loop.stats().lag
    loop.call_soon(time.sleep, 0.02)
    loop.call_soon(loop.stop)
    loop.run_forever()
    after = loop.stats().lag
    assert len(after) == len(before) == lib.PL_LAG_BUCKETS
    assert sum(after[15:]) > sum(before[15:])  # 2**14 microseconds are 16 ms
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert sum(loop.stats().lag) > sum(after)


def test_one_loop_has_neither_processes_nor_workers(run):
    async def main():
        async with pyloop.Server(echo) as server:
            stats = server.stats()
            assert stats.workers == ()
            assert stats.processes == pyloop.ProcessStats(0, 0, 0, 0, 0, 0, 0)
            with pytest.raises(dataclasses.FrozenInstanceError):
                stats.processes.started = 1

    run(main())


def test_server_that_counts_in_a_page_sums_all_cells(run, loop):
    async def main():
        server = pyloop.Server(echo)
        server._group.count_in(page, 1, 0)
        async with server:
            await exchange(server, b"x")
            stats = server.stats()
            assert (stats.accepted, stats.messages_in, stats.processes.started) == (1001, 1, 2)
            assert [worker.worker_id for worker in stats.workers] == [0, 1]
            assert [worker.servers[0].accepted for worker in stats.workers] == [1000, 1]
            assert stats.ticks == stats.workers[1].ticks + 7 > 7
        assert server.stats().ticks >= stats.ticks  # the page stays

    page = Page(2, 1)
    page.close_fd()
    page.claim(0, 0)
    page.claim(1, 1)
    page.counters(0, 0).accepted = 1000
    page.cell(0).loop.ticks = 7
    loop._count_in(page, 1)
    run(main())
