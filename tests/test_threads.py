"""The loop among threads and signals: who may call, and that no wake is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import Child
from peers import peer_of, until

import pyloop
from pyloop.core import check, ffi, lib

THREADS, CALLS = 8, 2000
TIMEOUT = 60.0


def in_thread(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread and return what it returned or raised."""
    result: list[Any] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as exc:
            result.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(TIMEOUT)
    assert result, "the call hangs"
    return result[0]


# ---- wakes ----


def test_storm_of_threadsafe_calls_loses_none_and_keeps_each_threads_order(
    loop: pyloop.Loop,
) -> None:
    came: list[list[int]] = [[] for _ in range(THREADS)]
    left = THREADS * CALLS

    def arrive(thread: int, number: int) -> None:
        nonlocal left
        came[thread].append(number)
        left -= 1
        if not left:
            loop.stop()

    def storm(thread: int) -> None:
        for number in range(CALLS):
            loop.call_soon_threadsafe(arrive, thread, number)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join(TIMEOUT)
    assert came == [list(range(CALLS))] * THREADS


def test_each_wake_of_a_waiting_loop_arrives(loop: pyloop.Loop) -> None:
    """One call at a time, so that each must end a wait by itself."""
    turns, here = 500, threading.Event()

    def drive() -> None:
        for _ in range(turns):
            here.clear()
            loop.call_soon_threadsafe(here.set)
            assert here.wait(TIMEOUT), "a wake was lost"
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=drive)
    thread.start()
    loop.run_forever()
    thread.join(TIMEOUT)
    assert here.is_set() and loop.stats().wakes > 0


def test_wake_before_the_loop_runs_ends_its_first_wait(loop: pyloop.Loop) -> None:
    in_thread(lambda: loop.call_soon_threadsafe(loop.stop))
    loop.run_forever()


def test_work_in_an_executor_comes_back(run: Callable[..., Any]) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(pow, n, 2) for n in range(100)))

    assert run(main()) == [n * n for n in range(100)]


# ---- which thread ----


def test_loop_made_here_runs_in_another_thread_and_then_here(loop: pyloop.Loop) -> None:
    async def echo_once() -> bytes:
        server = pyloop.Server(lambda conn, line: conn.send(line), framing=pyloop.Lines())
        async with server, peer_of(server) as (reader, writer):
            writer.write(b"hello\n")
            return await reader.readline()

    assert in_thread(lambda: loop.run_until_complete(echo_once())) == b"hello\n"
    assert loop.run_until_complete(echo_once()) == b"hello\n"


def core_calls(loop: pyloop.Loop, ident: int, fd: int) -> dict[str, Callable[[], int]]:
    """Every function of the contract that takes a loop, but those that any thread may call."""
    ptr, id_out = loop._core.ptr, ffi.new("uint64_t *")
    options = ffi.new("struct pl_options *")
    conn_calls = ("close", "shutdown", "pause", "resume", "drain", "queued", "fd")
    calls = {f"pl_conn_{name}": getattr(lib, f"pl_conn_{name}") for name in conn_calls}
    return {
        **{name: lambda call=call: call(ptr, ident) for name, call in calls.items()},  # type: ignore[misc]
        "pl_loop_tick": lambda: lib.pl_loop_tick(ptr, 0),
        "pl_loop_flush": lambda: lib.pl_loop_flush(ptr),
        "pl_loop_leave": lambda: lib.pl_loop_leave(ptr),
        "pl_watch": lambda: lib.pl_watch(ptr, fd, 1),
        "pl_watch (0)": lambda: lib.pl_watch(ptr, fd, 0),
        "pl_group_new": lambda: lib.pl_group_new(ptr, options, ffi.NULL),
        "pl_group_free": lambda: lib.pl_group_free(ptr, 0),
        "pl_listener_open": lambda: lib.pl_listener_open(ptr, 0, fd),
        "pl_listener_close": lambda: lib.pl_listener_close(ptr, fd),
        "pl_conn_open": lambda: lib.pl_conn_open(ptr, 0, fd, id_out),
        "pl_conn_send": lambda: lib.pl_conn_send(ptr, ident, b"x", 1),
        "pl_conn_write": lambda: lib.pl_conn_write(ptr, ident, b"x", 1),
        "pl_conn_abort": lambda: lib.pl_conn_abort(ptr, ident, 0),
        "pl_conn_feed": lambda: lib.pl_conn_feed(ptr, ident, b"x", 1, 0),
        "pl_conn_hold": lambda: lib.pl_conn_hold(ptr, 0),
    }


def remember(made: list[pyloop.Connection]) -> Callable[[], pyloop.Protocol]:
    """A handler that puts its connections into `made`."""

    class Handler(pyloop.Protocol):
        def connection_made(self, conn: pyloop.Connection) -> None:
            made.append(conn)

    return lambda: Handler()


def test_core_calls_of_another_thread_are_refused_while_it_runs(run: Any, loop: Any) -> None:
    async def main() -> None:
        made: list[pyloop.Connection] = []
        async with pyloop.Server(remember(made)) as server, peer_of(server) as (reader, _):
            await until(lambda: made)
            with socket.socket() as sock:
                for name, call in core_calls(loop, made[0].id, sock.fileno()).items():
                    exc = in_thread(lambda call=call: check(call()))
                    assert isinstance(exc, RuntimeError), name
                    assert "call_soon_threadsafe" in str(exc), name
                assert in_thread(lambda: lib.pl_loop_free(loop._core.ptr)) == -16, "EBUSY"
                assert in_thread(lambda: lib.pl_loop_enter(loop._core.ptr)) == -16, "EBUSY"
            assert in_thread(lambda: lib.pl_loop_wake(loop._core.ptr)) == 0
            assert in_thread(loop.stats).ticks > 0
            made[0].send(b"still well")
            assert await reader.readexactly(10) == b"still well"

    run(main())


CONNECTION_CALLS: dict[str, Callable[[pyloop.Connection], Any]] = {
    "send": lambda conn: conn.send(b"x"),
    "write": lambda conn: conn.write(b"x"),
    "pause_reading": lambda conn: conn.pause_reading(),
    "resume_reading": lambda conn: conn.resume_reading(),
    "close": lambda conn: conn.close(),
    "abort": lambda conn: conn.abort(),
    "broadcast": lambda conn: conn.server.broadcast(b"x"),
}


@pytest.mark.parametrize("name", CONNECTION_CALLS)
def test_connection_method_of_another_thread_is_refused(run: Any, name: str) -> None:
    async def main() -> None:
        made: list[pyloop.Connection] = []
        async with pyloop.Server(remember(made)) as server, peer_of(server) as (reader, _):
            await until(lambda: made)
            if name == "resume_reading":
                made[0].pause_reading()
            exc = in_thread(lambda: CONNECTION_CALLS[name](made[0]))
            assert isinstance(exc, RuntimeError), f"{name} was not refused: {exc!r}"
            assert "call_soon_threadsafe" in str(exc)
            assert not made[0].is_closing
            made[0].send(b"still well")
            assert await reader.readexactly(10) == b"still well"
            made[0].abort()

    run(main())


def test_watching_from_another_thread_is_refused(run: Any, loop: pyloop.Loop) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            exc = in_thread(lambda: loop.add_reader(sock, print))
            assert isinstance(exc, RuntimeError) and "call_soon_threadsafe" in str(exc)
            assert not loop.remove_reader(sock)

    run(main())


@pytest.mark.parametrize("what", ["reader", "writer"])
def test_unwatching_from_another_thread_is_refused_and_changes_nothing(
    run: Any, loop: Any, what: str
) -> None:
    add, remove = getattr(loop, f"add_{what}"), getattr(loop, f"remove_{what}")

    async def main() -> None:
        called = asyncio.Event()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            add(ours, called.set)
            exc = in_thread(lambda: remove(ours))
            assert isinstance(exc, RuntimeError) and "call_soon_threadsafe" in str(exc)
            theirs.send(b"x")
            called.clear()
            await asyncio.wait_for(called.wait(), TIMEOUT)
            assert remove(ours) is True
            assert remove(ours) is False
            called.clear()
            ticks = loop.stats().ticks
            await asyncio.sleep(0.05)  # long enough for a loop that spins to be seen
            assert loop.stats().ticks - ticks < 20 and not called.is_set()

    run(main())


def test_closing_a_running_loop_from_another_thread_is_refused(run: Any, loop: Any) -> None:
    async def main() -> None:
        assert isinstance(in_thread(loop.close), RuntimeError)
        await asyncio.sleep(0)

    run(main())


def test_loop_that_is_dropped_in_another_thread_is_freed_quietly(backend: str) -> None:
    made = [pyloop.Loop(backend)]
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        in_thread(lambda: [made.clear(), gc.collect()])


# ---- signals ----


@pytest.fixture
def wakeup() -> Iterator[socket.socket]:
    """A wakeup fd of the program's own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    yield theirs
    signal.set_wakeup_fd(before)
    ours.close()
    theirs.close()


def current_wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def test_wakeup_fd_is_the_loops_while_it_runs_and_restored_after(
    loop: pyloop.Loop, wakeup: socket.socket
) -> None:
    async def main() -> int:
        return current_wakeup_fd()

    assert loop.run_until_complete(main()) == lib.pl_loop_signal_fd(loop._core.ptr)
    assert current_wakeup_fd() == wakeup.fileno()


def test_wakeup_fd_is_restored_when_a_callback_raises(
    loop: pyloop.Loop, wakeup: socket.socket
) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    loop.call_soon(leave)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert current_wakeup_fd() == wakeup.fileno()


def test_loop_in_another_thread_leaves_the_wakeup_fd_alone(
    loop: pyloop.Loop, wakeup: socket.socket
) -> None:
    in_thread(lambda: loop.run_until_complete(asyncio.sleep(0)))
    assert current_wakeup_fd() == wakeup.fileno()


@pytest.mark.parametrize("added", ["before", "inside"])
def test_signal_handler_is_called_and_removed_inside_run(loop: pyloop.Loop, added: str) -> None:
    came: list[str] = []

    async def main() -> None:
        if added == "inside":
            loop.add_signal_handler(signal.SIGUSR1, came.append, "usr1")
        for count in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: len(came) == count)  # noqa: B023
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        assert current_wakeup_fd() == lib.pl_loop_signal_fd(loop._core.ptr)

    if added == "before":
        loop.add_signal_handler(signal.SIGUSR1, came.append, "usr1")
    loop.run_until_complete(main())
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    loop.close()
    assert signal.set_wakeup_fd(-1) == -1, "the fd of a closed loop is nobody's wakeup fd"


def test_signal_ends_the_wait_of_an_idle_loop(loop: pyloop.Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR2, loop.stop)
    killer = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR2))
    loop.call_soon(killer.start)
    loop.run_forever()
    killer.join(TIMEOUT)
    assert loop.remove_signal_handler(signal.SIGUSR2)


INTERRUPTED = {
    "serving": "serve(echo, sys.argv[1])",
    "waiting": "pyloop.run(forever(), backend=sys.argv[1])",
    "bare": "bare()",
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_ctrl_c_ends_an_idle_loop(backend: str, how: str) -> None:
    script = f"""if True:
    import asyncio, sys, pyloop
    from faults import echo, say, serve

    async def forever():
        say(pid=0)
        await asyncio.get_running_loop().create_future()

    def bare():
        loop = pyloop.Loop(sys.argv[1])
        try:
            loop.call_soon(lambda: say(pid=0))
            loop.run_forever()
        finally:
            loop.close()

    try:
        {INTERRUPTED[how]}
    except KeyboardInterrupt:
        say(interrupted=True)
    else:
        say(interrupted=False)
    """
    with Child(script, backend) as child:
        child.next()
        child.process.send_signal(signal.SIGINT)
        assert child.next() == {"interrupted": how != "serving"}
        assert child.finish() == 0
