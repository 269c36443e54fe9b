"""Waits for what no file descriptor tells of, with a time-out, beside signals and loops.

A wait is done in slices of 100 ms. Between two of them signal handlers run, and it is seen that
somebody has closed the thing, or no longer wants it; so nothing has to wake a wait to end it, and a
signal that comes in the instant before the thread sleeps is late, and not lost.

An attempt is one slice: `attempt(ns)` waits at most so long, and returns what it got, or None when
there is nothing yet or a signal came.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeAlias, TypeVar

__all__ = ["NO_END", "SLICE_NS", "nanoseconds", "wait", "wait_async"]

T = TypeVar("T")
Attempt: TypeAlias = Callable[[int], T | None]

NO_END = -1
"""What the core takes for a time-out of None."""
SLICE_NS = 100_000_000

_NS_PER_S = 1_000_000_000
_LONGEST_S = 1_000_000_000  # 31 years, so that ns fit 64 bits; beyond, there is no end


def nanoseconds(timeout: float | None) -> int:
    """Return seconds as ns, rounded up, for the core; NO_END for None.

    Raises:
        TypeError: not a number.
        ValueError: negative, or NaN.
    """
    try:
        if timeout is None or timeout > _LONGEST_S:
            return NO_END
    except TypeError:
        raise TypeError(f"timeout must be seconds or None, not {timeout!r}") from None
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, not {timeout}")
    return math.ceil(timeout * _NS_PER_S)


def _slices(timeout_ns: int) -> Iterator[int]:
    """Yield how long to wait next, at least once, until the time has passed."""
    left = timeout_ns
    deadline = time.monotonic_ns() + left
    while timeout_ns == NO_END:
        yield SLICE_NS
    while True:
        yield min(left, SLICE_NS)
        left = deadline - time.monotonic_ns()
        if left <= 0:
            return


def wait(attempt: Attempt[T], timeout: float | None) -> T | None:
    """Attempt until there is something; None when `timeout` seconds have passed (PEP 475)."""
    timeout_ns = nanoseconds(timeout)
    result = attempt(0)  # mostly there is something, and no need of a clock
    if result is None and timeout_ns != 0:
        for ns in _slices(timeout_ns):
            result = attempt(ns)
            if result is not None:
                break
    return result


async def wait_async(
    attempt: Attempt[T], undo: Callable[[T], None], timeout: float | None
) -> T | None:
    """Do the same in a coroutine: a thread waits, if there is anything to wait for.

    What the attempt got is either returned or undone, also when the task is cancelled at that
    very moment or the loop is closed. The thread ends at most a slice after the wait.

    Args:
        attempt: is called in both threads.
        undo: gives back what came too late; in either thread, and must not block.

    Raises:
        RuntimeError: there can be no more threads.
    """
    timeout_ns = nanoseconds(timeout)
    result = attempt(0)
    if result is not None or timeout_ns == 0:
        return result
    pending = _Pending(attempt, undo, timeout_ns)
    try:
        return await pending.future
    except BaseException:  # GeneratorExit, too: a coroutine that nobody runs any more
        pending.abandon()
        raise


class _Pending(Generic[T]):
    """A wait that a thread does for a coroutine.

    What the thread got is in a box, until the loop takes it out for the coroutine, or the thread
    does to give it back.
    """

    def __init__(self, attempt: Attempt[T], undo: Callable[[T], None], timeout_ns: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T | None] = self._loop.create_future()
        self._attempt, self._undo = attempt, undo
        self._timeout_ns = timeout_ns
        self._box: list[T] = []
        self._unwanted = False
        self._settled = threading.Event()
        # No daemon: the interpreter waits for its end, and so for what it may have to give back.
        threading.Thread(target=self._run, name="pyloop-wait", daemon=False).start()

    # ---- in the thread ----

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._wait()
        except BaseException as exc:
            error = exc
        if not self._is_over():
            self._offer(error)
        while self._box:
            self._undo(self._box.pop())

    def _is_over(self) -> bool:
        """Will nobody ever ask for the result?"""
        if self._unwanted or self._loop.is_closed():
            return True
        # The interpreter is ending, unless a loop in another thread keeps it.
        return not threading.main_thread().is_alive() and not self._loop.is_running()

    def _wait(self) -> None:
        for ns in _slices(self._timeout_ns):
            if self._is_over():
                return
            result = self._attempt(ns)
            if result is not None:
                self._box.append(result)
                return

    def _offer(self, error: BaseException | None) -> None:
        """Tell the loop, and stay until it has listened."""
        try:
            self._loop.call_soon_threadsafe(self._settle, error)
        except RuntimeError:  # it was closed just now
            return
        while not self._settled.wait(SLICE_NS / _NS_PER_S) and not self._is_over():
            pass

    # ---- in the loop ----

    def _settle(self, error: BaseException | None) -> None:
        if not self.future.done() and not self._unwanted:  # else the thread gives back
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(self._box.pop() if self._box else None)
        self._settled.set()

    def abandon(self) -> None:
        """Nobody wants the result any more; one that is here is given back at once."""
        self._unwanted = True
        future = self.future
        if future.done() and not future.cancelled() and future.exception() is None:
            result = future.result()
            if result is not None:
                self._undo(result)
