"""Callbacks that block are logged while they do, and by no thread that is there across a fork."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import threading
import time

import pytest
from faults import Child, asan
from peers import exchange, peer_of, until

import pyloop
from pyloop.blocked import LOOKS, BlockWatch
from pyloop.forking import fork_child

SECONDS = 60


def run_once(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def echo(conn, message):
    conn.send(message)


class Chat(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        self.conn.send(message)


class Blocker(logging.Handler):
    """Blocks a callback until the logger `pyloop` says that it does."""

    def __init__(self):
        super().__init__()
        self.told = threading.Event()
        self.texts = []

    def emit(self, record):
        text = record.getMessage()
        self.texts.append(text)
        if ", in block" in text or "without Python frames" in text:  # not of another, on a slow day
            self.told.set()

    def block(self, *args):
        assert self.told.wait(SECONDS)

    async def block_in_a_coroutine(self):
        self.block()


@pytest.fixture
def blocker():
    blocker = Blocker()
    log = logging.getLogger("pyloop")
    log.addHandler(blocker)
    yield blocker
    log.removeHandler(blocker)


@pytest.fixture
def watched(backend):
    loop = pyloop.Loop(backend, block_threshold=0.01)
    yield loop
    loop.run_until_complete(asyncio.sleep(0))  # which ends the watch, and with that what it tells
    loop.close()
    assert "pyloop-block-watch" not in [thread.name for thread in threading.enumerate()]


def assert_told(blocker, name, place):
    """One record while it blocks, with the stack down to the wait, and one when it has ended."""
    first, last = (text for text in blocker.texts if text.startswith(name))
    head, _, stack = first.partition("\n")
    name = re.escape(name)
    begin = rf"{name} has blocked the loop for [\d.]+ s \(block_threshold=0.01\); it is in:"
    assert re.fullmatch(begin, head)
    lines = stack.splitlines()
    assert place in lines[0] and lines[0].startswith('  File "')
    assert "in wait" in stack and "run_forever" not in stack and "_run_once" not in stack
    assert re.fullmatch(rf"{name} blocked the loop for [\d.]+ s, and has ended", last)


def test_callback_that_blocks_is_logged_with_its_stack_while_it_does(watched, blocker):
    watched.call_soon(blocker.block)
    run_once(watched)
    assert_told(blocker, "Blocker.block", "in block")


def test_task_that_blocks_is_named_with_its_coroutine(watched, blocker):
    async def main():
        await asyncio.create_task(blocker.block_in_a_coroutine(), name="the task")

    watched.run_until_complete(main())
    assert_told(blocker, "Blocker.block_in_a_coroutine (the task)", "in block_in_a_coroutine")


def test_handler_of_a_connection_that_blocks_is_named(watched, blocker):
    class Blocking(Chat):
        def message_received(self, message):
            blocker.block()
            super().message_received(message)

        eof_received = blocker.block

    async def main():
        async with pyloop.Server(Blocking, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"hello\n") == b"hello\n"

    watched.run_until_complete(main())
    assert_told(blocker, Blocking.message_received.__qualname__, "in message_received")


def test_blocking_code_without_python_frames_is_named_too(watched, blocker):
    lock = threading.Lock()
    lock.acquire()
    blocker.told.set = lock.release
    watched.call_soon(lock.acquire, True, SECONDS)
    run_once(watched)
    first, _ = (text for text in blocker.texts if text.startswith("lock.acquire "))
    assert first.startswith("lock.acquire has blocked the loop for ")
    assert first.endswith("it is in:\n  (code without Python frames)")


def test_each_callback_that_blocks_is_told_of_once(watched, blocker):
    def again():
        blocker.told.clear()
        blocker.block()
        time.sleep(0.01 / LOOKS * 3)  # three more looks

    for _ in range(3):
        watched.call_soon(again)
    run_once(watched)
    texts = [text for text in blocker.texts if text.startswith(again.__qualname__)]
    began = [text for text in texts if "has blocked" in text]
    ended = [text for text in texts if text.endswith("has ended")]
    assert len(began) == len(ended) == 3


def test_quick_callbacks_of_one_turn_are_told_apart(watched):
    """However long the turn takes, each callback and each event is another place."""
    places = []

    def note(*args):
        places.append(watched._block_watch._place())

    async def main():
        async with pyloop.Server(note, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (_, writer):
                writer.write(b"line\n" * 20)
                await until(lambda: len(places) == 20)
        for _ in range(20):
            watched.call_soon(note)
        await until(lambda: len(places) == 40)

    watched.run_until_complete(main())
    assert len(set(places)) == 40 and len({since for since, _, _ in places[20:]}) == 1


def test_idle_loop_is_in_no_place(watched):
    places = []

    def look():
        while (place := watched._block_watch._place()) is not None:
            time.sleep(0)
        places.append(place)
        watched.call_soon_threadsafe(watched.stop)

    thread = threading.Thread(target=look)
    thread.start()
    watched.run_forever()
    thread.join()
    assert places == [None]


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [pyloop.Loop, pyloop.new_event_loop])
def test_threshold_that_is_none_is_refused(make, value):
    expected = f"block_threshold: expected seconds above 0, got {value!r}"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        make(block_threshold=value)


@pytest.mark.parametrize("value", ["1", True, b"1"])
def test_threshold_of_another_type_is_refused(value):
    expected = f"block_threshold: expected seconds or None, got {value!r}"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        pyloop.run(pyloop.Server(echo), block_threshold=value)


def test_loop_runs_on_when_there_can_be_no_thread(watched, blocker, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    run_once(watched)
    monkeypatch.undo()
    assert blocker.texts == ["nobody watches for callbacks that block: can't start new thread"]


# ---- forks ----


def watching():
    return [thread.name for thread in threading.enumerate()].count("pyloop-block-watch")


def test_thread_is_not_there_across_a_fork_and_watches_again(watched, blocker):
    async def main():
        assert watching() == 1
        read, write = os.pipe()
        pid = fork_child(lambda: os.write(write, b"%d" % threading.active_count()) and 0)
        os.close(write)
        assert os.read(read, 10) == b"1" and watching() == 1
        os.close(read)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    before = threading.active_count()
    watched.run_until_complete(main())
    assert watching() == 0 and threading.active_count() == before
    blocker.told.clear()  # for it may have told of the fork
    watched.call_soon(blocker.block)
    run_once(watched)
    assert_told(blocker, "Blocker.block", "in block")


@pytest.mark.skipif(asan(), reason="ASan's own locks may be held by another thread at a fork")
def test_child_that_comes_back_into_run_does_not_wait_for_the_thread(watched):
    """A fork that is not pyloop's, with the watch's lock held as its thread may hold it."""
    pids = []

    def fork():
        watch: BlockWatch = watched._block_watch
        with watch._stop._cond:
            pids.append(os.fork())
            if pids[0]:
                watched.stop()

    watched.call_soon(fork)
    try:
        watched.run_forever()
    finally:
        if not pids[0]:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 7


RUN = """if True:
    import sys, threading, pyloop
    from faults import say

    def names(conn, message):
        conn.send(" ".join(sorted(thread.name for thread in threading.enumerate())).encode())

    def started(server, *args):
        names = [thread.name for thread in threading.enumerate()]
        say(port=server.port, watching=names.count("pyloop-block-watch"))

    model, workers = sys.argv[1], int(sys.argv[2])
    hook = "on_worker_start" if workers > 1 else "on_start"
    server = pyloop.Server(names, model=model, workers=workers, framing=pyloop.Lines(),
                           **{hook: started})
    pyloop.run(server, block_threshold=5)
"""


@pytest.mark.parametrize(
    ("model", "workers", "at_start", "in_handler"),
    [
        ("loop", 1, 1, ["pyloop-block-watch"]),
        ("loop", 2, 0, ["pyloop-block-watch"]),
        ("fork", 1, 0, []),
    ],
)
def test_thread_is_where_handlers_run_on_a_loop_and_never_in_who_forks(
    model, workers, at_start, in_handler
):
    with Child(RUN, model, str(workers)) as child:
        started = child.next()
        assert started["watching"] == at_start
        with child.peer(started["port"]).sock as sock:
            sock.sendall(b"threads?\n")
            names = sock.makefile("rb").readline().decode().split()
            assert [name for name in names if name.startswith("pyloop")] == in_handler
        child.process.terminate()
        assert child.finish() == 0
