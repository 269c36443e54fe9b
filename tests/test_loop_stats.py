"""loop.stats(): callbacks, system calls and bytes, as exactly as the loop's work is known."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pages import count, page_of
from peers import answer, peer_of
from web import one, values

import pyloop
from pyloop.exposition import Exposition
from pyloop.stats import page_stats

COUNTS = ("callbacks", "bytes_in", "bytes_out", "waits", "accepts", "receives", "sends", "watches")


def echo(conn, message):
    conn.send(message)


def change(loop, *names):
    """Return what gives the changes of these counts since now."""
    before = loop.stats()
    return lambda: [getattr(loop.stats(), name) - getattr(before, name) for name in names]


def test_each_callback_is_counted_once(loop):
    changed = change(loop, "callbacks", "ticks")
    for _ in range(5):
        loop.call_soon(int)
    loop.call_later(0, int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert changed() == [7, 1]
    assert loop.stats().callbacks == 7
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert changed() == [8, 2]


def test_watched_fd_is_a_callback_and_an_event(loop):
    left, right = socket.socketpair()
    with left, right:
        right.send(b"x")
        loop.add_reader(left, loop.stop)
        changed = change(loop, "callbacks", "events", "waits")
        loop.run_forever()
        loop.remove_reader(left)
    assert changed() == [1, 1, 1]


def test_served_connection_counts_its_system_calls_and_bytes(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            async with peer_of(server) as peer:
                await answer(peer, b"first\n")
                changed = change(loop, "receives", "sends", "bytes_in", "bytes_out")
                for _ in range(10):
                    await answer(peer, b"line\n")
                assert changed() == [20, 20, 100, 100]  # the peer's as well
                await answer(peer, b"1\n2\n3\n")
                assert changed() == [22, 22, 112, 112]  # three answers in one send
        assert loop.stats().accepts >= 1

    run(main())


@pytest.mark.parametrize("name", ["select", "poll", "epoll"])
def test_only_epoll_has_system_calls_to_watch(name):
    loop = pyloop.Loop(name)
    left, right = socket.socketpair()
    with left, right:
        changed = change(loop, "watches")
        for _ in range(10):
            loop.add_reader(left, int)
            loop.add_writer(left, int)
            loop.remove_reader(left)
            loop.remove_writer(left)
    assert changed() == [40 if name == "epoll" else 0]
    loop.close()


def test_walk_that_is_left_counts_no_callback_twice(loop):
    def leave(fd, mask):
        raise KeyboardInterrupt

    left, right = socket.socketpair()
    with left, right:
        loop.add_reader(left, int)
        loop._core.dispatch._ready = leave
        changed = change(loop, "callbacks")
        for _ in range(4):
            loop.call_soon(int)
        loop.call_soon(right.send, b"x")  # seen by the next turn
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert changed() == [5]
        loop.remove_reader(left)


def test_turn_that_fails_counts_no_callback_twice(loop):
    def leave():
        raise KeyboardInterrupt

    changed = change(loop, "callbacks")
    for _ in range(3):
        loop.call_soon(leave)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    assert changed() == [3]


def test_counts_of_workers_add_up_and_are_exposed():
    more = {name: 100 + number for number, name in enumerate(COUNTS)}
    with page_of(workers=2) as page:
        for number in range(2):
            loop = page.cell(number).loop
            for name, value in more.items():
                setattr(loop, name, value * (number + 1))
            count(page, number, bytes_in=1)  # the server's own
        stats = page_stats(page)
        text, _ = Exposition(page).render("")
    assert {name: getattr(stats, name) for name in COUNTS} == {k: 3 * v for k, v in more.items()}
    assert stats.workers[1].sends == 2 * more["sends"] and stats.servers[0].bytes_in == 2
    got = values(text.decode())
    assert got[one("pyloop_loop_callbacks_total", worker="2")] == 2 * more["callbacks"]
    name = "pyloop_loop_system_calls_total"
    for call, field in (("wait", "waits"), ("send", "sends"), ("watch", "watches")):
        assert got[one(name, worker="1", call=call)] == more[field]
