"""What comes to one subscriber of a bus: messages, and how many it missed, in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pyloop.options import check_hook, check_size
from pyloop.protocol import log

__all__ = ["Missed", "Subscription"]

LIMIT_BYTES = 1 << 20
_ITEM_BYTES = 64
"""What an item counts in addition to its bytes, so that many short ones are bounded too."""
_REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages of any topic that a subscriber did not get, before what comes next."""

    count: int | None
    """How many; None: nobody knows."""


class Subscription:
    """A subscriber: an async iterator of (topic, message) and Missed, or a callback's.

        async with bus.subscribe("chat.") as messages:
            async for item in messages: ...

    The block is entered when what anybody publishes from now on is heard; see `ready`. Belongs to
    the loop's thread.

    Attributes:
        prefix: what its topics begin with.
    """

    def __init__(
        self,
        prefix: str,
        callback: Callable[[str, bytes], object] | None,
        on_missed: Callable[[Missed], object] | None,
        limit: int,
        leave: Callable[[Subscription], None],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected a str, got {prefix!r}")
        self.prefix = prefix
        self._callback = check_hook("callback", callback, plain=True)
        self._on_missed = check_hook("on_missed", on_missed, plain=True)
        self._limit = check_size("limit", limit)
        if on_missed is not None and callback is None:
            raise ValueError("on_missed: expected a callback beside it; an iterator yields Missed")
        self._leave, self._ready = leave, ready
        self._queue: deque[tuple[str, bytes] | Missed] = deque()
        self._size = 0
        self._lost = Missed(0)  # since the last item of the queue
        self._report: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    # ---- for the subscriber ----

    async def ready(self) -> None:
        """Wait until what anybody publishes from now on is heard here.

        Over shared memory that is so at once; a server elsewhere must have heard of it.
        """
        await self._ready()

    def close(self) -> None:
        """Hear no more; an iteration ends, without what was waiting. Again: does nothing."""
        if not self._closed:
            self._end()
            self._leave(self)

    async def __aenter__(self) -> Subscription:
        try:
            await self._ready()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        if self._callback is not None:
            raise TypeError("a subscription with a callback cannot be iterated")
        return self

    async def __anext__(self) -> tuple[str, bytes] | Missed:
        if self._waiter is not None:
            raise RuntimeError("another task is already waiting on this subscription")
        while not self._queue and self._lost.count == 0:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._next()

    # ---- for the bus ----

    def _take(self, topic: str, message: bytes) -> None:
        """Have a message that begins with the prefix."""
        if self._closed:
            return
        if self._callback is not None:
            self._call(self._callback, topic, message)
            return
        size = len(topic) + len(message) + _ITEM_BYTES
        if self._queue and self._size + size > self._limit:
            self._lose(1)
            return
        if self._lost.count != 0:
            self._queue.append(self._lost)
            self._lost = Missed(0)
        self._queue.append((topic, message))
        self._size += size
        self._wake()

    def _miss(self, count: int | None) -> None:
        """So many were lost before they came here."""
        if self._closed:
            return
        if self._on_missed is not None:
            self._call(self._on_missed, Missed(count))
            return
        self._lose(count)
        if self._callback is None:
            self._wake()
        elif self._report is None:
            loop = asyncio.get_running_loop()
            self._report = loop.call_later(_REPORT_SECONDS, self._log_lost)

    def _end(self) -> None:
        """Hear no more."""
        self._closed = True
        if self._report is not None:
            self._report.cancel()
            self._log_lost()
        self._queue.clear()
        self._lost = Missed(0)
        self._wake()

    # ---- inside ----

    def _lose(self, count: int | None) -> None:
        known = self._lost.count
        self._lost = Missed(None if count is None or known is None else known + count)

    def _log_lost(self) -> None:
        """Say what a callback that has no on_missed has missed, once a second at most."""
        self._report = None
        count = "an unknown number of" if self._lost.count is None else self._lost.count
        log.warning("a subscriber of %r missed %s messages", self.prefix, count)
        self._lost = Missed(0)

    def _next(self) -> tuple[str, bytes] | Missed:
        if not self._queue:
            lost, self._lost = self._lost, Missed(0)
            return lost
        item = self._queue.popleft()
        if not isinstance(item, Missed):
            self._size -= len(item[0]) + len(item[1]) + _ITEM_BYTES
        return item

    def _call(self, callback: Callable[..., object], *args: object) -> None:
        try:
            callback(*args)
        except (Exception, asyncio.CancelledError):  # whose cancelled future is not our end
            log.exception("%r of a subscriber of %r raised", callback, self.prefix)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_result(None)
