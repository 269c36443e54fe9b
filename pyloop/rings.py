"""Rings in shared memory (csrc/ring.c) as Python has them: made, found by name, and their errors.

A ring is a struct pl_ring * that is freed with its last reference.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pyloop.core import failure, ffi, lib
from pyloop.errors import ChannelClosed, PyloopError

__all__ = [
    "INTERRUPTED",
    "NOT_YET",
    "Place",
    "adopt_ring",
    "is_settled",
    "label_of",
    "make_ring",
    "open_ring",
    "padded",
    "put_failure",
    "resume",
    "ring_failure",
    "unlink_ring",
]

T = TypeVar("T")

NOT_YET = -errno.ETIMEDOUT
INTERRUPTED = -errno.EINTR

CAPACITY = 1 << 20
MAX_MESSAGE = 1 << 16


LARGE = 8192 if sys.implementation.name == "cpython" else sys.maxsize
"""Bytes of a message whose second copy costs more than a guess at its length."""

_ring_get = lib.pl_ring_get
_new_bytes = ffi.new_allocator(should_clear_after_alloc=False)


class Place:
    """Where one thread gets messages into.

    A bytes object is made by a copy, which a large message should not cost: one as long as the last
    message is made beforehand, and the core fills it while nobody else can have seen it.
    """

    __slots__ = ("_buffer", "_expected", "_to")

    def __init__(self, max_message: int) -> None:
        self._to = _new_bytes("uint8_t[]", max_message)
        self._buffer = ffi.buffer(self._to)
        self._expected = 0

    def get(self, ring: Any, ns: int) -> bytes | int:
        """Return one message, or the core's negative number."""
        exact = bytes(self._expected)
        length = _ring_get(ring, self._to, exact, self._expected, ns)
        if length < 0:
            return int(length)
        got: bytes = exact if length == self._expected else self._buffer[:length]
        self._expected = length if length >= LARGE else 0
        return got


def is_settled(result: object) -> bool:
    """Is it a message, or a number that says more than "not yet"?"""
    return type(result) is bytes or (result != NOT_YET and result != INTERRUPTED)


def resume(call: Callable[[int], T], ns: int) -> T:
    """Call with the time that is left until no signal interrupts it (PEP 475)."""
    deadline = time.monotonic_ns() + ns
    left = ns
    while type(result := call(left)) is int and result == INTERRUPTED:
        if ns > 0:  # the handlers have run by now
            left = max(0, deadline - time.monotonic_ns())
    return result


def label_of(name: str | None) -> str:
    """What error texts call it."""
    return "nameless channel" if name is None else f"channel {name!r}"


def ring_failure(name: str | None, code: int) -> Exception:
    """Return the exception for a negative number out of the core, with the ring's name."""
    label = label_of(name)
    if code == lib.PL_E_SHUT:
        return ChannelClosed(f"the {label} was shut down")
    if code == -errno.EBADF:
        return ChannelClosed(f"the {label} is closed in this process")
    if code == lib.PL_E_CORRUPT:
        return PyloopError(f"the {label} was truncated, or written to by somebody else")
    return failure(code)


def put_failure(name: str | None, code: int, length: int, most: int) -> Exception:
    """Do the same for a message of `length` bytes that was not put."""
    if code == lib.PL_E_TOO_LONG:
        label = label_of(name)
        return ValueError(
            f"a message of {length} bytes is over the max_message of the {label}, {most}"
        )
    return ring_failure(name, code)


def padded(capacity: int) -> int:
    """Round up to the 8 bytes that all in a ring is aligned to."""
    return (capacity + 7) // 8 * 8


def _check_numbers(**sizes: object) -> None:
    for what, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"{what} must be an int or None, not {size!r} ({type(size).__name__})")


def _shape(capacity: int | None, max_message: int | None) -> tuple[int, int]:
    """Return both with their defaults, or raise ValueError: no channel has them."""
    size = padded(CAPACITY if capacity is None else capacity)
    longest = MAX_MESSAGE if max_message is None else max_message
    if not 1 <= size <= lib.PL_RING_CAPACITY_MAX:
        raise ValueError(f"capacity must be 1 to {lib.PL_RING_CAPACITY_MAX} bytes, not {capacity}")
    if longest < 1:
        raise ValueError(f"max_message must be 1 or more bytes, not {longest}")
    if 8 + padded(longest) > size:
        raise ValueError(
            f"capacity {size} is too small for max_message {longest}: "
            f"such a message takes {8 + padded(longest)} bytes"
        )
    return size, longest


def _owned(ring: Any) -> Any:
    return ffi.gc(ring, lib.pl_ring_free)


def make_ring(capacity: int | None, max_message: int | None, create: bool | None) -> Any:
    """Return a nameless one."""
    if create is False:
        raise ValueError("only a channel with a name can be attached to; give a child the object")
    _check_numbers(capacity=capacity, max_message=max_message)
    size, longest = _shape(capacity, max_message)
    error = ffi.new("int *")
    ring = lib.pl_ring_new(size, longest, error)
    if ring == ffi.NULL:
        raise _open_failure(None, error[0], size)
    return _owned(ring)


def open_ring(name: str, capacity: int | None, max_message: int | None, create: bool | None) -> Any:
    """Return one that is found by name, or made if `create` allows it."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {type(name).__name__}")
    _check_numbers(capacity=capacity, max_message=max_message)
    size, longest = _shape(capacity, max_message) if create is not False else (0, 0)
    how = {True: lib.PL_CREATE, False: lib.PL_ATTACH, None: lib.PL_ATTACH_OR_CREATE}[create]
    encoded = os.fsencode(name)
    outcome = ffi.new("int *", -errno.EINVAL)
    ring = ffi.NULL
    if b"\0" not in encoded:
        outcome[0] = INTERRUPTED
    while ring == ffi.NULL and outcome[0] == INTERRUPTED:  # Python has run its signal handlers
        ring = lib.pl_ring_open(encoded, how, size, longest, outcome)
    if ring == ffi.NULL:
        raise _open_failure(name, outcome[0], size)
    return _owned(ring)


def _open_failure(name: str | None, code: int, size: int) -> Exception:
    label = label_of(name)
    if code == -errno.EINVAL:
        limit = lib.PL_RING_NAME_MAX
        return ValueError(
            f'{label}: a name is 1 to {limit} bytes, without "/" and not ending in ".bell"'
        )
    if code == lib.PL_E_FOREIGN:
        return ValueError(f"{label} was not made by this version of pyloop, or never finished")
    if code in (-errno.ENOSPC, -errno.ENOMEM):
        return OSError(-code, f"{label}: {size} bytes of shared memory are not to be had")
    return OSError(-code, f"{label}: {os.strerror(-code)}")


def adopt_ring(fd: int, bell: int) -> Any:
    """Return the nameless one of another process, by its two fds, which stay the caller's."""
    error = ffi.new("int *")
    ring = lib.pl_ring_adopt(fd, bell, error)
    if ring == ffi.NULL:
        raise _open_failure(None, error[0], 0)
    return _owned(ring)


def unlink_ring(name: str) -> None:
    """Remove a name."""
    code = lib.pl_ring_unlink(os.fsencode(name))
    if code:
        raise _open_failure(name, code, 0)
