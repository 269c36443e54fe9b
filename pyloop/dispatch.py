"""What the events of a batch mean, each by its kind: the walk (walk.py) calls these.

Messages are the walk's own; here is what is rarer.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

from pyloop.address import show_address
from pyloop.connection import Connection
from pyloop.core import MEMORY, failure, ffi, is_foreign, lib
from pyloop.inbox import CLOSED
from pyloop.monitors import callback_name
from pyloop.protocol import Owner, deliver, ignore, log
from pyloop.walk import Walk

__all__ = ["Dispatch"]

_MESSAGE = lib.PL_EV_MESSAGE
_CALLS = {
    _MESSAGE: "message_received",
    lib.PL_EV_CIPHER: "message_received",
    lib.PL_EV_EOF: "eof_received",
    lib.PL_EV_RESUME: "resume_writing",
    lib.PL_EV_LOST: "connection_lost",
    lib.PL_EV_READABLE: "buffer_updated",
}
"""What an event calls of a protocol."""


class Dispatch(Walk):
    """The walk over the batches of one loop, and what it calls."""

    def __init__(self, ptr: Any, ready: Callable[[int, int], None]) -> None:
        super().__init__(ptr, self._nothing)
        self.ptr = ptr
        self.owners: dict[int, Owner] = {}
        self.on_signal: Callable[[int], None] = lambda number: None
        self.on_bad_fd: Callable[[int], bool] = lambda fd: False
        self._plugged: list[Callable[[], None]] = []
        self._ready = ready
        self._raw = lib.pl_loop_events(ptr)
        for kind, method in (
            (_MESSAGE, self._message),
            (lib.PL_EV_READ, self._readable),
            (lib.PL_EV_WRITE, self._writable),
            (lib.PL_EV_BOTH, self._both),
            (lib.PL_EV_OPEN, self._open),
            (lib.PL_EV_EOF, self._eof),
            (lib.PL_EV_FAULT, self._fault),
            (lib.PL_EV_RESUME, self._resume),
            (lib.PL_EV_CIPHER, self._cipher),
            (lib.PL_EV_LOST, self._lost),
            (lib.PL_EV_REFUSED, self._refused),
            (lib.PL_EV_BADFD, self._bad_fd),
            (lib.PL_EV_SIGNAL, self._signal),
            (lib.PL_EV_ACCEPTED, self._accepted),
            (lib.PL_EV_READABLE, self._readable_conn),
        ):
            self._others[kind] = method

    def plug(
        self, kinds: Mapping[int, Callable[[int, int, int], None]], cut_off: Callable[[], None]
    ) -> None:
        """Hand events of these kinds to somebody, whose `cut_off` hears that the core ends."""
        for kind, method in kinds.items():
            self._others[kind] = method
        self._plugged.append(cut_off)

    def begin_rest(self, told: int) -> None:
        """Take over the batch that an exception kept from `begin`, if there is one.

        Args:
            told: how many events the core has counted.
        """
        if told > self.taken:
            self.begin(told - self.taken)

    def value(self) -> int:
        """The value of the event that the walk is at."""
        return self._raw[self._index()].value  # type: ignore[no-any-return]

    def walk_by(self, deliver: Callable[[int, int, int, int], None]) -> None:
        """Walk, but leave each event to `deliver(kind, slot, start, end)`, which calls ours."""
        while (event := self.take()) is not None:
            deliver(*event)

    def deliver(self, kind: int, slot: int, start: int, end: int) -> None:
        """Deliver the event that the walk is at."""
        self._others[kind](slot, start, end)

    def name_of(self, kind: int, slot: int) -> str:
        """Say, for people, what the event that the walk is at will call."""
        if kind == lib.PL_EV_OPEN:
            owner = self.owners.get(self._raw[self._index()].value)
            handler = getattr(owner and owner.server, "_handler", self.deliver)
            what = ".connection_made" if isinstance(handler, type) else ""
            return callback_name(handler) + what
        what = _CALLS.get(kind, "")
        conn = self.at(slot) if what else None
        if conn is None or conn._call is ignore:
            return callback_name(self.deliver)  # and no handler
        target = conn._target
        if target is conn or target is None or (kind == _MESSAGE and conn._call is not deliver):
            return callback_name(conn._call)
        return f"{type(target).__qualname__}.{what}"

    def add(self, ident: int, conn: Any) -> None:
        """Enter a connection under the slot of its id."""
        self.put(ident & 0xFFFFFFFF, conn)

    def owner_of(self, fd: int) -> Any:
        """The connection that has an fd of the core; None: it is a server's, or the loop's own."""
        slot = lib.pl_conn_slot(self.ptr, fd)
        return self.at(slot) if slot >= 0 else None

    def close(self) -> None:
        """Cut the connections off from a core that is about to be freed."""
        while (event := self.take()) is not None:
            if event[0] == lib.PL_EV_ACCEPTED:
                with contextlib.suppress(OSError):  # a child may have closed all there was
                    os.close(self._raw[self._index()].id)
        for owner in tuple(self.owners.values()):
            owner.cut_off()
        for cut_off in self._plugged:
            cut_off()
        foreign = is_foreign(self.ptr)
        for conn in self.end():
            # Those of a parent hear of their ends there; asyncio's transports warn when collected.
            if foreign or not isinstance(conn, Connection):
                conn._forget()
                continue
            with contextlib.suppress(RuntimeError):  # tasks cannot be woken on a closed loop
                conn._lost(-errno.ECONNABORTED)
        self.ptr = ffi.NULL

    # ---- what the kinds mean: each takes (slot, start, end) ----

    def _gated(self, conn: Connection) -> bool:
        """Hold or drop the event at hand: true when its connection takes none now."""
        if conn._gate and not conn._gate & CLOSED:
            code = lib.pl_conn_hold(self.ptr, self._index())
            if code < 0 and code != -errno.ESTALE:  # gone: its loss is told later in this batch
                conn._fail(failure(code))
        return bool(conn._gate)

    def _message(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn._gate:
            self._gated(conn)
            return
        try:
            conn._context.run(conn._call, conn._target, MEMORY[start:end])
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            conn._fail(exc)

    def _nothing(self, slot: int, start: int, end: int) -> None:
        pass

    def _readable(self, fd: int, start: int, end: int) -> None:
        self._ready(fd, lib.PL_READ)

    def _writable(self, fd: int, start: int, end: int) -> None:
        self._ready(fd, lib.PL_WRITE)

    def _both(self, fd: int, start: int, end: int) -> None:
        self._ready(fd, lib.PL_READ | lib.PL_WRITE)

    def _open(self, slot: int, start: int, end: int) -> None:
        event = self._raw[self._index()]
        owner = self.owners.get(event.value)
        if owner is not None:
            owner.accepted(event.id, MEMORY[start:end])
        else:  # its server stopped in this very batch
            self.add(event.id, None)
            lib.pl_conn_abort(self.ptr, event.id, 0)

    def _accepted(self, slot: int, start: int, end: int) -> None:
        event = self._raw[self._index()]
        owner = self.owners.get(event.value)
        if owner is not None:
            owner.handed_over(event.id, MEMORY[start:end])
        else:  # its server stopped in this very batch
            os.close(event.id)
            lib.pl_group_release(self.ptr, event.value)

    def _eof(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn is not None and not self._gated(conn):
            conn._received_eof()

    def _fault(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn is not None:
            conn._faulted(self._raw[self._index()].value)

    def _readable_conn(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn is not None:
            conn._readable()

    def _resume(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn is not None:
            conn._resume_writing()

    def _cipher(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        if conn is not None:
            conn._guard(conn._cipher_received, MEMORY[start:end])

    def _lost(self, slot: int, start: int, end: int) -> None:
        conn = self.at(slot)
        self.put(slot, None)
        if conn is not None:
            reason = self._raw[self._index()].value
            if reason == lib.PL_E_TRUNCATED:  # no fault of the peer's
                where = show_address(conn.peername)
                log.error("%s; connection of %s aborted", failure(reason).args[-1], where)
            conn._lost(reason)

    def _refused(self, group: int, start: int, end: int) -> None:
        owner: Any = self.owners.get(group)
        if owner is not None:
            event = self._raw[self._index()]
            owner.refused(event.value, event.id == 1)

    def _bad_fd(self, fd: int, start: int, end: int) -> None:
        is_watcher = self._raw[self._index()].value
        if self.on_bad_fd(fd) or not is_watcher:  # else nobody is there, or it finds out by itself
            log.error("fd %d was closed while it was watched; its watcher is dropped", fd)

    def _signal(self, slot: int, start: int, end: int) -> None:
        self.on_signal(self._raw[self._index()].value)
