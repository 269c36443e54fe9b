"""SharedLock: a lock between processes that outlives its holders."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pyloop import placing, waiting
from pyloop.core import check, ffi, lib
from pyloop.memory import SharedMemory

__all__ = ["SharedLock"]

How = Literal["ok", "recovered"]
_PREFIX = "lock."
_NAME_BYTES = 245


@functools.cache
def _self() -> Any:
    """Return what this process calls itself in lock words; a child calls itself differently."""
    pointer = lib.pl_self_new()
    if pointer == ffi.NULL:
        raise MemoryError("no memory for a lock")
    return ffi.gc(pointer, lib.pl_self_free)


class SharedLock:
    """A lock between processes, and between threads of each, that recovers from a killed holder.

    `acquire` says "recovered" instead of "ok" when the process that had it ended without releasing
    it: what the lock guards may then be half done, and is yours to mend.

    With a name, for all processes of this user on this machine, until `unlink`. In a SharedMemory,
    for all who map it. With neither, for this process and its children by fork. They must see each
    other's pids: not across containers that do not.

    It belongs to the process: any thread of it may release it, and a thread that ends without doing
    so leaves it taken. A child that is forked meanwhile does not have it. Not reentrant, not fair.

    As a context manager, plain or async, it gives "ok" or "recovered". A block that was told
    "recovered" and ends by an exception has mended nothing: the next one is told again.

    Args:
        name: 1 to 245 bytes without a slash; the lock is a SharedMemory named "lock.NAME".
        memory: A SharedMemory, writable; the lock takes SIZE bytes in it, which must be zero when
            it is made. It stays mapped for as long as the lock is open.
        offset: Where in `memory`: a multiple of ALIGN.
        create: True makes a new one, False attaches to one that is there; None, for a name only,
            does what is needed.

    Raises:
        FileExistsError: create=True, and there is one.
        FileNotFoundError: create=False, and there is none.
        ValueError: `name` or `offset` is out of range; something else is there.
        OSError: PermissionError where it is another user's; ENOSPC, EMFILE, ENOMEM; EFAULT, from
            any method: the memory was truncated.

    Source: pl_lock_acquire, pl_lock_place, futex(2)
    """

    SIZE: ClassVar[int] = lib.PL_LOCK_SIZE
    """Bytes that one takes in a SharedMemory."""
    ALIGN: ClassVar[int] = lib.PL_LOCK_ALIGN

    __slots__ = ("__weakref__", "_look", "_name", "_recovered", "_region", "_word")

    def __init__(
        self,
        name: str | None = None,
        memory: SharedMemory | None = None,
        offset: int = 0,
        *,
        create: bool | None = None,
    ) -> None:
        placing.check_place(name, memory, create)
        self._name = name
        self._recovered = False  # only its holder touches this
        self._look: Callable[[], None] = lambda: None
        self._region = None if name is None else _region(name, self.SIZE, create)
        where = "new memory" if memory is None else f"offset {offset}"
        if self._region is not None:
            memory, offset, where = self._region, 0, repr(name)
            create = None if create else create  # the region is new
        if memory is not None:
            place, self._look = placing.in_memory(memory, offset, type(self))
        else:
            place = placing.anonymous("pyloop-lock", self.SIZE)
        # Whoever uses it holds this pointer, so it is unmapped when the last of them is done.
        self._word: Any = _place(place, create, where)
        if self._region is not None:
            self._region.close()  # to unlink is all that it is still good for

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        return f"<SharedLock{name} {placing.shown(self._state)}>"

    def _state(self) -> str:
        owner = self.owner
        return "free" if owner is None else f"held by process {owner}"

    @property
    def name(self) -> str | None:
        """The name, None for one that has none."""
        return self._name

    @property
    def owner(self) -> int | None:
        """The pid of the process that has it, or had it when it ended; None: nobody."""
        return int(lib.pl_lock_owner(self._pointer())) or None

    def acquire(self, timeout: float | None = None) -> How | None:
        """Take the lock; block until it is free, or its holder has ended.

        That is found out within 100 ms of the end. A signal runs its Python handler, then the wait
        goes on for the time left (PEP 475): an exception out of the handler, as Ctrl-C's, ends it.

        Args:
            timeout: Seconds, on a clock that nobody sets; None has no end, 0 does not wait.

        Returns:
            "ok" or "recovered". None, which is false, when the time has passed.

        Raises:
            ValueError: `timeout` is negative or NaN; the lock is closed, or was meanwhile.

        Source: pl_lock_acquire
        """
        return waiting.wait(self._take, timeout)

    async def acquire_async(self, timeout: float | None = None) -> How | None:
        """Take the lock as `acquire` does, without blocking the loop: any asyncio loop.

        When somebody has it, a thread waits. After a cancel the thread may still take it, for up
        to 100 ms, and lets go of it at once.

        Raises:
            ValueError: As `acquire`.
            RuntimeError: There can be no more threads.
        """
        word, look = self._pointer(), self._look  # it may be closed when it is to be let go

        def let_go(how: How | None) -> None:
            with contextlib.suppress(OSError):  # no memory, no lock
                look()
                (lib.pl_lock_release if how == "ok" else lib.pl_lock_forsake)(_self(), word)

        return await waiting.wait_async(self._take, let_go, timeout)

    def release(self) -> None:
        """Let go of the lock; wakes one who waits.

        Raises:
            RuntimeError: This process does not have it.
        """
        self._let_go(lib.pl_lock_release)

    def close(self) -> None:
        """Let go of this object's memory in this process; a lock that is held stays held.

        Waits of other threads end within 100 ms, with a ValueError. Closing again does nothing.
        """
        self._word, self._look = None, lambda: None

    def unlink(self) -> None:
        """Remove the name; those who have it open keep the lock.

        Raises:
            ValueError: It has no name.
            FileNotFoundError: The name is gone already.
        """
        if self._region is None:
            raise ValueError("a lock without a name has nothing to unlink")
        self._region.unlink()

    def __enter__(self) -> How:
        how = self.acquire()
        assert how is not None
        return how

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        unmended = kind is not None and self._recovered
        self._let_go(lib.pl_lock_forsake if unmended else lib.pl_lock_release)

    async def __aenter__(self) -> How:
        how = await self.acquire_async()
        assert how is not None
        return how

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self.__exit__(kind)

    def _pointer(self) -> Any:
        word = self._word
        if word is None:
            raise ValueError("the lock is closed")
        self._look()
        return word

    def _take(self, ns: int) -> How | None:
        code = lib.pl_lock_acquire(_self(), self._pointer(), ns)
        if code == -errno.ETIMEDOUT or code == -errno.EINTR:
            return None
        self._recovered = check(code) == 1
        return "recovered" if self._recovered else "ok"

    def _let_go(self, how: Any) -> None:
        code = how(_self(), self._pointer())
        if code == -errno.EPERM:
            raise RuntimeError("this process does not have the lock")
        check(code)


def _region(name: str, size: int, create: bool | None) -> SharedMemory:
    """Return the memory of a named lock."""
    placing.encode_name(name, _NAME_BYTES)
    if create is False:
        return SharedMemory(_PREFIX + name, size)
    return SharedMemory(_PREFIX + name, size, create=True, exclusive=bool(create))


def _place(place: Any, create: bool | None, where: str) -> Any:
    found = ffi.new("uint64_t **")
    code = lib.pl_lock_place(place, placing.how_to_create(create), found)
    return placing.placed(code, found, place, "lock", where)
