"""Monitors: slow callbacks told of to a hook and in debug mode, blocking ones while they block."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import threading
import time

import pytest
from faults import Child
from peers import answer, exchange, peer_of, until

import pyloop
from pyloop.blocked import LOOKS, BlockWatch
from pyloop.forking import fork_child

SECONDS = 60


class Slow:
    """A hook that is told of every callback, and keeps what it is told."""

    def __init__(self, loop):
        self.told = []
        loop.slow_callback_duration = 0
        loop.slow_callback_hook = self

    def __call__(self, name, seconds, handle):
        assert seconds >= 0
        self.told.append((name, handle))

    @property
    def names(self):
        return [name for name, _ in self.told]


def run_once(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def plain(*args):
    pass


def echo(conn, message):
    conn.send(message)


# ---- the hook ----


def test_hook_is_told_of_each_slow_callback_with_its_handle(loop):
    slow = Slow(loop)
    handles = [
        loop.call_soon(plain),
        loop.call_soon(functools.partial(functools.partial(plain, 1), 2)),
        loop.call_soon([].append, 1),
        loop.call_later(0, plain, 1),
    ]
    run_once(loop)
    stop = slow.told.pop(3)
    assert stop[0].endswith(".stop")
    assert slow.told == list(zip(["plain", "plain", "list.append", "plain"], handles, strict=True))


def test_coroutine_is_named_and_not_the_machinery_of_tasks(loop):
    async def coroutine():
        await asyncio.sleep(0.001)

    slow = Slow(loop)
    loop.run_until_complete(coroutine())
    name = coroutine.__qualname__
    assert slow.names.count(name) == 2 and slow.told[0][0] == name
    assert isinstance(slow.told[0][1], asyncio.Handle)


class Chat(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        self.conn.send(message)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (echo, ["echo", "echo", "echo", "echo"]),
        (
            Chat,
            [
                "Chat.connection_made",
                "Chat.message_received",
                "Chat.eof_received",
                "Chat.connection_lost",
            ],
        ),
    ],
)
def test_handlers_of_connections_are_told_of_without_a_handle(run, loop, handler, expected):
    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            slow = Slow(loop)
            assert await exchange(server, b"hello\n") == b"hello\n"
            await until(lambda: server.stats().open == 0)
            loop.slow_callback_hook = None
            return [name for name, handle in slow.told if handle is None and name != "Dispatch"]

    assert run(main()) == expected


def test_callback_below_the_threshold_is_not_told_of(loop):
    slow = Slow(loop)
    loop.slow_callback_duration = math.inf
    loop.call_soon(plain)
    run_once(loop)
    loop.slow_callback_duration = 0
    loop.slow_callback_hook = None
    run_once(loop)
    assert slow.told == []


def test_hook_that_raises_is_reported_and_ends_nothing(run, loop):
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context))

    def hook(name, seconds, handle):
        raise LookupError(name)

    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            async with peer_of(server) as peer:
                loop.slow_callback_duration = 0
                loop.slow_callback_hook = hook
                for _ in range(3):
                    assert await answer(peer, b"hello\n") == b"hello\n"
                loop.slow_callback_hook = None
            assert server.stats().aborts == 0

    run(main())
    echoes = [context for context in told if str(context["exception"]) == "echo"]
    assert len(echoes) == 3
    assert {context["message"] for context in echoes} == {
        "Exception in slow_callback_hook, told of echo"
    }
    assert all(type(context["exception"]) is LookupError for context in told)


def test_exit_out_of_a_hook_leaves_run(loop):
    def hook(name, seconds, handle):
        loop.slow_callback_hook = None
        raise KeyboardInterrupt

    Slow(loop)
    loop.slow_callback_hook = hook
    loop.call_soon(plain)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    run_once(loop)


def test_hook_that_cannot_be_called_is_refused(loop):
    with pytest.raises(
        TypeError, match=r"^slow_callback_hook: expected None or a callable, got 1$"
    ):
        loop.slow_callback_hook = 1
    assert loop.slow_callback_hook is None


def test_callback_that_raises_is_reported_under_a_hook_too(loop):
    told = []
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
    Slow(loop)
    loop.call_soon(lambda: 1 / 0)
    run_once(loop)
    assert told == [ZeroDivisionError]


def test_debug_mode_reports_handlers_of_connections_as_well(run, loop, caplog):
    async def main():
        loop.set_debug(True)
        async with pyloop.Server(Chat, framing=pyloop.Lines()) as server:
            loop.slow_callback_duration = 0
            assert await exchange(server, b"hello\n") == b"hello\n"
            loop.slow_callback_duration = math.inf

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    texts = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert any(text.startswith("Executing <Chat.message_received> took 0.") for text in texts)
    assert any(text.startswith("Executing <Task ") for text in texts)
    assert any(text.startswith("Executing <Handle ") for text in texts)


# ---- blocked loops ----


class Blocker(logging.Handler):
    """Blocks a callback until the logger `pyloop` says that it does."""

    def __init__(self):
        super().__init__()
        self.told = threading.Event()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())
        if "has blocked" in self.texts[-1]:
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
    assert head.startswith(f"{name} has blocked the loop for 0.")
    assert head.endswith(" s (block_threshold=0.01); it is in:")
    lines = stack.splitlines()
    assert place in lines[0] and lines[0].startswith('  File "')
    assert "in wait" in stack and "run_forever" not in stack and "_run_once" not in stack
    assert last.startswith(f"{name} blocked the loop for 0.") and last.endswith(" s, and has ended")


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
    first, _ = blocker.texts
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
    began = [text for text in blocker.texts if "has blocked" in text]
    ended = [text for text in blocker.texts if text.endswith("has ended")]
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
        say(port=server.port, watching=[thread.name for thread in threading.enumerate()].count("pyloop-block-watch"))

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
