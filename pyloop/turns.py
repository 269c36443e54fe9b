"""Coroutines of one loop that wait for a ring: they take turns, in the order in which they came.

Only the first of a queue tries and arms the ring; the bell, an fd, wakes it when it is worth trying
again, and when it leaves, however that is, it wakes the next one. What it got it takes along
without an await in between, so a cancelled task never has a message that is lost with it.

Knows nothing of messages: an attempt is a function. Works on every asyncio loop with add_reader.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pyloop.core import check, lib

__all__ = ["GET", "PUT", "Turns"]

T = TypeVar("T")

PUT, GET = 0, 1
_BUSY_SECONDS = 0.01


class _Ticket:
    """A place in a queue, and the future it sleeps on."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.future and not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_result(None)


class Turns:
    """Those of the running loop who wait to put, and those who wait to get.

    Args:
        ring: kept alive as long as its bell may be heard.
        loop: the running one; not kept alive.

    Raises:
        OSError: EMFILE and its kin: there is no fd to hear the bell by.
    """

    def __init__(self, ring: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._close = os.close  # at the interpreter's end the module may be empty
        self._latch = -1
        self._latch = check(lib.pl_ring_latch(ring))
        self._ring = ring
        self._loop = weakref.ref(loop)
        self._queues: tuple[deque[_Ticket], deque[_Ticket]] = (deque(), deque())
        self._is_listening = False

    def __del__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Close the fd; in a forked child the parent's loop goes on with its own."""
        latch, self._latch = self._latch, -1
        if latch >= 0:
            self._close(latch)

    async def wait(
        self,
        side: int,
        attempt: Callable[[], T],
        is_settled: Callable[[T], bool],
        arm: Callable[[], int],
    ) -> T:
        """Attempt until the result is settled.

        Args:
            side: PUT or GET: whose queue to join.
            attempt: must not block for long; what it raises ends the wait.
            arm: asks the ring to ring: 0 when it will, 1 when there is no need.
        """
        queue, ticket = self._queues[side], _Ticket()
        queue.append(ticket)
        try:
            while True:
                if queue[0] is ticket:
                    self._listen()
                    result = attempt()
                    if is_settled(result):
                        return result
                    code = arm()
                    if code:  # another one was quicker, or keeps the lock
                        await asyncio.sleep(0 if code > 0 else _BUSY_SECONDS)
                        continue
                ticket.future = asyncio.get_running_loop().create_future()
                await ticket.future
        finally:
            self._leave(queue, ticket)

    def has_waiters(self, side: int) -> bool:
        """Does anybody wait to put, or to get?"""
        return bool(self._queues[side])

    def _leave(self, queue: deque[_Ticket], ticket: _Ticket) -> None:
        queue.remove(ticket)
        if queue:
            queue[0].wake()
        elif not any(self._queues):
            self._rest()

    def _listen(self) -> None:
        """Hear the bell from now on, and forget that it rang before."""
        if not self._is_listening:
            lib.pl_ring_quiet(self._latch)
            asyncio.get_running_loop().add_reader(self._latch, self._heard)
            self._is_listening = True

    def _heard(self) -> None:
        lib.pl_ring_quiet(self._latch)
        for queue in self._queues:
            if queue:
                queue[0].wake()

    def _rest(self) -> None:
        loop, self._is_listening = self._loop(), False
        if loop and not loop.is_closed() and self._latch >= 0:
            loop.remove_reader(self._latch)
