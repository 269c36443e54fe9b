"""Walk a batch: hand each event of a tick to what it is for.

The walk is one iterator, kept on the object: when SystemExit or KeyboardInterrupt leaves a handler,
the events behind it are delivered by the next walk. csrc/fastpath/walk.c is its twin.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from pyloop.core import MEMORY, ffi, lib
from pyloop.fast import fastpath

__all__ = ["PythonWalk", "Walk"]

# struct pl_event: id, kind, slot, data, end, value, head. The hot loop needs four of them.
_HOT = struct.Struct("@8xIIPP8x")
assert _HOT.size == ffi.sizeof("struct pl_event")

_MESSAGE = lib.PL_EV_MESSAGE
_BATCH_BYTES = lib.PL_EVENTS_MAX * _HOT.size


class Walk:
    """The walk over the batches of one loop, and who it finds at a slot."""

    def __init__(self, ptr: Any, nothing: Callable[[int, int, int], None]) -> None:
        self.taken = 0
        """Of the events that the core has counted, those that came here."""
        self.unfinished = False
        """Has the last walk not reached the end of its batch?"""
        self.datagrams: list[Any] = []
        """The datagram transports, by the slots of their ids: datagram_calls.py enters them."""
        self._table: list[Any] = []
        self._count = 0
        self._view = memoryview(ffi.buffer(lib.pl_loop_events(ptr), _BATCH_BYTES))
        self._events: Iterator[tuple[Any, ...]] = iter(())
        self._others: list[Callable[[int, int, int], None]] = [nothing] * 32

    def begin(self, count: int) -> None:
        """Take over a fresh batch of `count` events."""
        self._count = count
        self._events = _HOT.iter_unpack(self._view[: count * _HOT.size])
        self.unfinished = True
        self.taken += count

    @property
    def left(self) -> int:
        """How many events are behind the one that the walk is at."""
        return self._events.__length_hint__()  # type: ignore[attr-defined,no-any-return]

    def _index(self) -> int:
        """The number of the event that the walk is at."""
        return self._count - self.left - 1

    def walk(self) -> None:
        """Deliver what is left of the batch."""
        table, memory, others = self._table, MEMORY, self._others
        for kind, slot, start, end in self._events:
            if kind == _MESSAGE:
                conn: Any = table[slot]
                if conn._gate:
                    self._gated(conn)
                    continue
                try:
                    conn._context.run(conn._call, conn._target, memory[start:end])
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:  # a CancelledError ends no server
                    conn._fail(exc)
            else:
                others[kind](slot, start, end)
        self.unfinished = False

    def take(self) -> tuple[int, int, int, int] | None:
        """Step to the next event: (kind, slot, start, end), or None at the end."""
        event = next(self._events, None)
        if event is None:
            self.unfinished = False
        return event

    def _gated(self, conn: Any) -> bool:
        """Hold or drop the event at hand: true when its connection takes none now."""
        raise NotImplementedError  # abstract: Dispatch asks the core

    # ---- who is at a slot ----

    def at(self, slot: int) -> Any:
        """Return who is at a slot, or None."""
        return self._table[slot] if slot < len(self._table) else None

    def put(self, slot: int, conn: Any) -> None:
        """Enter a connection or transport at a slot, or None."""
        if slot >= len(self._table):
            self._table += [None] * (slot + 1 - len(self._table))
        self._table[slot] = conn

    def end(self) -> list[Any]:
        """Let go of the core's memory, and of all who are at a slot: return them."""
        self._events = iter(())
        self._view.release()
        everyone, self._table = self._table, []
        return [conn for conn in everyone if conn is not None]


PythonWalk = Walk
if fastpath is not None:
    Walk = fastpath.Walk  # type: ignore[misc]
