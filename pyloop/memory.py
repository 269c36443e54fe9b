"""SharedMemory: a region that processes find by its name.

shm_open, posix_fallocate, mmap. There is no resource tracker: a region stays until somebody calls
unlink, whatever becomes of the processes that have it open.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from pyloop.core import check, ffi, lib
from pyloop.mapping import Mapping, whole

__all__ = ["SharedMemory"]

_NAME_BYTES = 250  # glibc takes 253, others 255 with the slash; a few are left for prefixes
_ATTEMPTS = 16


class SharedMemory(Mapping):
    """Memory that unrelated processes share, found by its name.

    Slices copy and are safe whatever another process does: `m[a:b]` are bytes, `m[a:b] = data`
    writes. `.buf` is the memory itself. Closing it, or ending, leaves others' alone; `unlink`
    removes the name, and the memory with its last user. A context manager: leaving it closes.

    Args:
        name: Without a slash; None with create=True: one that is free, see `name`.
        size: Bytes. To open: what is expected at least, and mapped; 0: all there is.
        create: Make it; the memory is allocated now, so that a full one is an error now.
        exclusive: With create: one that exists is an error. False opens that one.
        truncate: Drop what a region that exists holds. Other processes' views break: SIGBUS.
        readonly: Map it for reading only.
        mode: Permissions of a new one, less the umask.

    Raises:
        FileExistsError, FileNotFoundError, PermissionError: as the name has it.
        ValueError: a name or size that cannot be, or a region smaller than `size`.
        OSError: ENOSPC, ENOMEM: the memory is full; nothing is left behind.

    Source:
        shm_open(3), posix_fallocate(3), mmap(2)
    """

    __slots__ = ()

    def __init__(
        self,
        name: str | None = None,
        size: int = 0,
        create: bool = False,
        exclusive: bool = True,
        truncate: bool = False,
        readonly: bool = False,
        mode: int = 0o600,
    ) -> None:
        super().__init__("?" if name is None else _checked(name))
        _check_arguments(name, size, create, truncate, readonly, mode)
        made = False
        if create:
            fd, made = self._create(name is None, exclusive, mode)
        else:
            fd = _open(self._name, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            length = self._sized(fd, size, create, truncate)
            how = lib.PL_MAP_READ if readonly else lib.PL_MAP_SHARED
            self._map(fd, self._name, 0, length, how)
        except BaseException:
            if made:
                lib.pl_shm_unlink(_path(self._name))
            raise
        finally:
            os.close(fd)

    def _create(self, anyname: bool, exclusive: bool, mode: int) -> tuple[int, bool]:
        """Return an fd, and whether the region is new."""
        flags = os.O_RDWR | os.O_CREAT
        for _ in range(_ATTEMPTS):
            if anyname:
                self._name = f"pyloop-{secrets.token_hex(8)}"
            try:
                return _open(self._name, flags | os.O_EXCL, mode), True
            except FileExistsError:
                if exclusive and not anyname:
                    raise
            try:
                if not anyname:
                    return _open(self._name, os.O_RDWR), False
            except FileNotFoundError:
                pass  # unlinked in between
        raise FileExistsError(f"no free name for shared memory in {_ATTEMPTS} attempts")

    def _sized(self, fd: int, size: int, create: bool, truncate: bool) -> int:
        """Give the region its size where it has none; return how much to map."""
        if truncate:
            os.ftruncate(fd, 0)
        there = os.fstat(fd).st_size
        if there == 0 and (create or truncate):
            code = lib.pl_shm_allocate(fd, size)
            if code < 0:
                why = os.strerror(-code)
                what = f"cannot allocate {size} bytes of shared memory: {why}"
                raise OSError(-code, what, self._name)
            return size
        if there < max(1, size):
            wanted = f"fewer than size={size}" if size else "so there is nothing to map"
            raise ValueError(f"shared memory {self._name!r} has {there} bytes, {wanted}")
        return size or there

    @property
    def name(self) -> str:
        """What other processes open it by."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes that are mapped."""
        return len(self)

    def unlink(self) -> None:
        """Remove the name; who has the region open keeps it. Also after close.

        Raises:
            FileNotFoundError: there is no such name any more.
        """
        code = lib.pl_shm_unlink(_path(self._name))
        if code < 0:
            raise OSError(-code, f"cannot unlink shared memory: {os.strerror(-code)}", self._name)

    def _place(self, offset: int, size: int, align: int) -> Any:
        """Return a uint8_t[] over `size` bytes at `offset`: it keeps the memory mapped.

        A cast of it does not: keep this one.

        Raises:
            ValueError: closed, read-only, not inside, or not a multiple of `align`.
        """
        self._open_handle()
        if whole("offset", offset) % align:
            raise ValueError(f"offset must be a multiple of {align}, not {offset}")
        if offset + size > self._length:
            raise ValueError(
                f"{size} bytes at offset={offset} are not inside the {self._length} bytes of "
                f"shared memory {self._name!r}"
            )
        if not self._writable:
            raise ValueError(f"shared memory {self._name!r} is read-only")
        return ffi.from_buffer("uint8_t[]", self.buf[offset : offset + size])


def _path(name: str) -> bytes:
    return b"/" + os.fsencode(name)


def _open(name: str, flags: int, mode: int = 0) -> int:
    code: int = lib.pl_shm_open(_path(name), flags, mode)
    if code < 0:
        what = "create" if flags & os.O_CREAT else "open"
        raise OSError(-code, f"cannot {what} shared memory: {os.strerror(-code)}", name)
    return check(code)


def _checked(name: object) -> str:
    """Return a name that shm_open takes, or raise what is wrong with it."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {name!r} ({type(name).__name__})")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"name must be a file's name without a slash or NUL, not {name!r}")
    length = len(os.fsencode(name))
    if length > _NAME_BYTES:
        raise ValueError(
            f"name must be at most {_NAME_BYTES} bytes, not {length}: {name[:40]!r}..."
        )
    return name


def _check_arguments(
    name: str | None, size: int, create: bool, truncate: bool, readonly: bool, mode: int
) -> None:
    whole("size", size)
    if whole("mode", mode) > 0o777:
        raise ValueError(f"mode must be 0 to 0o777, not {mode:#o}")
    if name is None and not create:
        raise ValueError("name must be given, unless create=True makes a region with a free one")
    if (create or truncate) and size == 0:
        raise ValueError("size must be 1 byte or more with create=True or truncate=True, not 0")
    if readonly and (create or truncate):
        raise ValueError(
            "readonly=True excludes create=True and truncate=True: nobody could fill it"
        )
