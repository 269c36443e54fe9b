"""What may be told of each callback: how long it took, to a hook and in debug mode.

Nothing here costs anything while nobody asks: a turn takes these ways instead of its own only
when there is a hook, or debug mode is on.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import base_events
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyloop.loop import CoreSelector

__all__ = ["Monitored", "SlowCallbackHook", "callback_name"]

SlowCallbackHook = Callable[[str, float, asyncio.Handle | None], object]


def callback_name(callback: Any) -> str:
    """Return the qualified name of a function, or of the coroutine whose task it drives."""
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        callback = task.get_coro()
    while isinstance(callback, functools.partial):
        callback = callback.func
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__


class Monitored(asyncio.SelectorEventLoop):
    """A loop whose slow callbacks can be told of."""

    _core: CoreSelector
    _ready: Any
    _debug: bool
    _current_handle: Any
    _slow_hook: SlowCallbackHook | None = None

    @property
    def slow_callback_hook(self) -> SlowCallbackHook | None:
        """None, or what is called with (name, seconds, handle) after each callback that took
        `slow_callback_duration` (asyncio's attribute, 0.1 s) or longer, debug mode or not.

        The name is the qualified one of the function, of a task's coroutine, or of a protocol's
        method. The handle is None for what the loop calls without one: handlers of connections.
        What the hook raises goes to the loop's exception handler.
        """
        return self._slow_hook

    @slow_callback_hook.setter
    def slow_callback_hook(self, hook: SlowCallbackHook | None) -> None:
        if hook is not None and not callable(hook):
            raise TypeError(f"slow_callback_hook: expected None or a callable, got {hook!r}")
        self._slow_hook = hook

    def _walk_watched(self) -> None:
        """Deliver what is left of the batch, and look at the clock for each event."""
        dispatch = self._core.dispatch

        def deliver(kind: int, slot: int, start: int, end: int) -> None:
            name, began = dispatch.name_of(kind, slot), self.time()
            dispatch.deliver(kind, slot, start, end)
            took = self.time() - began
            if took >= self.slow_callback_duration:
                self._tell_slow(name, took, None, f"<{name}>")

        dispatch.walk_by(deliver)

    def _run_watched(self, left: Iterable[Any]) -> None:
        """Run as many callbacks as are `left`, and look at the clock for each."""
        for _ in left:
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            callback, began = handle._callback, self.time()
            self._current_handle = handle
            try:
                handle._run()
            finally:
                self._current_handle = None
            took = self.time() - began
            if took >= self.slow_callback_duration:
                task = getattr(callback, "__self__", None)
                what = task if isinstance(task, asyncio.Task) else handle
                self._tell_slow(callback_name(callback), took, handle, what)
        handle = callback = task = what = None  # an exception that is kept keeps this frame

    def _tell_slow(
        self, name: str, took: float, handle: asyncio.Handle | None, what: object
    ) -> None:
        if self._debug:
            base_events.logger.warning(  # type: ignore[attr-defined]
                "Executing %s took %.3f seconds", what, took
            )
        if self._slow_hook is None:
            return
        try:
            self._slow_hook(name, took, handle)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            message = f"Exception in slow_callback_hook, told of {name}"
            self.call_exception_handler({"message": message, "exception": exc})
