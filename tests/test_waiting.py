"""wait_async, acquire_async: a thread waits, not the loop; what comes too late is given back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels import TIMEOUT
from faults import Child
from sharing import all_waiters_end, child, kill, memory, until, waiters

import pyloop
from pyloop import Semaphore, SharedLock


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert all_waiters_end()


async def started(coro: Any) -> asyncio.Task[Any]:
    """Start a task; return when its thread waits."""
    before = set(waiters())
    task = asyncio.ensure_future(coro)
    while not set(waiters()) - before:
        await asyncio.sleep(0)
    return task


async def cancelled(task: asyncio.Task[Any]) -> bool:
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def test_token_that_is_there_needs_no_thread(run: Callable[..., Any]) -> None:
    sem, lock = Semaphore(1), SharedLock()

    async def main() -> None:
        assert await sem.wait_async()
        assert not await sem.wait_async(0)
        assert await lock.acquire_async() == "ok"
        assert await lock.acquire_async(0) is None
        assert not waiters()

    run(main())


def test_others_run_while_one_waits(run: Callable[..., Any]) -> None:
    sem, lock = Semaphore(0), SharedLock()
    lock.acquire()

    async def main() -> None:
        tokens = [await started(sem.wait_async(TIMEOUT)) for _ in range(3)]
        held = await started(lock.acquire_async())
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in (*tokens, held))
        for _ in tokens:
            sem.post()
        lock.release()
        assert await asyncio.gather(*tokens, held) == [True, True, True, "ok"]

    run(main())
    assert sem.value == 0 and lock.owner == os.getpid()


def test_time_out_says_so_and_takes_nothing(run: Callable[..., Any]) -> None:
    sem, lock = Semaphore(0), SharedLock()
    lock.acquire()
    assert run(sem.wait_async(0.02)) is False
    assert run(lock.acquire_async(0.02)) is None
    assert all_waiters_end()
    sem.post()
    assert sem.value == 1


def test_async_block_has_a_token_and_gives_it_back(run: Callable[..., Any]) -> None:
    sem, lock = Semaphore(1), SharedLock()

    async def main() -> None:
        async with sem as entered, lock as how:
            assert entered is sem and sem.value == 0
            assert how == "ok" and lock.owner == os.getpid()
        assert sem.value == 1 and lock.owner is None

    run(main())


def test_hundred_cancels_lose_no_token_and_leave_no_thread(run: Callable[..., Any]) -> None:
    """At any moment: before the thread waits, while it does, and after it got the token."""
    sem = Semaphore(0)

    async def main() -> None:
        for number in range(100):
            task = asyncio.ensure_future(sem.wait_async())
            for _ in range(number % 5):
                await asyncio.sleep(0)
            sem.post()
            for _ in range(number % 7):
                await asyncio.sleep(0)
            if not await cancelled(task):
                assert task.result() is True
                sem.post()
            assert sem.wait(TIMEOUT)  # threads of earlier ones may have it for an instant

    run(main())
    assert all_waiters_end() and sem.value == 0


@pytest.mark.parametrize("turns", [0, 1])
def test_token_that_is_in_hand_at_the_cancel_is_given_back(
    turns: int, run: Callable[..., Any]
) -> None:
    """Turn 0: the loop has not heard of it yet. Turn 1: it has, and the task has not."""
    sem = Semaphore(0)

    async def main() -> None:
        task = await started(sem.wait_async())
        sem.post()
        until(lambda: sem.value == 0)
        until(lambda: len(asyncio.get_running_loop()._ready) > 0)  # type: ignore[attr-defined]
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not task.done()
        assert await cancelled(task)
        until(lambda: sem.value == 1)

    run(main())
    assert all_waiters_end() and sem.value == 1


def test_recovered_lock_whose_taker_is_cancelled_is_recovered_by_the_next(
    run: Callable[..., Any],
) -> None:
    lock = SharedLock()

    async def main() -> None:
        with child(lambda: lock.acquire() and signal.pause()) as pid:
            until(lambda: lock.owner == pid)
            task = await started(lock.acquire_async())
            kill(pid)
        until(lambda: lock.owner == os.getpid())
        assert await cancelled(task)

    run(main())
    assert all_waiters_end() and lock.owner is None
    assert lock.acquire() == "recovered"


def unfinished(loop: asyncio.AbstractEventLoop, sem: Semaphore, hold: bool) -> None:
    """Close `loop` while a task waits; with `hold`, just when the thread has a token for it."""

    async def main() -> None:
        task = await started(sem.wait_async())
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        if hold:
            sem.post()
            until(lambda: sem.value == 0)
            until(lambda: len(loop._ready) > 0)  # type: ignore[attr-defined]
        loop.stop()

    task = loop.create_task(main())
    loop.run_forever()
    assert task.done() or hold
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


@pytest.mark.parametrize("hold", [False, True])
def test_closed_loop_gives_the_token_back(backend: str, hold: bool) -> None:
    sem = Semaphore(0)
    unfinished(pyloop.new_event_loop(backend=backend), sem, hold)
    assert all_waiters_end()
    assert sem.value == hold
    sem.post()
    assert sem.value == hold + 1


def test_any_loop_of_asyncio_will_do() -> None:
    async def main() -> bool:
        task = await started(sem.wait_async())
        sem.post()
        return await task

    sem = Semaphore(0)
    with asyncio.Runner() as runner:
        assert runner.run(main()) is True
    unfinished(asyncio.new_event_loop(), sem, True)
    until(lambda: sem.value == 1)


def test_close_ends_the_wait(run: Callable[..., Any]) -> None:
    async def main() -> None:
        sem, lock = Semaphore(0), SharedLock()
        lock.acquire()
        tasks = await started(sem.wait_async()), await started(lock.acquire_async())
        sem.close()
        lock.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(end) for end in ends] == ["the semaphore is closed", "the lock is closed"]

    run(main())


def test_token_is_given_back_also_to_a_closed_semaphore(run: Callable[..., Any]) -> None:
    async def main() -> None:
        task = await started(one.wait_async())
        other.post()
        until(lambda: other.value == 0)
        one.close()
        assert await cancelled(task)

    with memory() as shm:
        one = Semaphore(0, memory=shm, create=True)
        other = Semaphore(memory=shm, create=False)
        run(main())
        assert all_waiters_end() and other.value == 1


def test_no_more_threads_is_an_error_and_takes_nothing(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sem = Semaphore(0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run(sem.wait_async())
    sem.post()
    assert sem.value == 1


PENDING = """if True:
    import asyncio, threading, pyloop
    from faults import say

    async def main():
        global task
        task = asyncio.ensure_future(sem.wait_async())
        while threading.active_count() == 1:
            await asyncio.sleep(0)
        say(waiting=True)

    sem = pyloop.Semaphore(0)
    loop = pyloop.new_event_loop()
    loop.run_until_complete(main())
"""
"""It ends with a task that waits, on a loop that nobody closes."""

LATE_LOOP = """if True:
    import asyncio, threading, time, pyloop
    from faults import say

    def serve():
        async def main():
            while threading.main_thread().is_alive():
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.25, sem.post)
            return await sem.wait_async()

        try:
            say(result=asyncio.run(main()))
        except RuntimeError as exc:  # Python 3.12 and later start no thread then
            say(result="interpreter shutdown" in str(exc))

    sem = pyloop.Semaphore(0)
    threading.Thread(target=serve).start()
"""


def test_interpreter_ends_while_somebody_waits() -> None:
    with Child(PENDING) as child:
        assert child.next() == {"waiting": True}
        assert child.process.wait(TIMEOUT) == 0
        assert "Traceback" not in child.errors()


def test_loop_that_outlives_the_main_thread_goes_on_waiting() -> None:
    with Child(LATE_LOOP) as child:
        assert child.next() == {"result": True}
        assert child.finish() == 0
