"""The page: counters of all processes of one run, in one sealed memfd that each of them maps.

    pl_page | cell 0: pl_cell, pl_counters x servers | cell 1 ... | cell n

Each process counts into a cell of its own, so nobody waits for anybody and a reader asks nobody.
A cell outlives its process: the next one goes on counting where that one stopped, so the sum over
all cells is what has been done since the page was made, and only the gauges are set back.
"""

from __future__ import annotations

import os
import time
from typing import Any

from pyloop.core import check, ffi, lib

__all__ = ["NAME", "Page", "page_bytes"]

NAME = "pyloop-stats"
"""How the memfd is called in /proc/PID/fd."""

_HEADER = ffi.sizeof("struct pl_page")
_CELL = ffi.sizeof("struct pl_cell")
_COUNTERS = ffi.sizeof("struct pl_counters")


def page_bytes(cells: int, servers: int) -> int:
    """Return the size of a page with so many cells, of so many servers each."""
    return int(_HEADER + cells * (_CELL + servers * _COUNTERS))


class Page:
    """Counters that processes share.

    Stays mapped for as long as this object lives: whoever keeps one of its pointers must keep it.

    Attributes:
        fd: the memfd, which may be closed once nobody else is to map it; -1 then, and if attached.
        header: struct pl_page *.
        size: bytes that are mapped.
        cells, servers: how many there are. Kept here, not read again: whoever may write to the page
            could make this process look beyond its end.
    """

    def __init__(self, cells: int, servers: int, label: str = "") -> None:
        size = page_bytes(cells, servers)
        where = ffi.new("void **")
        try:
            self.fd = check(lib.pl_memory_new(NAME.encode(), size, where))
        except OSError as exc:
            what = f"cannot make {size} bytes of shared memory for the counters: {exc.strerror}"
            raise OSError(exc.errno, what) from None
        self._map(where[0], size)
        self._shape(cells, servers)
        header = self.header
        header.version, header.size = lib.PL_PAGE_VERSION, size
        header.cells, header.servers, header.stride = cells, servers, self._stride
        header.pid = os.getpid()
        header.since_ns = time.monotonic_ns()
        self.set_label(label)

    @classmethod
    def attach(cls, fd: int, *, writable: bool = False) -> Page:
        """Map the page behind `fd`, which the caller owns and may close at once.

        Args:
            writable: may it be written to? Else an attempt ends the process: the kernel's SIGSEGV.

        Raises:
            ValueError: it is no page of this version of pyloop.
            OSError: it cannot be mapped.
        """
        size = os.fstat(fd).st_size
        where = ffi.new("void **")
        if size < _HEADER:
            raise ValueError(f"fd {fd}: {size} bytes are too few for a page of counters")
        check(lib.pl_memory_map(fd, size, writable, where))
        page = cls.__new__(cls)
        page.fd = -1
        page._map(where[0], size)
        header = ffi.new("struct pl_page *", page.header[0])  # a copy that stays as it is checked
        page._shape(header.cells, header.servers)
        expected = page_bytes(header.cells, header.servers)
        fits = header.size == expected <= size and header.stride == page._stride
        if header.version != lib.PL_PAGE_VERSION or not fits:
            raise ValueError(
                f"fd {fd}: no page of counters of version {lib.PL_PAGE_VERSION} "
                f"(version {header.version}, {header.size} bytes)"
            )
        return page

    def _shape(self, cells: int, servers: int) -> None:
        self.cells, self.servers = cells, servers
        self._stride = _CELL + servers * _COUNTERS

    def _map(self, data: Any, size: int) -> None:
        unmap = lib.pl_memory_unmap  # kept: at the interpreter's end this module may be empty
        self.size = size
        self._data = ffi.gc(ffi.cast("uint8_t *", data), lambda p: unmap(p, size))
        self.header = ffi.cast("struct pl_page *", self._data)

    def close_fd(self) -> None:
        """Close the fd; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set_label(self, label: str) -> None:
        """Say what is served; what does not fit is cut off between two characters."""
        room = lib.PL_PAGE_LABEL - 1
        data = label.encode("utf-8", "replace")[:room].decode("utf-8", "ignore").encode()
        ffi.buffer(self.header.label)[:] = data.ljust(room + 1, b"\0")

    @property
    def label(self) -> str:
        """What is served."""
        return bytes(ffi.buffer(self.header.label)).split(b"\0")[0].decode("utf-8", "replace")

    # ---- cells ----

    def cell(self, number: int) -> Any:
        """Return struct pl_cell * of a cell."""
        if not 0 <= number < self.cells:
            raise IndexError(f"cell {number}: the page has {self.cells}")
        return ffi.cast("struct pl_cell *", self._data + _HEADER + number * self._stride)

    def counters(self, number: int, server: int) -> Any:
        """Return struct pl_counters * of a server in a cell."""
        if not 0 <= server < self.servers:
            raise IndexError(f"server {server}: the page has {self.servers}")
        return ffi.cast("struct pl_counters *", self.cell(number) + 1) + server

    def used(self) -> range:
        """Return the numbers of the cells that are, or ever were, in use."""
        return range(min(self.header.used, self.cells))

    def claim(self, number: int, worker: int) -> None:
        """Give a free cell to a process that is about to be started."""
        self.occupy(number, worker, 0)
        self.header.started += 1

    def occupy(self, number: int, worker: int, pid: int) -> None:
        """Give a free cell to a process; 0 stands for a pid that is not known yet."""
        cell = self.cell(number)
        cell.worker, cell.pid = worker, pid
        cell.since_ns = time.monotonic_ns()
        cell.starts += 1
        cell.loop.running_since = 0
        cell.state = lib.PL_CELL_STARTING
        self.header.used = max(self.header.used, number + 1)

    def free(self, number: int) -> None:
        """Take a cell back from a process that has ended: its gauges go to zero, counters stay."""
        cell = self.cell(number)
        cell.state, cell.pid = lib.PL_CELL_FREE, 0
        cell.loop.running_since = 0
        for server in range(self.servers):
            self.counters(number, server).open = 0

    def withdraw(self, number: int) -> None:
        """Undo a claim: the process could not be started."""
        self.free(number)
        self.cell(number).starts -= 1
        self.header.started -= 1

    def note_exit(self, status: int) -> None:
        """Count how a process ended, by its status as from os.waitstatus_to_exitcode."""
        header = self.header
        if status < 0:
            header.killed += 1
        elif status:
            header.failed += 1
        else:
            header.exited += 1
