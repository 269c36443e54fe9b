"""The loop's own turn: wait, dispatch, timers, callbacks. And what is scheduled for it.

asyncio's `_run_once` does the same through a selector; this one calls the core. A timer fires when
the loop's clock has reached its time, and not before: the stdlib's may be early by the
clock's resolution. csrc/fastpath/turn.c does the same in C, and leaves to this what is rare.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from itertools import repeat
from typing import Any, TypeVarTuple

from pyloop.core import lib
from pyloop.fast import fastpath
from pyloop.handles import Handle, TimerHandle, report_failed
from pyloop.monitors import Monitored

__all__ = ["Running", "Turn", "wait_ns"]

_Ts = TypeVarTuple("_Ts")
_LONGEST_WAIT_NS = 1 << 62
_CANCELLED_MIN = 50
"""Cancelled timers that may stay where they are, however few others there are."""
_turn = lib.pl_loop_turn
_new: Callable[[Any], Any] = object.__new__
_next_order = itertools.count().__next__


def wait_ns(seconds: float) -> int:
    """Return seconds as the core wants them: whole nanoseconds, never too few."""
    if seconds <= 0:
        return 0
    if seconds >= _LONGEST_WAIT_NS / 1e9:
        return _LONGEST_WAIT_NS
    return -int(-seconds * 1_000_000_000 // 1)


class Running(Monitored):
    """A loop that turns."""

    _scheduled: list[Any]
    _timer_cancelled_count: int
    _counters: Any
    _closed: bool
    _stopping: bool
    _waiting = False
    """May the loop's thread be waiting, or about to? Who adds a callback then must wake it."""
    _ran = 0
    """Callbacks that the core has not counted yet."""
    _left: Any = repeat(None, 0)
    """Its length is how many callbacks of this run are still to be run."""
    _calls_left = 0
    """The same, of the fast path's own runs."""
    _many = False
    """May the fast path's next `_run_once` turn until the loop stops?"""
    _handle_now: Any = None
    """What the fast path runs at the moment."""

    time: Callable[[], float] = staticmethod(time.monotonic)

    # ---- scheduling ----

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self._debug or self._closed:
            traced = super().call_soon(callback, *args, context=context)
            del traced._source_traceback[-1]  # type: ignore[attr-defined]
            return traced
        handle = _new(Handle)
        handle._callback = callback
        handle._args = args
        handle._loop = self
        handle._context = copy_context() if context is None else context
        handle._cancelled = False
        handle._repr = handle._source_traceback = None
        self._ready.append(handle)
        return handle  # type: ignore[no-any-return]

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if delay is None:
            raise TypeError("delay must not be None")
        return self._schedule(self.time() + delay, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if when is None:
            raise TypeError("when cannot be None")
        return self._schedule(when, callback, args, context)

    def _schedule(
        self, when: float, callback: Any, args: tuple[Any, ...], context: Context | None
    ) -> TimerHandle:
        if when != when:
            raise ValueError("a timer's time is NaN: expected seconds")
        if self._debug or self._closed:
            timer = self._traced_timer(when, callback, args, context)
        else:
            timer = _new(TimerHandle)
            timer._callback = callback
            timer._args = args
            timer._loop = self
            timer._context = copy_context() if context is None else context
            timer._cancelled = False
            timer._repr = timer._source_traceback = None
            timer._when = when
        if self._timer_cancelled_count > _CANCELLED_MIN:
            self._drop_cancelled()
        timer._order = _next_order()
        timer._scheduled = True
        heappush(self._scheduled, timer)
        return timer  # type: ignore[no-any-return]

    def _traced_timer(self, when: float, callback: Any, args: Any, context: Any) -> Any:
        self._check_closed()  # type: ignore[attr-defined]
        self._check_thread()  # type: ignore[attr-defined]
        self._check_callback(callback, "call_at")  # type: ignore[attr-defined]
        timer: Any = TimerHandle(when, callback, args, self, context)
        del timer._source_traceback[-3:]  # of whoever scheduled it, not of this class
        return timer

    def _drop_cancelled(self) -> None:
        """Let go of cancelled timers, if they are more than the others.

        Not where they are cancelled: that may be in a finalizer, in the middle of a heappush.
        """
        scheduled = self._scheduled
        if self._timer_cancelled_count * 2 > len(scheduled):
            for timer in scheduled:
                timer._scheduled = not timer._cancelled
            scheduled[:] = [timer for timer in scheduled if timer._scheduled]
            heapify(scheduled)
            self._timer_cancelled_count = 0

    # ---- the turn ----

    def _run_once(self) -> None:
        ready, core = self._ready, self._core
        dispatch = core.dispatch
        if not dispatch.unfinished:  # else an exception left the last walk
            timeout = 0 if ready or self._stopping else self._time_left()
            try:
                count = _turn(core.ptr, timeout, self._ran)
                self._waiting = False
                self._ran = 0
                if count:
                    core.check(count)
                    dispatch.begin(count)
            except BaseException:  # of a signal handler, maybe: nobody tells these events again
                dispatch.begin_rest(self._counters.events)
                raise
        watched = self._debug or self._slow_hook is not None
        run = self._run_watched if watched else self._run_ready
        if dispatch.unfinished:
            if ready:  # programs for asyncio rely on it: what was scheduled first runs first
                run(self._begin_run())
            if watched:
                self._walk_watched()
            else:
                dispatch.walk()
        if self._scheduled:
            self._take_due()
        run(self._begin_run())

    def _begin_run(self) -> Any:
        # Only those that are there now: what they add comes after another look at the fds.
        count = len(self._ready)
        self._ran += count
        self._left = left = repeat(None, count)
        return left

    def _may_wait(self) -> bool:
        """Have those that add a callback from now on wake the loop. False: one is there already."""
        # In this order: another thread first adds to _ready, then looks whether it must wake.
        self._waiting = True
        return not self._ready

    def _time_left(self) -> int:
        """Return for how long the core may wait, in nanoseconds; -1 is without end."""
        if not self._may_wait():
            return 0
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heappop(scheduled)._scheduled = False
        return wait_ns(scheduled[0]._when - self.time()) if scheduled else -1

    def _take_due(self) -> None:
        if self._timer_cancelled_count > _CANCELLED_MIN:
            self._drop_cancelled()
        scheduled, ready, now = self._scheduled, self._ready, self.time()
        while scheduled and scheduled[0]._when <= now:
            timer = heappop(scheduled)
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                ready.append(timer)

    def _run_ready(self, left: Any) -> None:
        """Run as many callbacks as are `left`."""
        popleft = self._ready.popleft
        for _ in left:
            handle = popleft()
            if handle._cancelled:
                continue
            kind = type(handle)
            if kind is Handle or kind is TimerHandle:
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    report_failed(handle, exc)
            else:  # asyncio's, or a class that has its own idea of it
                handle._run()
        handle = None  # an exception that is kept somewhere keeps this frame


class Turn:
    """What stands before Running in a Loop without the fast path."""

    __slots__ = ()

    def _use_core(self, ptr: Any, walk: Any) -> None:
        """Have a core, and the walk over its batches; ffi.NULL: no longer."""


if fastpath is not None:
    Turn = fastpath.Turn  # type: ignore[misc]
    fastpath.use_running(
        Running.call_soon,
        Running.call_soon_threadsafe,
        Running.call_later,
        Running.call_at,
        Running._run_once,
        asyncio.SelectorEventLoop.create_task,
        report_failed,
    )
