"""A queue of messages between processes, in memory that they share.

The ring in csrc/ring.c does the work: what a put or a get costs here is one call of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pyloop.core import ffi, lib
from pyloop.framing import as_bytes
from pyloop.rings import (
    INTERRUPTED,
    NOT_YET,
    Place,
    adopt_ring,
    is_settled,
    label_of,
    make_ring,
    open_ring,
    padded,
    put_failure,
    resume,
    ring_failure,
    unlink_ring,
)
from pyloop.turns import GET, PUT, Turns
from pyloop.waiting import NO_END, nanoseconds

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from typing_extensions import Buffer

__all__ = ["Channel"]

T = TypeVar("T")

_STREAK = 64  # coroutines: so many without waiting, then the loop's others have their turn

_ring_put = lib.pl_ring_put
_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """A bounded queue of messages, between any processes of one user on one machine.

    Many may put and many may get, from threads and from coroutines of several loops. A message is
    bytes, got by one of them, once and whole: a process that is killed in the middle of a put has
    put nothing, and one that is killed as it gets loses at most the message in its hand. Others
    wait at most 100 ms for what a killed process had locked.

    A nameless channel is for this process and its children, by fork or as an argument of a
    multiprocessing.Process. One with a name stays until `unlink`; it is slower: who can open it
    could cut it short, so it is only read and written by system calls.

    A context manager: leaving it closes the channel here. Iteration, plain or async, goes on until
    the channel is shut down.

    Args:
        name: 1 to 200 bytes, without a slash, not ending in ".bell": a file of /dev/shm, mode 0600.
        capacity: bytes for messages, each of which takes 8 bytes more and is padded to 8; 1 MiB for
            a new one.
        max_message: bytes of the longest message; 64 KiB for a new one.
        create: True: a new one; False: attach to one that is there; None: either, by name.

    Raises:
        ValueError: no name, or size, that a channel can have; attached, one that has other sizes
            than were asked for, or was not made by this version of pyloop.
        FileExistsError, FileNotFoundError: there is one, or none, against `create`.
        PermissionError: another user's.
        OSError: ENOSPC, ENOMEM: not that much shared memory is left; EMFILE.

    Source:
        pl_ring_new, pl_ring_open
    """

    def __init__(
        self,
        name: str | None = None,
        capacity: int | None = None,
        max_message: int | None = None,
        *,
        create: bool | None = None,
    ) -> None:
        if name is None:
            self._begin(None, make_ring(capacity, max_message, create))
        else:
            self._begin(name, open_ring(name, capacity, max_message, create))
            self._compare(capacity, max_message)

    def _begin(self, name: str | None, ring: Any) -> None:
        self._ring = ring
        self._name = name
        self._places: list[Place] = []  # to get messages into, for as many threads
        self._turns: weakref.WeakKeyDictionary[Any, Turns] = weakref.WeakKeyDictionary()
        self._streak = 0
        self.capacity: int = lib.pl_ring_capacity(ring)
        self.max_message: int = lib.pl_ring_max_message(ring)
        _channels.add(self)

    def _compare(self, capacity: int | None, max_message: int | None) -> None:
        """What its creator chose counts, but whoever asks for something else should know."""
        wanted = None if capacity is None else padded(capacity)
        for what, asked, found in (
            ("capacity", wanted, self.capacity),
            ("max_message", max_message, self.max_message),
        ):
            if asked is not None and asked != found:
                self.close()
                raise ValueError(f"the {label_of(self._name)} has {what} {found}, not {asked}")

    @property
    def name(self) -> str | None:
        """What other processes find it by, or None."""
        return self._name

    @property
    def closed(self) -> bool:
        """Has this process closed it?"""
        return bool(self._ring == ffi.NULL)

    @property
    def used(self) -> int:
        """Bytes of the capacity that messages took a moment ago."""
        used = lib.pl_ring_used(self._ring)
        if used < 0:
            raise ring_failure(self._name, used)
        return int(used)

    def __repr__(self) -> str:
        what = "" if self._name is None else f" {self._name!r}"
        return f"<Channel{what} of {self.capacity} bytes{', closed' if self.closed else ''}>"

    # ---- waiting ----

    def put(self, message: Buffer, timeout: float | None = None) -> None:
        """Append a message; wait for room as long as there is none.

        Args:
            message: bytes-like; copied.
            timeout: seconds; None has no end.

        Raises:
            TypeError: not bytes-like.
            ValueError: longer than max_message.
            TimeoutError: there was no room in time.
            ChannelClosed: it was shut down, or this process has closed it.
            PyloopError: its memory was written to by somebody else.

        Source:
            pl_ring_put
        """
        data = message if type(message) is bytes else _borrow(message)
        code = INTERRUPTED  # with a time-out, whose clock starts before the wait
        if timeout is None:
            code = _ring_put(self._ring, data, len(data), NO_END)
        if code == INTERRUPTED:
            code = resume(lambda left: self._put(data, left), nanoseconds(timeout))
        if code == NOT_YET:
            raise TimeoutError(f"the {label_of(self._name)} had no room within {timeout} s")
        if code:
            raise put_failure(self._name, code, len(data), self.max_message)

    def get(self, timeout: float | None = None) -> bytes:
        """Take the first message; wait for one as long as there is none.

        Args:
            timeout: seconds; None has no end.

        Raises:
            TimeoutError: there was no message in time.
            ChannelClosed: it was shut down and is empty, or this process has closed it.
            PyloopError: its memory was written to by somebody else.

        Source:
            pl_ring_get
        """
        got = INTERRUPTED if timeout is not None else self._get(NO_END)
        if type(got) is bytes:
            return got
        if got == INTERRUPTED:
            got = resume(self._get, nanoseconds(timeout))
        if got == NOT_YET:
            raise TimeoutError(f"the {label_of(self._name)} had no message within {timeout} s")
        return self._message(got)

    def put_nowait(self, message: Buffer) -> None:
        """Append a message if there is room, else raise queue.Full.

        Also when a process that was stopped keeps the channel locked for 50 ms. Raises as `put`.
        """
        data = message if type(message) is bytes else _borrow(message)
        code = resume(lambda left: self._put(data, left), 0)
        if code == NOT_YET:
            raise queue.Full(f"the {label_of(self._name)} has no room for {len(data)} bytes")
        if code:
            raise put_failure(self._name, code, len(data), self.max_message)

    def get_nowait(self) -> bytes:
        """Take the first message if there is one, else raise queue.Empty.

        Also when a process that was stopped keeps the channel locked for 50 ms. Raises as `get`.
        """
        got = resume(self._get, 0)
        if got == NOT_YET:
            raise queue.Empty(f"the {label_of(self._name)} has no message")
        return self._message(got)

    # ---- coroutines ----

    async def put_async(self, message: Buffer) -> None:
        """Append a message, taken as it is now; wait for room without blocking the loop.

        Those of one loop who wait are served in order. Cancelled, nothing was put. Raises as `put`.
        """
        data = message if type(message) is bytes else as_bytes(message)
        code = await self._turn(
            PUT, lambda: self._put(data, 0), lambda: lib.pl_ring_arm_put(self._ring, len(data))
        )
        if code:
            raise put_failure(self._name, code, len(data), self.max_message)

    async def get_async(self) -> bytes:
        """Take the first message; wait for one without blocking the loop.

        Those of one loop who wait are served in order. Cancelled, nothing was got. Raises as `get`.
        """
        return self._message(await self._get_turn())

    def _get_turn(self) -> Coroutine[Any, Any, bytes | int]:
        return self._turn(GET, lambda: self._get(0), lambda: lib.pl_ring_arm_get(self._ring))

    async def _turn(self, side: int, attempt: Callable[[], T], arm: Callable[[], int]) -> T:
        """Attempt at once, unless others of this loop wait already; else in turn."""
        self._streak += 1
        if self._streak >= _STREAK:
            self._streak = 0
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        turns = self._turns.get(loop)
        if turns is None or not turns.has_waiters(side):
            result = attempt()
            if is_settled(result):
                return result
        self._streak = 0
        if turns is None:
            turns = self._turns[loop] = self._new_turns(loop)
        return await turns.wait(side, attempt, is_settled, arm)

    def _new_turns(self, loop: asyncio.AbstractEventLoop) -> Turns:
        try:
            return Turns(self._ring, loop)
        except OSError as exc:  # closed by another thread just now, or no fd is left
            raise ring_failure(self._name, -(exc.errno or 0)) from None

    # ---- the core ----

    def _put(self, data: Any, ns: int) -> int:
        return int(_ring_put(self._ring, data, len(data), ns))

    def _get(self, ns: int) -> bytes | int:
        """Return one message, or the core's negative number."""
        try:
            place = self._places.pop()
        except IndexError:
            place = Place(self.max_message)
        got = place.get(self._ring, ns)
        self._places.append(place)
        return got

    def _message(self, got: bytes | int) -> bytes:
        if isinstance(got, int):
            raise ring_failure(self._name, got)
        return got

    # ---- iteration ----

    def __iter__(self) -> Channel:
        return self

    def __next__(self) -> bytes:
        got = self._get(NO_END)
        if not is_settled(got):
            got = resume(self._get, NO_END)
        if type(got) is int and got == lib.PL_E_SHUT:
            raise StopIteration
        return self._message(got)

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> bytes:
        got = await self._get_turn()
        if type(got) is int and got == lib.PL_E_SHUT:
            raise StopAsyncIteration
        return self._message(got)

    # ---- the end ----

    def shutdown(self) -> None:
        """End it for all processes: nothing more can be put, what is there can be got.

        Raises:
            ChannelClosed: this process has closed it.
        """
        code = resume(lambda left: int(lib.pl_ring_shut(self._ring, left)), NO_END)
        if code:
            raise ring_failure(self._name, code)

    def close(self) -> None:
        """Let go of it in this process; the others go on. Closing twice is no error.

        Threads and coroutines of this process that wait get ChannelClosed.
        """
        ring, self._ring = self._ring, ffi.NULL
        self._turns = weakref.WeakKeyDictionary()
        lib.pl_ring_close(ring)

    def unlink(self) -> None:
        """Remove the name; who has the channel open goes on.

        Raises:
            ValueError: it has no name.
            FileNotFoundError: it was removed already.
        """
        if self._name is None:
            raise ValueError("a nameless channel has no name to remove")
        unlink_ring(self._name)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- other processes ----

    def _forked(self) -> None:
        """In a child: what the parent's threads and loops wait with is not for us."""
        for turns in list(self._turns.values()):
            turns.forget()
        self._turns = weakref.WeakKeyDictionary()
        if not self.closed:
            lib.pl_ring_enter(self._ring)  # what fails here fails again at the first call

    def __reduce__(self) -> tuple[Callable[..., Channel], tuple[Any, ...]]:
        if self.closed:
            raise ring_failure(self._name, -errno.EBADF)
        if self._name is not None:
            return _attach, (self._name,)
        from multiprocessing import context, reduction

        context.assert_spawning(self)
        fds = lib.pl_ring_fd(self._ring), lib.pl_ring_bell(self._ring)
        return _adopt, tuple(reduction.DupFd(fd) for fd in fds)


def _borrow(message: Any) -> Any:
    """Return the bytes where they are, or copied when they are not in one piece."""
    try:
        return ffi.from_buffer("uint8_t[]", message)
    except (TypeError, ValueError, BufferError):
        return as_bytes(message)


def _attach(name: str) -> Channel:
    return Channel(name, create=False)


def _adopt(*parts: Any) -> Channel:
    """In a multiprocessing child: make one of what the parent's __reduce__ sent."""
    fds = [part.detach() for part in parts]
    try:
        ring = adopt_ring(*fds)
    finally:
        for fd in fds:
            os.close(fd)
    channel = Channel.__new__(Channel)
    channel._begin(None, ring)
    return channel


def _after_fork() -> None:
    for channel in list(_channels):
        channel._forked()


os.register_at_fork(after_in_child=_after_fork)
