"""MappedFile: the bytes of a file as memory.

What several processes map of one file is one memory. Reading costs no system call and no copy; the
kernel fetches a page when it is touched, and writes it back on its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Literal

from pyloop.core import lib
from pyloop.mapping import Mapping, whole

__all__ = ["MappedFile"]

_MODES = {"r": lib.PL_MAP_READ, "r+": lib.PL_MAP_SHARED, "c": lib.PL_MAP_PRIVATE}
_ADVICES = {
    "normal": lib.PL_MAP_NORMAL,
    "random": lib.PL_MAP_RANDOM,
    "sequential": lib.PL_MAP_SEQUENTIAL,
    "willneed": lib.PL_MAP_WILLNEED,
    "dontneed": lib.PL_MAP_DONTNEED,
}


class MappedFile(Mapping):
    """A regular file in memory, or a part of it.

    Slices copy and are safe when somebody truncates the file: `m[a:b]` are bytes, `m[a:b] = data`
    writes. `.buf` is the memory itself. `conn.send(m.view(a, b))` sends without a copy. A context
    manager: leaving it closes.

    Args:
        path_or_fd: A path, or an open fd, which stays yours.
        length: Bytes to map; None: to the end of the file.
        offset: The first byte; any, alignment to pages is done here.
        mode: "r" to read; "r+" to read and write the file; "c" to read and write a private copy.
        create_size: With "r+": make the file if there is none, and make it this long if it is
            shorter. The disk space is taken now, so that a full disk is an error now.

    Raises:
        ValueError: the bytes are not in the file, there are none, or it is no regular file.
        OSError: as the file has it; ENOSPC: a file that was made or grown is as it was.

    Source:
        mmap(2), posix_fallocate(3)
    """

    __slots__ = ("_mode",)

    def __init__(
        self,
        path_or_fd: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
        length: int | None = None,
        offset: int = 0,
        mode: Literal["r", "r+", "c"] = "r",
        create_size: int | None = None,
    ) -> None:
        super().__init__("?")
        if mode not in _MODES:
            raise ValueError(f"mode must be 'r', 'r+' or 'c', not {mode!r}")
        if create_size is not None and mode != "r+":
            raise ValueError(f"create_size needs mode='r+', not mode={mode!r}")
        whole("offset", offset)
        size = 0 if create_size is None else whole("create_size", create_size, 1)
        with contextlib.ExitStack() as undo:
            fd = self._open(path_or_fd, mode, size > 0, undo)
            _check_regular(fd, self._name)
            _grow(fd, size, self._name)
            self._map(fd, self._name, offset, self._extent(fd, offset, length), _MODES[mode])
            undo.pop_all()
            if not isinstance(path_or_fd, int):
                os.close(fd)
        self._mode = mode

    def _open(self, path_or_fd: object, mode: str, create: bool, undo: contextlib.ExitStack) -> int:
        """Return an fd; what is to be done if anything fails goes into `undo`."""
        if isinstance(path_or_fd, int) and not isinstance(path_or_fd, bool):
            self._name = f"fd {path_or_fd}"
            return path_or_fd
        if not isinstance(path_or_fd, str | bytes | os.PathLike):
            kind = type(path_or_fd).__name__
            raise TypeError(f"path_or_fd must be a path or an fd, not {path_or_fd!r} ({kind})")
        path = self._name = os.fsdecode(path_or_fd)
        flags = os.O_NONBLOCK | (os.O_RDWR if mode == "r+" else os.O_RDONLY)  # for FIFOs
        while True:
            try:
                fd = os.open(path, flags)
                undo.callback(os.close, fd)
                return fd
            except FileNotFoundError:
                if not create:
                    raise
            try:
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                undo.callback(os.close, fd)
                undo.callback(os.unlink, path)
                return fd
            except FileExistsError:
                if os.path.islink(path):
                    raise  # to nowhere
                # else somebody was faster

    def _extent(self, fd: int, offset: int, length: int | None) -> int:
        """Return how many bytes to map."""
        size = os.fstat(fd).st_size
        if length is None:
            if size <= offset:
                raise ValueError(
                    f"{self._name!r} has {size} bytes: from offset={offset} there is nothing to map"
                )
            return size - offset
        if whole("length", length, 1) + offset > size:
            raise ValueError(
                f"offset={offset} and length={length} go beyond the end of {self._name!r}, "
                f"which has {size} bytes"
            )
        return length

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The path, or "fd N"."""
        return self._name

    @property
    def offset(self) -> int:
        """Where in the file the first byte is."""
        return self._offset

    @property
    def mode(self) -> str:
        """How it is mapped: "r", "r+" or "c"."""
        return self._mode

    # ---- the file ----

    def flush(self, start: int = 0, length: int | None = None) -> None:
        """Have what was written on the disk when it returns, as msync does; this blocks.

        Other processes see it at once, without this; so does whoever reads the file.

        Raises:
            OSError: EIO: the disk failed.
        """
        handle = self._open_handle()
        start, length = self._range(start, length)
        self._done("flush", lib.pl_mapping_flush(handle, start, length), start, length)

    def advise(self, advice: str, start: int = 0, length: int | None = None) -> None:
        """Tell the kernel how the bytes will be used, as madvise does.

        Args:
            advice: "sequential", "random" or "normal" for how far to read ahead; "willneed": fetch
                them now; "dontneed": give the memory back, of pages that are wholly in the range.
                Under mode "c" the last one also forgets what was written there.
            start: The first byte.
            length: How many; None: all that follow.
        """
        handle = self._open_handle()
        if advice not in _ADVICES:
            raise ValueError(f"advice must be one of {', '.join(_ADVICES)}, not {advice!r}")
        start, length = self._range(start, length)
        code = lib.pl_mapping_advise(handle, start, length, _ADVICES[advice])
        self._done("advise on", code, start, length)

    def resize(self, length: int) -> None:
        """Map `length` bytes from the same offset. Needs mode "r+".

        The file grows when it is too short, and is cut when the mapping ended where it ends. The
        memory may move: memoryviews from before go on showing the file where they did.

        Raises:
            BufferError: a view is queued to send, or memoryviews are in use and it would shrink.
            OSError: ENOSPC: the file and the mapping are as they were.
        """
        handle = self._open_handle()
        if self._mode != "r+":
            raise ValueError(f"resize needs mode='r+', this is mode={self._mode!r}")
        whole("length", length, 1)
        self._check_unqueued("resize")
        fd, offset, before = lib.pl_mapping_fd(handle), self._offset, self._length
        if length >= before:
            _grow(fd, offset + length, self._name)
            self._map(fd, self._name, offset, length, lib.PL_MAP_SHARED)
            return
        if self._lent:
            raise BufferError(f"cannot shrink MappedFile {self._name!r}: memoryviews are in use")
        self._map(fd, self._name, offset, length, lib.PL_MAP_SHARED)
        if os.fstat(fd).st_size == offset + before:
            os.ftruncate(fd, offset + length)


def _check_regular(fd: int, name: str) -> None:
    kind = os.fstat(fd).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(kind):
        raise ValueError(f"{name!r} is not a regular file: it cannot be mapped")


def _grow(fd: int, size: int, name: str) -> None:
    """Make a file at least so long, the space taken now; on failure it is as it was."""
    there = os.fstat(fd).st_size
    if there >= size:
        return
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, there, size - there)
        else:
            os.ftruncate(fd, size)
    except OSError as exc:
        with contextlib.suppress(OSError):  # it may be an fd to read
            os.ftruncate(fd, there)
        raise OSError(exc.errno, f"cannot allocate {size} bytes: {exc.strerror}", name) from None
