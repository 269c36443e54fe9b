"""Handles made in one step each, and timers that keep their order.

asyncio makes a Handle through three calls; these are filled in where they are made (`running.py`).
"""

from __future__ import annotations

import asyncio
from asyncio import format_helpers
from typing import Any

__all__ = ["Handle", "TimerHandle", "report_failed"]


class Handle(asyncio.Handle):
    """A callback that `call_soon` has scheduled."""

    __slots__ = ()


class TimerHandle(asyncio.TimerHandle):
    """A callback that `call_later` or `call_at` has scheduled: of equal times, the earlier call is
    first. In a heap `asyncio.TimerHandle` says nothing of that."""

    __slots__ = ("_order",)

    _order: int
    _when: float
    _callback: Any
    _args: Any
    _loop: Any
    _scheduled: bool

    def __lt__(self, other: Any) -> bool:
        when, others = self._when, other._when
        return when < others or (when == others and self._order < getattr(other, "_order", 0))

    def cancel(self) -> None:
        loop = self._loop
        if loop._debug:
            super().cancel()
        elif not self._cancelled:
            self._cancelled = True
            self._callback = self._args = None
            if self._scheduled:
                loop._timer_handle_cancelled(self)


def report_failed(handle: Any, exc: BaseException) -> None:
    """Tell the loop's exception handler what a callback raised, as Handle._run does.

    Without debug mode, that is: only there has a handle more to tell.
    """
    what = format_helpers._format_callback_source(handle._callback, handle._args)
    context = {"message": f"Exception in callback {what}", "exception": exc, "handle": handle}
    handle._loop.call_exception_handler(context)
