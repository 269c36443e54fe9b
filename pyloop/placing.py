"""Where locks and semaphores stand: under a name, in a SharedMemory, or in memory of their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from pyloop.core import check, ffi, lib
from pyloop.memory import SharedMemory

__all__ = [
    "anonymous",
    "check_place",
    "encode_name",
    "how_to_create",
    "in_memory",
    "placed",
    "shown",
]


def check_place(name: str | None, memory: SharedMemory | None, create: bool | None) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: both places; in memory without saying whether to make it; nothing to attach to.
    """
    if memory is not None and not isinstance(memory, SharedMemory):
        raise TypeError(f"memory must be a SharedMemory or None, not {type(memory).__name__}")
    if name is not None and memory is not None:
        raise ValueError("name and memory are two places: give one")
    if memory is not None and create is None:
        raise ValueError("in memory, create must be True (make it) or False (attach to it)")
    if name is None and memory is None and create is False:
        raise ValueError("create=False needs a name or memory to attach to")


def how_to_create(create: bool | None) -> int:
    """Return the enum pl_create of an argument `create`."""
    if create is None:
        return int(lib.PL_ATTACH_OR_CREATE)
    return int(lib.PL_CREATE if create else lib.PL_ATTACH)


def encode_name(name: str, longest: int) -> bytes:
    """Return the name as sem_open takes it.

    Raises:
        ValueError: it is empty, too long, or has a slash or NUL in it.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")
    encoded = os.fsencode(name)
    if not 1 <= len(encoded) <= longest or b"/" in encoded or b"\0" in encoded:
        raise ValueError(f"name must be 1 to {longest} bytes without slash and NUL, not {name!r}")
    return b"/" + encoded


def anonymous(label: str, size: int) -> Any:
    """Return zeroed memory without a name, sealed: children of this process share it."""
    where = ffi.new("void **")
    os.close(check(lib.pl_memory_new(label.encode(), size, where)))
    unmap = lib.pl_memory_unmap  # kept: at the interpreter's end this module may be empty
    return ffi.gc(ffi.cast("uint8_t *", where[0]), lambda data: unmap(data, size))


def in_memory(memory: SharedMemory, offset: int, what: Any) -> tuple[Any, Callable[[], None]]:
    """Return where `what` (its SIZE and ALIGN) stands, and a function that says if it still does.

    To touch memory that has been truncated would be SIGBUS. The pointer keeps it mapped.
    """
    handle, name, size = memory._open_handle(), memory.name, what.SIZE
    pointer = memory._place(offset, size, what.ALIGN)

    def look() -> None:
        code = lib.pl_mapping_check(handle, offset, size)
        if code == -errno.EFAULT:
            raise OSError(-code, "the shared memory was truncated", name)
        check(code)

    look()
    return pointer, look


def shown(state: Callable[[], str]) -> str:
    """Return a state for a repr, which must not raise."""
    try:
        return state()
    except ValueError:
        return "closed"
    except OSError:
        return "truncated"


def placed(code: int, found: Any, place: Any, what: str, where: str) -> Any:
    """Return what the core found in `place`, as a pointer that keeps that mapped.

    Raises:
        FileExistsError, FileNotFoundError: by `code`.
        ValueError: something else is there.
    """
    if code == lib.PL_E_FOREIGN:
        raise ValueError(f"{where}: here is no {what}, and not the zeroes where one is made")
    if code == -errno.ENOENT:
        raise FileNotFoundError(-code, f"{where}: no {what} is here")
    if code == -errno.EEXIST:
        raise FileExistsError(-code, f"{where}: there is a {what} already")
    check(code)
    return ffi.gc(found[0], lambda _: place)
