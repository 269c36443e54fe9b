"""Tell of a callback that blocks its loop while it does, from a thread beside it.

The loop helps by nothing that costs it anything: it says since when it has not waited
(`running_since`, which a supervisor reads as well), how many events of the batch and how many
callbacks are left. As long as none of the three changes, one and the same callback runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from operator import length_hint
from types import FrameType
from typing import TYPE_CHECKING, Any

from pyloop.dispatch import Dispatch
from pyloop.monitors import Monitored, callback_name
from pyloop.protocol import log
from pyloop.running import Running
from pyloop.walk import PythonWalk

if TYPE_CHECKING:
    from pyloop.loop import Loop

__all__ = ["BlockWatch", "check_threshold"]

LOOKS = 4
"""How often a callback must be seen before it is told of, over block_threshold seconds."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.001, 1.0
_JOIN_SECONDS = 1.0

_RUNNERS = frozenset(
    function.__code__
    for function in (
        *(Running._run_once, Running._run_ready, Monitored._run_watched),
        *(PythonWalk.walk, Dispatch.deliver),
        asyncio.BaseEventLoop.run_forever,  # the fast path has no frames
    )
)
"""What calls callbacks: the stack beyond it is the loop's."""
_OURS = tuple(
    os.path.dirname(module.__file__ or "") + os.sep for module in (asyncio, sys.modules["pyloop"])
)

_Place = tuple[int, int, int]


def check_threshold(seconds: float | None) -> float | None:
    """Return a block_threshold. Raises ValueError or TypeError that names it."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"block_threshold: expected seconds or None, got {seconds!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"block_threshold: expected seconds above 0, got {seconds!r}")
    return seconds


class BlockWatch:
    """Watches a loop while it runs.

    Its thread is a daemon, ends with the run, and is not there across a fork that pyloop makes.
    """

    def __init__(self, loop: Loop, threshold: float) -> None:
        self._loop, self._threshold = loop, threshold
        self._interval = min(max(threshold / LOOKS, _SHORTEST_SECONDS), _LONGEST_SECONDS)
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Watch the loop that the calling thread is about to run, or runs."""
        self._pid = os.getpid()
        self._stop = threading.Event()
        arguments = (self._stop, threading.get_ident())
        thread = threading.Thread(
            target=self._watch, args=arguments, name="pyloop-block-watch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:  # there can be no more threads; the loop can do without
            log.warning("nobody watches for callbacks that block: %s", exc)
        else:
            self._thread = thread

    def stop(self) -> None:
        """Watch no more. A forked child has no such thread, and lets go of it."""
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._stop.set()
            thread.join(_JOIN_SECONDS)  # it may be in a log handler that waits for something

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Have no thread in this block, in which the process forks."""
        watched = self._thread is not None
        self.stop()
        try:
            yield
        finally:
            if watched:
                self.start()

    # ---- in the thread ----

    def _place(self) -> _Place | None:
        """Where the loop is: another callback is another place. None while it waits."""
        loop = self._loop
        since = loop._counters.running_since
        if not since:
            return None
        return since, loop._core.dispatch.left, length_hint(loop._left) + loop._calls_left

    def _watch(self, stop: threading.Event, thread_id: int) -> None:
        seen: _Place | None = None
        began, looks, told = 0.0, 0, ""
        while not stop.wait(self._interval):
            place, now = self._place(), time.monotonic()
            if place != seen:
                self._tell_end(told, now - began)
                seen, began, looks, told = place, now, 0, ""
                continue
            looks += 1
            if place and not told and looks >= LOOKS and now - began >= self._threshold:
                told = self._tell(place, thread_id, now - began)
        self._tell_end(told, time.monotonic() - began)

    def _tell(self, place: _Place, thread_id: int, seconds: float) -> str:
        """Log what blocks. Returns its name; "" when it has just ended."""
        name, stack = _describe(self._loop, sys._current_frames().get(thread_id))
        if self._place() != place:
            return ""  # and the stack may be another callback's
        log.warning(
            "%s has blocked the loop for %.3g s (block_threshold=%g); it is in:\n%s",
            *(name, seconds, self._threshold, stack),
        )
        return name

    def _tell_end(self, name: str, seconds: float) -> None:
        if name:
            log.warning("%s blocked the loop for %.3g s, and has ended", name, seconds)


def _describe(loop: Loop, frame: FrameType | None) -> tuple[str, str]:
    """Return the name of what runs in a frame and those that called it, and their stack."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code not in _RUNNERS:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    users = list(itertools.dropwhile(_is_ours, frames)) or frames
    lines = ((each, each.f_lineno) for each in users)
    stack = "".join(traceback.StackSummary.extract(lines).format()).rstrip()
    return _name(loop, users, frame), stack or "  (code without Python frames)"


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _name(loop: Loop, users: list[FrameType], runner: FrameType | None) -> str:
    """Return the name of a task and its coroutine, or of the first function that was called."""
    task = None
    with contextlib.suppress(RuntimeError):
        task = asyncio.current_task(loop)
    if task is not None:
        return f"{callback_name(task.get_coro())} ({task.get_name()})"
    if users:
        return users[0].f_code.co_qualname
    handle: Any = loop._handle_now or (runner.f_locals.get("handle") if runner else None)
    return callback_name(getattr(handle, "_callback", None)) if handle else "a callback"
