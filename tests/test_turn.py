"""The loop's turn: what runs in it and in which order, what ends it, and what it does not do."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import HERE, ROOT

# ---- callbacks ----


def test_callbacks_run_in_order_and_what_they_add_comes_after_a_look_at_the_fds(loop):
    order = []
    left, right = socket.socketpair()
    with left, right:
        loop.add_reader(left, lambda: (order.append("readable"), loop.remove_reader(left)))

        def first():
            order.append("first")
            right.send(b"x")
            loop.call_soon(order.append, "added")
            loop.call_soon(loop.stop)

        loop.call_soon(first)
        loop.call_soon(order.append, "second")
        loop.run_forever()  # two turns
    assert order == ["first", "second", "added", "readable"]


def test_stop_ends_the_turn_and_not_before_its_callbacks_have_run(loop):
    order = []
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: (order.append("same turn"), loop.call_soon(order.append, "next turn")))
    loop.run_forever()
    assert order == ["same turn"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["same turn", "next turn"]


def test_cancelled_callback_does_not_run(loop):
    order = []
    loop.call_soon(lambda: second.cancel())
    second = loop.call_soon(order.append, "second")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == [] and second.cancelled()


def contexts_of(loop, schedule):
    """What the exception handler is told of a callback that raises."""
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    handle = schedule(loop)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert [context["handle"] for context in told] == [handle]
    return told[0]["message"], type(told[0]["exception"]), set(told[0])


def fails(*args):
    raise LookupError("a fault")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("way", ["call_soon", "call_later", "cancelled"])
def test_callback_that_raises_is_reported_as_asyncio_does(loop, way, debug):
    def schedule(loop):
        if way == "call_later":
            return loop.call_later(0, fails, 1)
        if way == "call_soon":
            return loop.call_soon(fails, 1)

        def cancels_itself():
            handle.cancel()
            raise LookupError

        handle = loop.call_soon(cancels_itself)
        return handle

    other = asyncio.SelectorEventLoop()
    try:
        for each in (loop, other):
            each.set_debug(debug)
        assert contexts_of(loop, schedule) == contexts_of(other, schedule)
    finally:
        other.close()


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt("a key")], ids=repr)
def test_exit_leaves_run_and_the_other_callbacks_run_with_the_next(loop, error):
    order = []

    def leave():
        raise error

    loop.call_soon(leave)
    loop.call_soon(order.append, "other")
    with pytest.raises(type(error)):
        loop.run_forever()
    assert order == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["other"]


def test_cancelled_error_out_of_a_callback_ends_nothing(loop):
    told = []
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))

    def raises():
        raise asyncio.CancelledError

    loop.call_soon(raises)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert told == [asyncio.CancelledError]


def test_another_kind_of_turn_is_woken_by_a_thread(loop, monkeypatch):
    """Programs that run a loop inside a callback bring one. Here it is that of asyncio itself."""
    waited, timed_out = [], []

    def wake():
        for _ in range(20_000):
            if not loop._counters.running_since:
                waited.append(True)
                break
            time.sleep(0.001)
        loop.call_soon_threadsafe(loop.stop)

    loop.call_soon(loop.stop)
    loop.run_forever()  # in its own way
    monkeypatch.setattr(loop, "_run_once", lambda: asyncio.BaseEventLoop._run_once(loop))
    timer = loop.call_later(25, lambda: (timed_out.append(True), loop.stop()))
    thread = threading.Thread(target=wake)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    timer.cancel()
    assert waited and not timed_out


def test_handle_with_a_run_of_its_own_has_it_called(loop):
    ran = []

    class Own(asyncio.Handle):
        def _run(self):
            ran.append(self._args)

    loop._ready.append(Own(print, (1,), loop))
    loop._ready.append(asyncio.Handle(ran.append, (2,), loop))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [(1,), 2]


def test_handles_are_those_of_asyncio(loop):
    soon, later = loop.call_soon(print, 1), loop.call_later(1, print, 1)
    assert isinstance(soon, asyncio.Handle) and isinstance(later, asyncio.TimerHandle)
    other = asyncio.Handle(print, (1,), loop), asyncio.TimerHandle(later.when(), print, (1,), loop)
    assert (repr(soon), repr(later)) == (repr(other[0]), repr(other[1]))
    if sys.version_info >= (3, 12):
        assert soon.get_context() is not None
    for handle in (soon, later):
        handle.cancel()
        assert handle.cancelled()


# ---- a turn of somebody else's ----


def test_turn_of_the_standard_library_works_on_the_loop(loop):
    """As tools bring one that drive the loop from inside a callback."""
    order = []
    left, right = socket.socketpair()
    with left, right:
        loop.add_reader(left, lambda: (order.append("readable"), loop.remove_reader(left)))
        right.send(b"x")
        loop.call_soon(order.append, "soon")
        timers = [loop.call_later(0.001, order.append, number) for number in range(3)]
        timers[1].cancel()
        loop._run_once = lambda: asyncio.BaseEventLoop._run_once(loop)
        while len(order) < 4:
            loop.call_soon(loop.stop)
            loop.run_forever()
    assert sorted(order, key=str) == [0, 2, "readable", "soon"]


# ---- other threads ----

THREADS, EACH = 8, 5000


def wakes_arrive(loop, threads=THREADS, each=EACH):
    """Have threads call_soon_threadsafe; the loop, which has nothing else to do, runs each once."""
    seen = [[] for _ in range(threads)]
    left = threads

    def ended():
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def call(number):
        for count in range(each):
            loop.call_soon_threadsafe(seen[number].append, count)
        loop.call_soon_threadsafe(ended)

    workers = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    loop.run_forever()
    for worker in workers:
        worker.join()
    assert all(counts == list(range(each)) for counts in seen)


def test_no_wake_of_eight_threads_is_lost(loop):
    wakes_arrive(loop)


def test_one_wake_at_a_time_is_never_lost(loop):
    """There and back: each wake finds the loop just before, in or just behind its wait."""
    back = threading.Semaphore(0)

    def call():
        for _ in range(2000):
            loop.call_soon_threadsafe(back.release)
            back.acquire()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=call)
    thread.start()
    loop.run_forever()
    thread.join()


def test_loop_that_does_not_wait_is_not_woken(loop):
    def busy():
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
        thread.start()
        thread.join()

    loop.call_soon(busy)
    before = loop.stats().wakes
    loop.run_forever()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop.stats().wakes == before


# ---- nothing to do ----

IDLE = """if True:
    import os, sys, pyloop

    loop = pyloop.Loop(sys.argv[1])
    timers = []

    def end():
        os.write(1, b"end")
        loop.remove_reader(0)
        os.read(0, 1)
        loop.stop()

    def idle():
        loop.add_reader(0, end)
        loop.call_later(0.01, os.write, 1, b"idle")  # add_reader has made epoll_ctl calls before

    for _ in range(2):  # without a timer, and with one that is far away
        loop.call_soon(idle)
        loop.run_forever()
        timers.append(loop.call_later(3600, print))
"""


def test_idle_loop_makes_no_system_call_until_something_happens(backend, tmp_path):
    if not shutil.which("strace"):
        assert "PYLOOP_CI" not in os.environ, "strace is missing"
        pytest.skip("needs strace")
    log = tmp_path / "calls"
    command = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(log)]
    child = subprocess.Popen(
        [*command, sys.executable, "-c", IDLE, backend],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        for _ in range(2):
            said = os.read(child.stdout.fileno(), 4)
            if not said and b"ptrace" in child.stderr.read():
                pytest.skip("strace may not trace here")
            assert said == b"idle"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)  # in which nothing happens
            os.write(child.stdin.fileno(), b"x")
            assert os.read(child.stdout.fileno(), 3) == b"end"
        assert child.wait(60) == 0
    assert_only_waits(log)


def assert_only_waits(log: Path) -> None:
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
    begins = [number for number, call in enumerate(calls) if call.startswith('write(1, "idle"')]
    ends = [number for number, call in enumerate(calls) if call.startswith('write(1, "end"')]
    assert len(begins) == len(ends) == 2
    for begin, end in zip(begins, ends, strict=True):
        between = [re.split(r"\W", call)[0] for call in calls[begin + 1 : end]]
        assert len(between) == 1 and between[0].startswith(("epoll_", "ppoll", "pselect"))
