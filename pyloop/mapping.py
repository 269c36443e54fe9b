"""Bytes of a file in memory, as MappedFile and SharedMemory have them, and a view to send.

    MappedFile, SharedMemory -> struct pl_mapping <- memoryviews of .buf, MappedViews, queued output

Whoever refers to the struct keeps its memory mapped; the last one to go unmaps it. Slices are
copied by the kernel (csrc/mapping.c): bytes that the file has lost are an OSError there. A
memoryview is plain memory, and to touch such bytes through one ends the process with SIGBUS.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from pyloop.core import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MappedView", "Mapping", "whole"]

M = TypeVar("M", bound="Mapping")
_LOST = "the file was truncated while it was mapped, or its disk failed"
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


def whole(name: str, value: object, least: int = 0) -> int:
    """Return an argument that is a number of bytes, or raise what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} ({type(value).__name__})")
    if not least <= value < 1 << 63:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def _keep(pointer: Any, kept: Any) -> Any:
    """Return `pointer` as one that keeps `kept` alive."""
    return ffi.gc(pointer, lambda _: kept)


def _copy_out(handle: Any, start: int, length: int) -> tuple[int, bytes]:
    """Return what the core said, and the bytes."""
    room = _allocate("uint8_t[]", length)
    code: int = lib.pl_mapping_read(handle, start, room, length)
    return code, bytes(ffi.buffer(room, length)) if code == 0 else b""


class Mapping:
    """What is mapped: the part that MappedFile and SharedMemory have in common."""

    __slots__ = ("__weakref__", "_handle", "_length", "_lent", "_name", "_offset", "_writable")

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None  # closed
        self._lent: dict[int, weakref.ref[Any]] = {}  # what memoryviews of it refer to

    def _map(self, fd: int, name: str, offset: int, length: int, mode: int) -> None:
        where = ffi.new("struct pl_mapping **")
        code = lib.pl_mapping_new(fd, offset, length, mode, where)
        if code < 0:
            what = f"cannot map {length} bytes from offset {offset}: {os.strerror(-code)}"
            raise OSError(-code, what, name)
        self._handle = ffi.gc(where[0], lib.pl_mapping_release)
        self._name, self._offset, self._length = name, offset, length
        self._writable = mode != lib.PL_MAP_READ

    def _open_handle(self) -> Any:
        if self._handle is None:
            raise ValueError(f"{type(self).__name__} {self._name!r} is closed")
        return self._handle

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"{self._length} bytes"
        return f"<{type(self).__name__} {self._name!r} {state}>"

    # ---- the memory itself ----

    @property
    def buf(self) -> memoryview:
        """All of it as a memoryview, read-only where the mapping is.

        It stays valid when this object is closed: the memory is unmapped with its last view. Plain
        memory: where the file has been truncated, a touch ends the process with SIGBUS.
        """
        handle = self._open_handle()
        pointer = _keep(lib.pl_mapping_data(handle), handle)
        exporter = ffi.buffer(pointer, lib.pl_mapping_len(handle))
        lent = self._lent
        ref = weakref.ref(exporter, lambda ref: lent.pop(id(ref), None))
        lent[id(ref)] = ref
        view = memoryview(exporter)
        return view if self._writable else view.toreadonly()

    @property
    def address(self) -> int:
        """Where in memory the first byte is; a page begins at `address - address % page_size`."""
        return int(ffi.cast("uintptr_t", lib.pl_mapping_data(self._open_handle())))

    @property
    def page_size(self) -> int:
        """Bytes of a page: what the kernel maps, reads and writes at once."""
        return mmap.PAGESIZE

    @property
    def closed(self) -> bool:
        """Has it been closed?"""
        return self._handle is None

    def __len__(self) -> int:
        self._open_handle()
        return self._length

    # ---- copies ----

    def __getitem__(self, index: slice) -> bytes:
        handle = self._open_handle()
        start, length = self._bounds(index)
        code, data = _copy_out(handle, start, length)
        self._done("read", code, start, length)
        return data

    def __setitem__(self, index: slice, data: Buffer) -> None:
        handle = self._open_handle()
        start, length = self._bounds(index)
        self._check_writable()
        if isinstance(data, str):
            raise TypeError(f"expected bytes-like, got str: {data[:40]!r} (encode it first)")
        with ffi.from_buffer("uint8_t[]", data) as source:
            if len(source) != length:
                raise ValueError(f"a slice of {length} bytes cannot be set to {len(source)} bytes")
            at = int(ffi.cast("uintptr_t", source)) - self.address
            if 0 <= at < self._length:  # it is of this memory, and must not change under way
                return self.__setitem__(index, self[at : at + length])
            code = lib.pl_mapping_write(handle, start, source, length)
        self._done("write", code, start, length)

    def __bytes__(self) -> bytes:
        return self[:]

    def __buffer__(self, flags: int, /) -> memoryview:
        """Be bytes-like from Python 3.12 on: what takes a buffer takes `buf`."""
        return self.buf

    def fill(self, byte: int = 0, start: int = 0, length: int | None = None) -> None:
        """Set bytes to `byte`, as memset does.

        Args:
            byte: 0 to 255.
            start: The first one.
            length: How many; None: all that follow.

        Raises:
            TypeError: read-only.
            OSError: EFAULT: the file no longer has them.
        """
        handle = self._open_handle()
        if whole("byte", byte) > 255:
            raise ValueError(f"byte must be 0 to 255, not {byte}")
        start, length = self._range(start, length)
        self._check_writable()
        code = lib.pl_mapping_fill(handle, start, byte, length)
        self._done("fill", code, start, length)

    def view(self, start: int = 0, stop: int | None = None) -> MappedView:
        """Return bytes [start, stop) to be sent by reference: conn.send(m.view(a, b)).

        Args:
            start: The first byte.
            stop: One past the last one; None: to the end.

        Raises:
            ValueError: it is not inside.
        """
        handle = self._open_handle()
        length = lib.pl_mapping_len(handle)  # not our own: another thread may be resizing
        stop = length if stop is None else whole("stop", stop)
        if not whole("start", start) <= stop <= length:
            raise ValueError(f"view({start}, {stop}) is not inside the {length} bytes mapped")
        return MappedView(handle, start, stop - start, self._name, self._offset)

    def _bounds(self, index: object) -> tuple[int, int]:
        if not isinstance(index, slice):
            name = type(self).__name__
            raise TypeError(f"{name} is indexed by slices, m[a:b], not {type(index).__name__}")
        start, stop, step = index.indices(self._length)
        if step != 1:
            raise ValueError(f"the step of a slice must be 1, not {step}")
        return start, max(0, stop - start)

    def _range(self, start: int, length: int | None) -> tuple[int, int]:
        length = self._length - whole("start", start) if length is None else whole("length", length)
        if not 0 <= length <= self._length - start:
            raise ValueError(
                f"start={start} and length={length} are not inside the {self._length} bytes mapped"
            )
        return start, length

    def _check_writable(self) -> None:
        if not self._writable:
            raise TypeError(f"{type(self).__name__} {self._name!r} is read-only")

    def _done(self, what: str, code: int, start: int, length: int) -> None:
        """Raise the error that the core told of, if it did."""
        if code < 0:
            raise _failed(what, code, self._offset + start, length, self._name)

    # ---- ending ----

    def close(self) -> None:
        """Let go of the memory: it is unmapped when its last view has gone too.

        Raises:
            BufferError: a view of it is queued to send; it stays open.
        """
        if self._handle is not None:
            self._check_unqueued("close")
            self._handle = None

    def _check_unqueued(self, what: str) -> None:
        queued = lib.pl_mapping_queued(self._handle)
        if queued:
            raise BufferError(
                f"cannot {what} {type(self).__name__} {self._name!r}: "
                f"{queued} view{'s' * (queued > 1)} of it queued to send"
            )

    def __enter__(self: M) -> M:
        self._open_handle()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _failed(what: str, code: int, offset: int, length: int, name: str) -> OSError:
    """Return the error of a copy."""
    why = _LOST if code == -errno.EFAULT else os.strerror(-code)
    return OSError(-code, f"cannot {what} {length} bytes at offset {offset}: {why}", name)


class MappedView:
    """A part of a MappedFile or SharedMemory, to send without a copy: made by their `view`.

    What is sent is what the memory holds when it is flushed. Keeps the memory mapped.
    `len(view)` is its length, `bytes(view)` a copy.
    """

    __slots__ = ("_handle", "_length", "_name", "_offset", "_start")

    def __init__(self, handle: Any, start: int, length: int, name: str, offset: int) -> None:
        self._handle = handle
        self._start, self._length = start, length
        self._name, self._offset = name, offset

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        code, data = _copy_out(self._handle, self._start, self._length)
        if code < 0:
            raise self._failed("read", code)
        return data

    def _queue(self, ptr: Any, ident: int, framed: bool) -> int:
        """Queue it by reference on a conn of the core; return what that said."""
        code: int = lib.pl_conn_send_mapped(
            ptr, ident, self._handle, self._start, self._length, framed
        )
        return code

    def _send_all(self, sock: Any) -> None:
        """Have the kernel take it from the memory; raises EFAULT when the file is truncated."""
        self._check()  # the rest of a last page reads as zeroes, and need not go out
        data = lib.pl_mapping_data(self._handle) + self._start
        try:
            sock.sendall(ffi.buffer(data, self._length))
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                raise self._failed("send", -errno.EFAULT) from None
            raise
        self._check()

    def _check(self) -> None:
        code = lib.pl_mapping_check(self._handle, self._start, self._length)
        if code < 0:
            raise self._failed("send", code)

    def __repr__(self) -> str:
        first = self._offset + self._start
        return f"<MappedView of {self._name!r}, {self._length} bytes at offset {first}>"

    def _failed(self, what: str, code: int) -> OSError:
        offset = self._offset + self._start
        return _failed(what, code, offset, self._length, self._name)
