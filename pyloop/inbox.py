"""The messages that a coroutine has not taken yet. csrc/fastpath/inbox.c has the twin."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from pyloop.errors import without_frames
from pyloop.fast import fastpath

if TYPE_CHECKING:
    from pyloop.connection import Connection

__all__ = ["CLOSED", "FULL", "PAUSED", "Inbox", "PythonInbox"]

# Why messages are not delivered now: bits of Connection._gate.
PAUSED, FULL, CLOSED = 1, 2, 4


def _cost(message: bytes) -> int:
    """Its bytes, or one: no number of empty messages fits."""
    return len(message) or 1


class Inbox:
    """Messages that a coroutine has not taken yet: at most read_limit bytes, or one message."""

    __slots__ = ("conn", "ended", "exc", "messages", "size", "waiter")

    def __init__(self, conn: Connection) -> None:
        self.conn: Connection | None = conn  # None once it is lost, so that no cycle stays
        self.messages: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.exc: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def push(self, message: bytes) -> None:
        """Take a message from dispatch; when full, the core holds the rest."""
        self.messages.append(message)
        self.size += _cost(message)
        self._wake()  # first: Ctrl-C may come in the middle of a pause
        if self.conn is not None and self.size >= self.conn._owner.read_limit:
            self.conn._pause(FULL)

    def end(self, exc: BaseException | None) -> None:
        """No more messages will come, because of `exc` or in good order."""
        self.ended = True
        if self.exc is None and exc is not None:
            self.exc = without_frames(exc)
        self._wake()

    def drop(self, exc: Exception) -> None:
        """This side has closed: nothing more is to be had."""
        self.messages.clear()
        self.size = 0
        self.ended, self.exc = True, exc

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> bytes | None:
        """Wait for a message; see Connection.receive."""
        if self.waiter is not None:
            raise RuntimeError("another receive() is already waiting on this connection")
        while not self.messages:
            if self.ended:
                _raise_end(self)
                return None
            assert self.conn is not None
            self.waiter = self.conn._owner.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.size -= _cost(message)
        conn = self.conn
        if conn is not None and conn._gate & FULL and self.size * 2 <= conn._owner.read_limit:
            conn._resume(FULL)
        return message


def _raise_end(inbox: Inbox) -> None:
    """Raise why there are no more messages, unless they ended in good order."""
    if inbox.exc is not None:
        if inbox.conn is not None:
            inbox.conn._end(inbox.exc)
        raise without_frames(inbox.exc)


PythonInbox = Inbox
if fastpath is not None:

    class _Inbox(fastpath.Inbox):  # type: ignore[misc]
        __slots__ = ()
        end, drop, _wake = Inbox.end, Inbox.drop, Inbox._wake

    Inbox = _Inbox  # type: ignore[misc]
    fastpath.use_inbox(Inbox, _raise_end)
