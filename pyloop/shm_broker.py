"""Carry a bus through shared memory: a Feed, which is a broadcast ring of the core, and its reader.

    publish --> Feed --bell--> ShmBroker, on the loop --> hear, missed

Publishing takes no loop and waits for no reader. A reader that is slower than the ring is large
is told how many messages it missed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import weakref
from typing import Any

from pyloop.broker import Broker, Hear, Missed, decode_topic, encode_topic
from pyloop.core import check, failure, ffi, lib
from pyloop.protocol import log

__all__ = ["Feed", "ShmBroker"]

_HEAD = struct.Struct("=QII")  # struct pl_feed_record
_READ_BYTES = 64 * 1024
_READS = 16
"""In one turn of the loop, so that it reads more than its own handlers publish in a turn."""
_RETRY_SECONDS = 0.1
_feeds: weakref.WeakSet[Feed] = weakref.WeakSet()


def _padded(size: int) -> int:
    return int(-(-size // lib.PL_FEED_ALIGN) * lib.PL_FEED_ALIGN)


class Feed:
    """A broadcast ring in shared memory; a forked child has it too.

    Attributes:
        name: under which other programs find it; "" for none.
        max_message: bytes of a topic and a message together, at most.
    """

    def __init__(self, ptr: Any, name: str) -> None:
        self._ptr = ffi.gc(ptr, lib.pl_feed_free)
        self.name = name
        self.capacity = int(lib.pl_feed_capacity(ptr))
        self.max_message = int(lib.pl_feed_most(ptr))
        _feeds.add(self)

    @classmethod
    def make(cls, name: str, capacity: int) -> Feed:
        """Make one of so many bytes; with a name, attach to the one that is there, if any.

        Raises:
            OSError: there is no memory, or the name is somebody else's.
            ValueError: something else has that name, or it cannot be one.
        """
        where = ffi.new("struct pl_feed **")
        try:
            if name:
                while (rc := lib.pl_feed_open(name.encode(), capacity, where)) == -errno.EINTR:
                    pass  # Python has run its signal handlers
                check(rc)
            else:
                check(lib.pl_feed_new(capacity, where))
        except ValueError as exc:
            raise ValueError(f"shm://{name}: {exc}") from None
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                what = 'expected a name of 1 to 200 bytes that does not end in ".bell"'
                raise ValueError(f"shm://{name}: {what}") from None
            what = f"cannot share {capacity} bytes of memory as shm://{name}: {exc.strerror}"
            raise OSError(exc.errno, what) from None
        return cls(where[0], name)

    @classmethod
    def adopt(cls, fds: tuple[int, int]) -> Feed:
        """Take over the nameless one of another process, by its fds, which are copied.

        Raises:
            OSError, ValueError: they are none of a feed.
        """
        where = ffi.new("struct pl_feed **")
        check(lib.pl_feed_adopt(*fds, where))
        return cls(where[0], "")

    @property
    def fds(self) -> tuple[int, int]:
        """What a process that is no fork of this one needs, to adopt it."""
        return int(lib.pl_feed_fd(self._ptr)), int(lib.pl_feed_bell(self._ptr))

    def unlink(self) -> None:
        """Take its name away; who has it goes on. Raises FileNotFoundError: it was gone."""
        code = lib.pl_feed_unlink(self.name.encode())
        if code < 0:
            raise OSError(-code, f"cannot unlink the bus: {os.strerror(-code)}", self.name)

    def publish(self, topic: bytes, message: bytes) -> None:
        """Publish to everybody. Any thread.

        Raises:
            OSError, PyloopError: as Broker.publish.
        """
        ptr, sizes = self._ptr, (len(topic), len(message))
        publish = lib.pl_feed_publish
        while (rc := publish(ptr, topic, sizes[0], message, sizes[1])) == -errno.EINTR:
            pass  # Python has run its signal handlers
        if rc == -errno.ETIMEDOUT:
            raise TimeoutError("the bus is locked by a process that does not run: was it stopped?")
        check(rc)

    def seek(self) -> Any:
        """Return a cursor behind the newest record."""
        cursor = ffi.new("struct pl_feed_cursor *")
        while (rc := lib.pl_feed_seek(self._ptr, cursor)) == -errno.EINTR:
            pass
        check(rc)
        return cursor

    def read(self, cursor: Any, copy: Any, size: int) -> int:
        """Copy whole records; see pl_feed_read."""
        return int(lib.pl_feed_read(self._ptr, cursor, copy, size))

    def watch(self) -> int:
        """Return an fd, the caller's, that is readable when there is something to read."""
        return check(lib.pl_feed_watch(self._ptr))

    def _forked(self) -> None:
        rc = lib.pl_feed_forked(self._ptr)
        if rc < 0:
            log.error("a bus cannot be used after a fork: %s", failure(rc))


def _after_fork() -> None:
    """Let go of locks and wake-ups that are the parent's."""
    for feed in tuple(_feeds):
        feed._forked()


os.register_at_fork(after_in_child=_after_fork)


class ShmBroker(Broker):
    """One process's part in a feed."""

    def __init__(self, feed: Feed) -> None:
        self.max_message = feed.max_message
        self._feed = feed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.Handle | None = None  # a read that comes without the bell

    def open(self, hear: Hear, missed: Missed) -> None:
        self._hear, self._missed = hear, missed
        self._cursor = self._feed.seek()
        record = lib.PL_FEED_ALIGN + _padded(_HEAD.size + self.max_message)
        self._room = max(_READ_BYTES, record)
        self._copy = ffi.new("uint8_t[]", self._room)
        self._fd = self._feed.watch()
        self._close_fd = weakref.finalize(self, os.close, self._fd)  # once, whatever comes
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._fd, self._rung)
        except BaseException:
            self._close_fd()
            raise
        self._loop = loop
        self._again = loop.call_soon(self._read)  # which arms the bell

    def publish(self, topic: str, message: bytes) -> None:
        self._feed.publish(encode_topic(topic), message)

    def listen(self, prefixes: frozenset[str]) -> None:
        """All topics come anyhow."""

    async def ready(self) -> None:
        """The cursor stands already."""

    async def close(self) -> None:
        self._stop()

    def forget(self) -> None:
        """Let go after a fork, or after the loop: there is nothing to take back from it."""
        if self._loop is not None:
            self._close_fd()
            self._loop = None

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self.forget()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _rung(self) -> None:
        lib.pl_feed_quiet(self._fd)
        if self._again is None:
            self._read()

    def _read(self) -> None:
        """Deliver some, and come again, after others had their turn; if there is nothing, wait."""
        self._again = None
        for _ in range(_READS):
            size = self._feed.read(self._cursor, self._copy, _READ_BYTES)
            if size == -errno.EMSGSIZE:
                size = self._feed.read(self._cursor, self._copy, self._room)
            if size <= 0:
                self._wait(size)
                return
            self._deliver(size)
            if self._loop is None:
                return  # closed by who heard it
        assert self._loop is not None
        self._again = self._loop.call_soon(self._read)

    def _wait(self, reason: int) -> None:
        """Wait for the bell; or a while, or no more."""
        assert self._loop is not None
        if reason in (-errno.EINTR, -errno.ETIMEDOUT):  # who has the lock was stopped, not killed
            self._again = self._loop.call_later(_RETRY_SECONDS, self._read)
        elif reason < 0:
            log.error("nothing more is heard on the bus: %s", failure(reason))
            self._stop()
            self._missed(None)

    def _deliver(self, size: int) -> None:
        if self._cursor.missed:
            count, self._cursor.missed = self._cursor.missed, 0
            self._missed(count)
        copy, hear, at = ffi.buffer(self._copy, size), self._hear, 0
        while at < size:
            _, topic_len, message_len = _HEAD.unpack_from(copy, at)
            start = at + _HEAD.size
            middle = start + topic_len
            end = middle + message_len
            topic = decode_topic(copy[start:middle])
            if topic is not None:
                hear(topic, copy[middle:end])
            at = _padded(end)
