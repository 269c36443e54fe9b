"""The one door to the C core: nothing else imports ffi and lib.

Every number that the core returns passes through `check`, which turns -errno into
the OSError that Python has for it and the core's own PL_E_* into ours.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from _cffi_backend import __version__ as cffi_version

from pyloop import errors
from pyloop._core import ffi, lib

__all__ = [
    "MEMORY",
    "address_of",
    "address_of_loop",
    "beyond_select",
    "cffi_version",
    "check",
    "failure",
    "ffi",
    "is_foreign",
    "lib",
]

# Events carry addresses; this view of all memory turns two of them into bytes with one slice.
MEMORY = ffi.buffer(ffi.cast("char *", 0), sys.maxsize)

_gone = functools.partial(OSError, errno.EFAULT)
_REASONS: dict[int, tuple[Callable[[str], Exception], str]] = {
    lib.PL_E_TOO_LONG: (errors.FramingError, "message over max_size"),
    lib.PL_E_MALFORMED: (errors.FramingError, "malformed message length"),
    lib.PL_E_INCOMPLETE: (errors.FramingError, "incomplete message"),
    lib.PL_E_TERMINATOR: (ValueError, "payload contains the terminator"),
    lib.PL_E_RANGE: (ValueError, "payload does not fit the length prefix"),
    lib.PL_E_SIZE: (ValueError, "payload has the wrong length"),
    lib.PL_E_IDLE: (TimeoutError, "idle_timeout passed"),
    lib.PL_E_MESSAGE_TIME: (TimeoutError, "message_timeout passed"),
    lib.PL_E_WRITE_LIMIT: (errors.WriteLimitError, "more than write_limit bytes queued"),
    lib.PL_E_PAYLOAD: (TypeError, "the framing must read a message to send it: send bytes(view)"),
    lib.PL_E_TRUNCATED: (
        _gone,
        "a mapped file was truncated, or its disk failed, while a view of it was queued to send",
    ),
    lib.PL_E_THREAD: (
        RuntimeError,
        "called from another thread than the loop's: use loop.call_soon_threadsafe()",
    ),
    lib.PL_E_FORKED: (RuntimeError, "the loop belongs to another process"),
    lib.PL_E_CORRUPT: (
        errors.PyloopError,
        "the shared memory was truncated, or written to by somebody else",
    ),
    lib.PL_E_FOREIGN: (
        ValueError,
        "the shared memory was not made by this version of pyloop for this purpose",
    ),
    lib.PL_E_SHUT: (errors.ChannelClosed, "the channel was shut down"),
}


def failure(code: int, ptr: Any = ffi.NULL) -> Exception:
    """Return the exception for a negative number out of the core; `ptr` is the loop, if any."""
    if code == lib.PL_E_FORKED and ptr != ffi.NULL:
        return RuntimeError(
            f"the loop belongs to process {lib.pl_loop_pid(ptr)}, this is {os.getpid()}: "
            "make a new loop after a fork"
        )
    reason = _REASONS.get(code)
    if reason:
        return reason[0](reason[1])
    return OSError(-code, os.strerror(-code))


def check(code: int, ptr: Any = ffi.NULL) -> int:
    """Return `code` when it is >= 0, else raise what it stands for."""
    if code < 0:
        raise failure(code, ptr)
    return code


def beyond_select(what: str) -> str:
    """Say what -ERANGE means for an fd: `what` is which one."""
    return (
        f"{what} is not below FD_SETSIZE ({lib.pl_fdset_size()}), the limit of "
        'backend="select": use backend="auto"'
    )


def address_of(ptr: Any) -> int:
    """Return where in memory a pointer points: for the fast path."""
    return int(ffi.cast("uintptr_t", ptr))


def address_of_loop(ptr: Any) -> int:
    """Return the same, of a pointer to a loop. Raises TypeError for any other."""
    return address_of(ffi.new("struct pl_loop *[1]", [ptr])[0])


def is_foreign(ptr: Any) -> bool:
    """Was the loop made by another process, of which this is a fork?"""
    return bool(lib.pl_loop_pid(ptr) != os.getpid())
