"""The primitives by themselves: fd_set and its macros, select, O_NONBLOCK, and a framing buffer.

For programs that write their own loop around `select`, and for those who want to see what a loop
is made of. Nothing here knows pyloop's loop. An fd is an int or any object with `fileno()`.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pyloop.core import check, ffi, lib
from pyloop.framing import Framing
from pyloop.waiting import NO_END, nanoseconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "FD_SETSIZE",
    "FdSet",
    "ReadBuffer",
    "is_nonblocking",
    "select",
    "set_nonblocking",
]

FD_SETSIZE: int = lib.pl_fdset_size()
"""An FdSet holds fds from 0 to one less than this: a constant of the C library."""


class HasFileno(Protocol):
    """A socket, a file, or what else knows its fd."""

    def fileno(self) -> int:
        """Return the fd."""


FileDescriptorLike: TypeAlias = int | HasFileno


class FdSet:
    """A set of fds for `select`, as C has it: one bit an fd, at most FD_SETSIZE.

    `add` is FD_SET, `discard` FD_CLR, `in` FD_ISSET, `clear` and the constructor FD_ZERO.
    Iteration is in rising order over a snapshot, so the set may change meanwhile.

    Args:
        fds: What to add at once.

    Raises:
        ValueError: An fd is outside the range.
        TypeError: Not an fd.

    Source:
        FD_SET(3)
    """

    __slots__ = ("_set",)

    def __init__(self, fds: Iterable[FileDescriptorLike] = ()) -> None:
        self._set: Any = _owned(lib.pl_fdset_new(), lib.pl_fdset_free)
        for fd in fds:
            self.add(fd)

    def add(self, fd: FileDescriptorLike) -> None:
        """Add an fd; one that is there already stays.

        Args:
            fd: 0 to FD_SETSIZE - 1.

        Raises:
            ValueError: Outside that range: select cannot wait for it.
        """
        number = _fileno(fd)
        if not 0 <= number < FD_SETSIZE:
            raise ValueError(
                f"fd {number} is outside 0..{FD_SETSIZE - 1}: select takes fds below "
                f"FD_SETSIZE ({FD_SETSIZE})"
            )
        check(lib.pl_fdset_add(self._set, number))

    def discard(self, fd: FileDescriptorLike) -> None:
        """Remove an fd; one that is not there is no error.

        Discard an object before closing it: afterwards nothing tells which fd it had.

        Raises:
            ValueError: The fd is negative, as that of a closed socket is.
        """
        number = _fileno(fd)
        if number < 0:
            raise ValueError(f"fd {number} is negative: discard an object before closing it")
        if number < FD_SETSIZE:
            check(lib.pl_fdset_discard(self._set, number))

    def contains(self, fd: FileDescriptorLike) -> bool:
        """Tell whether the fd is in the set, as `in` does."""
        number = _fileno(fd)
        return 0 <= number < FD_SETSIZE and lib.pl_fdset_contains(self._set, number) == 1

    def clear(self) -> None:
        """Remove all."""
        lib.pl_fdset_clear(self._set)

    def copy(self) -> FdSet:
        """Return a new set with the same fds: select changes its sets, so it is given copies."""
        other = FdSet()
        lib.pl_fdset_copy(other._set, self._set)
        return other

    @property
    def highest(self) -> int:
        """The highest fd, or -1 when the set is empty: what select calls nfds, less one."""
        return int(lib.pl_fdset_highest(self._set))

    __copy__ = copy

    def __contains__(self, fd: FileDescriptorLike) -> bool:
        return self.contains(fd)

    def __iter__(self) -> Iterator[int]:
        contains, fds = lib.pl_fdset_contains, self._set
        return iter([fd for fd in range(self.highest + 1) if contains(fds, fd)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return self.highest >= 0

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, FdSet) else NotImplemented

    def __repr__(self) -> str:
        return f"FdSet({list(self)})"


def select(
    read: FdSet | None,
    write: FdSet | None = None,
    error: FdSet | None = None,
    timeout: float | None = None,
) -> int:
    """Wait until an fd is ready, and leave in each set only those that are.

    The sets are changed in place: pass copies of what is watched. After a time-out they are
    empty; after an exception they are as before. A signal runs its Python handler, then the wait
    goes on for the time left (PEP 475).

    Args:
        read: Fds that may be read without blocking: bytes, a connection to accept, end of stream.
        write: Fds that may be written without blocking.
        error: Fds with an exceptional condition (urgent TCP data), not with an error: those are
            readable and writable.
        timeout: Seconds, to the nanosecond and never early; 0 does not wait, None has no end.

    Returns:
        The number of ready fds, an fd in two sets counting twice; 0 after a time-out.

    Raises:
        OSError: EBADF: an fd in a set is closed.
        TypeError: Not an FdSet.
        ValueError: The timeout is negative or NaN, or one FdSet was passed twice.

    Source:
        pl_fdset_select, select(2)
    """
    sets = [_cdata_of(name, s) for name, s in (("read", read), ("write", write), ("error", error))]
    given = [id(s) for s in (read, write, error) if s is not None]
    if len(set(given)) < len(given):
        raise ValueError("one FdSet was passed twice: select would overwrite it")
    left = nanoseconds(timeout)
    deadline = time.monotonic_ns() + left
    while True:
        code = lib.pl_fdset_select(*sets, left)
        if code != -errno.EINTR:
            return check(code)
        if left != NO_END:  # the handler has run by now
            left = max(0, deadline - time.monotonic_ns())


def set_nonblocking(fd: FileDescriptorLike, flag: bool = True) -> None:
    """Make calls on an fd fail with BlockingIOError instead of waiting, or wait again.

    The flag belongs to the open file: every copy of the fd, in every process, has it. A socket
    object is not told, and still shows its own timeout.

    Args:
        fd: Any open fd.
        flag: False switches it off.

    Raises:
        OSError: EBADF: not open.

    Source:
        pl_set_nonblocking, fcntl(2) F_SETFL, O_NONBLOCK
    """
    check(lib.pl_set_nonblocking(_fileno(fd), bool(flag)))


def is_nonblocking(fd: FileDescriptorLike) -> bool:
    """Tell whether O_NONBLOCK is on.

    Raises:
        OSError: EBADF: not open.

    Source:
        pl_is_nonblocking, fcntl(2) F_GETFL
    """
    return check(lib.pl_is_nonblocking(_fileno(fd))) == 1


class ReadBuffer:
    """Bytes as they arrive at one end, messages at the other: framing without a loop.

    The cost is linear in the bytes, in whatever pieces they come: a message that is still
    incomplete is not searched again from its start. Any thread may call.
    """

    __slots__ = ("_lock", "_reader")

    def __init__(self) -> None:
        self._reader: Any = _owned(lib.pl_reader_new(), lib.pl_reader_free)
        # cffi lets go of the GIL, and what the reader lends lasts only until the next call on it.
        self._lock = threading.Lock()

    def feed(self, data: Buffer) -> None:
        """Append bytes.

        Args:
            data: Bytes-like and contiguous; copied.

        Raises:
            TypeError: Not bytes-like.
            OSError: ENOMEM; then nothing was appended.
        """
        if isinstance(data, str):
            raise TypeError("data must be bytes-like, not str")
        with ffi.from_buffer("uint8_t[]", data) as start, self._lock:
            check(lib.pl_reader_feed(self._reader, start, len(start)))

    def peek(self, n: int = -1) -> bytes:
        """Return bytes from the front and leave them there.

        Args:
            n: At most so many; negative means all.
        """
        with self._lock:
            length = lib.pl_reader_len(self._reader)
            wanted = length if n < 0 else min(n, length)
            return bytes(ffi.buffer(lib.pl_reader_data(self._reader), wanted))

    def consume(self, n: int) -> None:
        """Drop bytes from the front.

        Args:
            n: 0 to len(self).

        Raises:
            ValueError: There are fewer; nothing was dropped.
        """
        with self._lock:
            length = lib.pl_reader_len(self._reader)
            if not 0 <= n <= length:
                raise ValueError(f"cannot consume {n} of {length} bytes")
            check(lib.pl_reader_consume(self._reader, n))

    def next(self, framing: Framing) -> bytes | None:
        """Cut one message off the front.

        Args:
            framing: May differ from call to call: a header by Lines, then a body by FixedSize.

        Returns:
            The message without terminator and prefix, or None: more bytes are needed.

        Raises:
            FramingError: Over max_size, or malformed. Nothing was consumed.

        Source:
            pl_reader_next
        """
        return self._cut(lib.pl_reader_next, framing)

    def finish(self, framing: Framing) -> bytes | None:
        """Cut one message off the front after the end of stream; call until it returns None.

        Args:
            framing: As for `next`.

        Returns:
            A message, for Lines even an unterminated last one, or None: nothing is left.

        Raises:
            FramingError: As `next`, or an incomplete message is left.

        Source:
            pl_reader_finish
        """
        return self._cut(lib.pl_reader_finish, framing)

    def __len__(self) -> int:
        with self._lock:
            return int(lib.pl_reader_len(self._reader))

    def __repr__(self) -> str:
        return f"<ReadBuffer of {len(self)} bytes>"

    def _cut(self, function: Any, framing: Framing) -> bytes | None:
        if not isinstance(framing, Framing):
            raise TypeError(f"framing must be a pyloop framing, not {type(framing).__name__}")
        data, length = ffi.new("uint8_t **"), ffi.new("size_t *")
        with self._lock:
            if check(function(self._reader, framing.spec, data, length)) == 0:
                return None
            return bytes(ffi.buffer(data[0], length[0]))


def _owned(pointer: Any, free: Any) -> Any:
    """Free `pointer` with its last reference; NULL is a MemoryError."""
    if pointer == ffi.NULL:
        raise MemoryError
    return ffi.gc(pointer, free)


def _fileno(fd: FileDescriptorLike) -> int:
    """Return the number of an fd, whatever it is; it may be out of range."""
    if isinstance(fd, int) and not isinstance(fd, bool):
        return fd
    fileno = getattr(fd, "fileno", None)
    if not callable(fileno):
        raise TypeError(f"an fd is an int or has fileno(), not {type(fd).__name__}")
    number = fileno()
    if not isinstance(number, int):
        raise TypeError(f"fileno() must return an int, not {type(number).__name__}")
    return number


def _cdata_of(name: str, fds: FdSet | None) -> Any:
    """Return the C set of an argument of select."""
    if fds is None:
        return ffi.NULL
    if not isinstance(fds, FdSet):
        raise TypeError(f"{name} must be an FdSet or None, not {type(fds).__name__}")
    return fds._set
