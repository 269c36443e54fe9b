"""The loop's part in asyncio's datagrams: it makes the transports, and hands them their events.

Sockets of families that are not in `pyloop.sockaddr` get asyncio's own transport: what Python makes
of their addresses only its socket module knows.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from pyloop.core import MEMORY, failure, ffi, lib
from pyloop.datagrams import HEAD_BYTES, DatagramTransport
from pyloop.dispatch import Dispatch
from pyloop.sockaddr import FAMILIES, AddressBook

__all__ = ["DatagramCalls"]


class Datagrams:
    """The datagram transports of one loop, by the slot of their ids."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.book = AddressBook()
        self._dispatch = dispatch
        self._transports: list[DatagramTransport | None] = dispatch.datagrams
        kinds = {
            lib.PL_EV_DATAGRAM: self._received,
            lib.PL_EV_DATAGRAM_ERROR: self._error,
            lib.PL_EV_DATAGRAM_RESUME: self._resume,
            lib.PL_EV_DATAGRAM_LOST: self._lost,
            lib.PL_EV_DATAGRAM_CUT: self._cut,
        }
        dispatch.plug(kinds, self._cut_off)

    def add(self, transport: DatagramTransport) -> None:
        """Enter a transport: it gets its events from now on."""
        slot = transport._id & 0xFFFFFFFF
        if slot >= len(self._transports):
            self._transports += [None] * (slot + 1 - len(self._transports))
        self._transports[slot] = transport

    def _cut_off(self) -> None:
        """The core ends: transports that nobody else holds close their sockets, and warn."""
        for transport in self._transports:
            if transport is not None:
                transport._ptr = ffi.NULL
        self._transports.clear()

    # ---- what the kinds mean: each takes (slot, start, end) ----

    def _sender(self, transport: DatagramTransport, start: int) -> Any:
        head = MEMORY[start - HEAD_BYTES : start - transport._unread]
        try:
            return self.book.senders[head]
        except KeyError:
            return transport._unpack(head)

    def _received(self, slot: int, start: int, end: int) -> None:
        transport: Any = self._transports[slot]
        sender, data = self._sender(transport, start), MEMORY[start:end]
        if transport._state:
            transport._received(data, sender)
            return
        try:
            transport._context.run(transport._protocol.datagram_received, data, sender)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            transport._fail(exc)

    def _cut(self, slot: int, start: int, end: int) -> None:
        transport: Any = self._transports[slot]
        sender = self._sender(transport, start)
        what = f"a datagram of more than {end - start} bytes from {sender!r} was dropped"
        transport._failed(OSError(errno.EMSGSIZE, what))

    def _error(self, slot: int, start: int, end: int) -> None:
        transport: Any = self._transports[slot]
        transport._failed(failure(self._dispatch.value()))

    def _resume(self, slot: int, start: int, end: int) -> None:
        transport: Any = self._transports[slot]
        transport._resume_writing()

    def _lost(self, slot: int, start: int, end: int) -> None:
        transport: Any = self._transports[slot]
        self._transports[slot] = None
        transport._lost(self._dispatch.value())


class DatagramCalls:
    """What a Loop has for datagrams."""

    _core: Any
    _datagrams: Datagrams | None = None

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        if sock.family not in FAMILIES:
            return super()._make_datagram_transport(  # type: ignore[misc]
                sock, protocol, address, waiter, extra
            )
        if self._datagrams is None:
            self._datagrams = Datagrams(self._core.dispatch)
        loop: Any = self
        transport = DatagramTransport(loop, self._datagrams.book, sock, protocol, address, extra)
        self._datagrams.add(transport)
        loop._transports[sock.fileno()] = transport  # so that add_reader refuses the fd
        loop.call_soon(transport._context.run, protocol.connection_made, transport)
        loop.call_soon(transport._catch_up)
        if waiter is not None:
            loop.call_soon(_release, waiter)
        return transport


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.cancelled():
        waiter.set_result(None)
