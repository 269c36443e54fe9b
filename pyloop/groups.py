"""The groups of the core that asyncio's transports belong to: those that share flags and marks."""

from __future__ import annotations

from typing import Any

from pyloop.core import check, ffi, lib
from pyloop.framing import Raw

__all__ = ["DEFAULT_MARKS", "Groups"]

DEFAULT_MARKS = 64 * 1024, 16 * 1024
"""High and low water, in bytes: asyncio's."""


class Groups:
    """The groups of a loop's transports: one for each kind, one for whoever has its own marks."""

    def __init__(self, ptr: Any) -> None:
        self._ptr = ptr
        self._numbers: dict[int, int] = {}
        self.counters = ffi.new("struct pl_counters *")

    def make(self, flags: int, high: int, low: int) -> int:
        """Return the number of a new group."""
        options = ffi.new("struct pl_options *")
        options.framing = Raw().spec[0]
        options.high_water, options.low_water = high, low
        options.flags = flags | lib.PL_BORROWED
        return check(lib.pl_group_new(self._ptr, options, self.counters), self._ptr)

    def make_default(self, flags: int) -> int:
        """Return the number of a new group with asyncio's marks."""
        return self.make(flags, *DEFAULT_MARKS)

    def number(self, flags: int) -> int:
        """Return the group of those that have asyncio's marks."""
        if flags not in self._numbers:
            self._numbers[flags] = self.make_default(flags)
        return self._numbers[flags]

    def set_marks(self, ident: int, flags: int, high: int, low: int) -> int:
        """Give a conn marks of its own. Returns 1 if more than `high` is queued."""
        group = self.make(flags, high, low)
        code: int = lib.pl_conn_regroup(self._ptr, ident, group)
        lib.pl_group_free(self._ptr, group)  # which lives on as long as its conn
        return code
