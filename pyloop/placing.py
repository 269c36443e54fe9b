"""Where what processes share stands: under a name, in memory that they share, or in their parent's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyloop.core import check, ffi, lib

if TYPE_CHECKING:
    from pyloop.memory import SharedMemory

__all__ = ["anonymous", "check_place", "encode_name", "tied"]


def check_place(name: str | None, memory: SharedMemory | None, create: bool | None) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: both places; in memory without saying whether to make it; nothing to attach to.
    """
    if name is not None and memory is not None:
        raise ValueError("name and memory are two places: give one")
    if memory is not None and create is None:
        raise ValueError("in memory, create must be True (make it) or False (attach to it)")
    if name is None and memory is None and create is False:
        raise ValueError("create=False needs a name or memory to attach to")


def encode_name(name: str, prefix: str = "") -> bytes:
    """Return the name as sem_open takes it; the system puts `prefix` in front, in a directory.

    Raises:
        ValueError: it is empty, too long, or has a slash or NUL in it.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")
    encoded = os.fsencode(name)
    longest = 255 - len(prefix)
    if not encoded or len(encoded) > longest or b"/" in encoded or b"\0" in encoded:
        raise ValueError(f"name must be 1 to {longest} bytes without slash and NUL, not {name!r}")
    return b"/" + encoded


def anonymous(label: str, size: int) -> Any:
    """Return zeroed memory without a name, sealed: children of this process share it."""
    where = ffi.new("void **")
    os.close(check(lib.pl_memory_new(label.encode(), size, where)))
    unmap = lib.pl_memory_unmap  # kept: at the interpreter's end this module may be empty
    return ffi.gc(ffi.cast("uint8_t *", where[0]), lambda data: unmap(data, size))


def tied(pointer: Any, owner: object) -> Any:
    """Return `pointer` as one that keeps `owner` alive."""
    return ffi.gc(pointer, lambda _, owner=owner: None)
