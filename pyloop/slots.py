"""The listening sockets of the worker slots: the supervisor makes them and keeps them open.

A worker inherits those of its slot, and so does its successor: no listener closes when a worker
dies or is replaced, so no connection that waits in one is reset. On TCP each slot has sockets of
its own in a SO_REUSEPORT group. A Unix socket, and one that was handed in, all slots share.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pyloop.address import resolve_now
from pyloop.core import check, lib
from pyloop.listening import Listening, Place, Sharing
from pyloop.page import Page

__all__ = ["Slots", "listen", "run_dry"]

_HANDSHAKE_SECONDS = 1.0
_LOOK_SECONDS = 0.05
_ATTEMPTS = 20


class Slots:
    """What one server listens on, slot by slot."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.shared = bool(place.sock or place.path) or not hasattr(socket, "SO_REUSEPORT")
        self._infos: list[Any] = []
        self._slots: list[Listening] = []

    async def open(self, count: int) -> None:
        """Listen, for `count` slots.

        An address in use is tried again for a second: when a supervisor was killed, its workers
        notice and leave, and who starts the next one at once should not have to know.

        Raises:
            OSError: the address cannot be listened on; nothing stays open.
        """
        place = self._place
        for host in () if place.sock or place.path else place.hosts:
            self._infos += resolve_now(host, place.port, "cannot listen on", socket.AI_PASSIVE)
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._open(count)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            await asyncio.sleep(_LOOK_SECONDS)
        self._open(count)

    def _open(self, count: int) -> None:
        try:
            for _ in range(count):
                self.add()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def first(self) -> Listening:
        """The sockets of the first slot."""
        return self._slots[0]

    def add(self) -> None:
        """Listen for one slot more. Raises OSError."""
        if self._slots and self.shared:
            self._slots.append(self._slots[0])
            return
        listening = Listening()
        if self._slots:
            port = self._slots[0].port
            assert port is not None
            listening.open_tcp(self._infos, port, self._place.backlog, Sharing.JOIN)
        else:
            sharing = Sharing.NO if self.shared else Sharing.FOUND
            listening.open(self._place, self._infos, sharing)
        self._slots.append(listening)

    def sockets(self, slot: int) -> tuple[socket.socket, ...]:
        """The listening sockets of a slot."""
        return self._slots[slot].sockets

    def steer_away(self) -> None:
        """Have the last slot get no more connections. Raises OSError."""
        for sock in () if self.shared else self.sockets(-1):
            check(lib.pl_reuseport_steer(sock.fileno(), len(self) - 1))

    def steer_to_all(self) -> None:
        """Have all slots get connections, as at first."""
        for sock in () if self.shared else self.first.sockets:
            lib.pl_reuseport_steer(sock.fileno(), 0)  # an empty group has nothing to detach

    @property
    def is_dry(self) -> bool:
        """Does no connection wait in the last slot?"""
        own = () if self.shared else self.sockets(-1)
        return not any(lib.pl_listener_queued(sock.fileno()) > 0 for sock in own)

    def remove(self) -> None:
        """Close the last slot's sockets, whose queue has run dry."""
        last = self._slots.pop()
        if not self.shared:
            last.close()
        self.steer_to_all()

    def close(self) -> None:
        """Close all of them."""
        for listening in self._slots:
            listening.close()
        self._slots.clear()

    def keep_only(self, slot: int) -> tuple[socket.socket, ...]:
        """In a forked worker: close the others' sockets, and return the slot's own."""
        own = self._slots[slot]
        for listening in self._slots:
            if listening is not own:
                listening.close()
        return own.sockets


async def run_dry(places: Sequence[Slots], patience: float) -> None:
    """Steer new connections away from the last slot, and wait until its queues are empty.

    Handshakes that have begun there may end there: they have a second. Then its worker has
    `patience` seconds to take what waits.

    Raises:
        OSError: they cannot be steered; the slot gets connections as before.
    """
    try:
        for place in places:
            place.steer_away()
    except OSError:
        for place in places:
            place.steer_to_all()
        raise
    if not all(place.shared for place in places):
        await asyncio.sleep(_HANDSHAKE_SECONDS)
    end = time.monotonic() + patience
    while time.monotonic() < end and not all(place.is_dry for place in places):
        await asyncio.sleep(_LOOK_SECONDS)


@contextlib.asynccontextmanager
async def listen(places: Sequence[Slots], workers: int, page: Page) -> AsyncIterator[None]:
    """Listen on all places in this block, for so many workers, which count in `page`.

    Raises:
        OSError: an address cannot be listened on.
    """
    try:
        for place in places:
            await place.open(workers)
        page.set_label(", ".join(place.first.describe() for place in places))
        yield
    finally:
        for place in places:
            place.close()
        page.close_fd()
