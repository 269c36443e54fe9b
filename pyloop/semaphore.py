"""Semaphore: a number of tokens that processes share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any, ClassVar

from pyloop import placing, waiting
from pyloop.core import check, ffi, lib
from pyloop.memory import SharedMemory

__all__ = ["Semaphore"]

_MAX = 2**31 - 1
_NAME_BYTES = 251  # a file named sem.NAME


class Semaphore:
    """A number of tokens, shared by threads and processes: `wait` takes one, `post` puts one back.

    With a name, for all processes of this user on this machine, until `unlink`. In a SharedMemory,
    for all who map it. With neither, for this process and its children by fork.

    Tokens belong to nobody. One that was taken by a process that is then killed stays taken for
    ever: where a semaphore is to guard something, SharedLock recovers from that.

    Any thread may call. As a context manager, plain or async, it takes a token and puts it back.

    Args:
        value: How many tokens there are at first, if it is made now: 0 to 2,147,483,647.
        name: 1 to 251 bytes without a slash.
        memory: A SharedMemory, writable; the semaphore takes SIZE bytes in it, which must be zero
            when it is made. It stays mapped for as long as the semaphore is open.
        offset: Where in `memory`: a multiple of ALIGN.
        create: True makes a new one, False attaches to one that is there; None, for a name only,
            does what is needed.

    Raises:
        FileExistsError: create=True, and there is one.
        FileNotFoundError: create=False, and there is none.
        ValueError: `value`, `name` or `offset` is out of range; something else lies at `offset`.
        OSError: PermissionError where it is another user's; ENOSPC, EMFILE, ENOMEM; EFAULT, from
            any method: the memory was truncated.

    Source: sem_overview(7), pl_semaphore_open, pl_semaphore_place
    """

    SIZE: ClassVar[int] = lib.PL_SEMAPHORE_SIZE
    """Bytes that one takes in a SharedMemory."""
    ALIGN: ClassVar[int] = lib.PL_SEMAPHORE_ALIGN

    __slots__ = ("__weakref__", "_look", "_name", "_sem")

    def __init__(
        self,
        value: int = 1,
        name: str | None = None,
        memory: SharedMemory | None = None,
        offset: int = 0,
        *,
        create: bool | None = None,
    ) -> None:
        placing.check_place(name, memory, create)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"value must be an int, not {value!r} ({type(value).__name__})")
        if not 0 <= value <= _MAX:
            raise ValueError(f"value must be 0 to {_MAX}, not {value}")
        self._name = name
        self._look: Callable[[], None] = lambda: None
        # Whoever uses it holds this pointer, so it is unmapped when the last of them is done.
        self._sem: Any = None
        if name is not None:
            self._sem = _open(name, value, create)
        elif memory is not None:
            place, self._look = placing.in_memory(memory, offset, type(self))
            self._sem = _place(place, value, bool(create), f"offset {offset}")
        else:
            place = placing.anonymous("pyloop-semaphore", self.SIZE)
            self._sem = _place(place, value, True, "new memory")

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        return f"<Semaphore{name} {placing.shown(lambda: f'value={self.value}')}>"

    @property
    def name(self) -> str | None:
        """The name, None for one that has none."""
        return self._name

    @property
    def value(self) -> int:
        """How many tokens there are now; others may change that at any time."""
        return check(lib.pl_semaphore_value(self._pointer()))

    def wait(self, timeout: float | None = None) -> bool:
        """Take a token; block until there is one.

        A signal runs its Python handler, then the wait goes on for the time left (PEP 475): an
        exception out of the handler, as Ctrl-C's, ends it.

        Args:
            timeout: Seconds, on a clock that nobody sets; None has no end, 0 does not wait.

        Returns:
            False: the time has passed.

        Raises:
            ValueError: `timeout` is negative or NaN; the semaphore is closed, or was meanwhile.

        Source: pl_semaphore_wait, sem_clockwait(3)
        """
        return waiting.wait(self._take, timeout) is not None

    def try_wait(self) -> bool:
        """Take a token if there is one now."""
        return self._take(0) is not None

    async def wait_async(self, timeout: float | None = None) -> bool:
        """Take a token as `wait` does, without blocking the loop: any asyncio loop.

        When there is none, a thread waits. Cancelling loses no token: for up to 100 ms the thread
        may still take one, and puts it back at once.

        Raises:
            ValueError: As `wait`.
            RuntimeError: There can be no more threads.
        """
        sem, look = self._pointer(), self._look  # it may be closed when a token is to be put back

        def put_back(_: bool) -> None:
            with contextlib.suppress(OSError):  # no memory, no tokens
                look()
                lib.pl_semaphore_post(sem)

        return await waiting.wait_async(self._take, put_back, timeout) is not None

    def post(self) -> None:
        """Put a token back, or a new one in; wakes one who waits.

        Raises:
            OverflowError: There are as many as there can be.
        """
        code = lib.pl_semaphore_post(self._pointer())
        if code == -errno.EOVERFLOW:
            raise OverflowError(f"the semaphore has its most tokens, {_MAX}")
        check(code)

    def close(self) -> None:
        """Let go of it in this process; others, and its tokens, are not touched.

        Waits of other threads end within 100 ms, with a ValueError. Closing again does nothing.
        """
        self._sem, self._look = None, lambda: None

    def unlink(self) -> None:
        """Remove the name; those who have it open keep the semaphore.

        Raises:
            ValueError: It has no name.
            FileNotFoundError: The name is gone already.
        """
        if self._name is None:
            raise ValueError("a semaphore without a name has nothing to unlink")
        _check_named(
            lib.pl_semaphore_unlink(placing.encode_name(self._name, _NAME_BYTES)),
            "unlink",
            self._name,
        )

    def __enter__(self) -> Semaphore:
        self.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.post()

    async def __aenter__(self) -> Semaphore:
        await self.wait_async()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.post()

    def _pointer(self) -> Any:
        sem = self._sem
        if sem is None:
            raise ValueError("the semaphore is closed")
        self._look()
        return sem

    def _take(self, ns: int) -> bool | None:
        code = lib.pl_semaphore_wait(self._pointer(), ns)
        if code == 0 or code == -errno.EINTR:
            return None
        check(code)
        return True


def _open(name: str, value: int, create: bool | None) -> Any:
    found = ffi.new("struct pl_semaphore **")
    how = placing.how_to_create(create)
    encoded = placing.encode_name(name, _NAME_BYTES)
    _check_named(lib.pl_semaphore_open(encoded, how, value, found), "open", name)
    return ffi.gc(found[0], lib.pl_semaphore_close)


def _check_named(code: int, what: str, name: str) -> None:
    if code < 0:
        raise OSError(-code, f"cannot {what} the semaphore: {os.strerror(-code)}", name)


def _place(place: Any, value: int, create: bool, where: str) -> Any:
    found = ffi.new("struct pl_semaphore **")
    code = lib.pl_semaphore_place(place, placing.how_to_create(create), value, found)
    return placing.placed(code, found, place, "semaphore", where)
