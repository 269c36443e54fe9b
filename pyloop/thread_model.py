"""Model thread: a daemon thread for each connection, which counts for itself.

Threads that all wrote one struct pl_counters would lose counts, or wait for each other. So each
connection has a Tally, which its own lock guards, and `settle` adds up what is new in all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyloop.address import decode_sockaddr, show_address
from pyloop.blocking import next_id
from pyloop.models import BlockingAcceptor
from pyloop.protocol import log
from pyloop.served import ServedConnection

if TYPE_CHECKING:
    from pyloop.loop import Loop
    from pyloop.server import Server

__all__ = ["ThreadService"]

_SETTLE_SECONDS = 0.5
_GRACE_SECONDS = 1.0
_FIELDS = (
    "messages_in",
    "messages_out",
    "bytes_in",
    "bytes_out",
    "framing_errors",
    "timeouts",
    "write_limit_aborts",
    "aborts",
    "dropped",
)


class Tally:
    """What one connection has counted, and how much of it has been added up."""

    __slots__ = (*_FIELDS, "settled")

    def __init__(self) -> None:
        for name in _FIELDS:
            setattr(self, name, 0)
        self.settled = dict.fromkeys(_FIELDS, 0)

    def settle(self, counters: Any) -> None:
        """Add to `counters` what is new."""
        for name, before in self.settled.items():
            now = getattr(self, name)
            if now != before:
                setattr(counters, name, getattr(counters, name) + now - before)
                self.settled[name] = now


class ThreadService(BlockingAcceptor):
    """A started server of model "thread"."""

    __slots__ = ("_living", "_settling", "_tallies", "_timer")

    def __init__(self, server: Server, loop: Loop) -> None:
        super().__init__(server, loop)
        self._living: dict[ServedConnection, threading.Thread] = {}  # of the loop's thread
        self._timer: asyncio.TimerHandle | None = None
        self._tallies: set[Tally] = set()
        self._settling = threading.RLock()

    # ---- coming ----

    def handed_over(self, fd: int, peer: bytes) -> None:
        where = show_address(decode_sockaddr(peer))
        tally = Tally()
        try:
            conn = self._connect(fd, peer, None, tally, next_id())  # it makes itself a wake
            name = f"pyloop-{where or conn.id}"  # a Unix socket's client has no address
            thread = threading.Thread(target=self._main, args=(conn,), name=name, daemon=True)
            with self._settling:
                self._tallies.add(tally)
            thread.start()
        except (RuntimeError, MemoryError) as exc:
            with self._settling:
                self._tallies.discard(tally)
            self._refuse_fd(fd, f"no thread for {where}: {exc}")
            return
        self._living[conn] = thread  # before the loop can hear that it has ended
        if self.stopping:
            conn._drain_input()
        if self._timer is None:
            self._timer = self.loop.call_later(_SETTLE_SECONDS, self._settle_again)

    # ---- in the thread ----

    def _main(self, conn: ServedConnection) -> None:
        try:
            conn._context.run(self._converse, conn)
        except (SystemExit, KeyboardInterrupt) as exc:
            self._post(_leave, exc)
        finally:
            self.forget(conn)
            self._post(self._gone, conn)

    def _post(self, call: Callable[[Any], None], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # run has returned without this thread
            self.loop.call_soon_threadsafe(call, argument)

    def forget(self, conn: Any) -> None:
        self.connections.discard(conn)
        with self._settling:
            conn._counters.settle(self.counters)
            self._tallies.discard(conn._counters)

    def settle(self) -> None:
        with self._settling:
            for tally in self._tallies:
                tally.settle(self.counters)

    # ---- in the loop again ----

    def _gone(self, conn: ServedConnection) -> None:
        del self._living[conn]
        self._release()
        self._check_idle()

    def _settle_again(self) -> None:
        """For those who read the counters in another process."""
        self.settle()
        self._timer = None
        if self._living:
            self._timer = self.loop.call_later(_SETTLE_SECONDS, self._settle_again)

    def _is_busy(self) -> bool:
        return bool(self._living)

    async def drain(self, timeout: float) -> None:
        for conn in self._living:
            conn._drain_input()
        if not await self.wait_idle(timeout):
            self.abort()
            await self.wait_idle(None)
        if self._living:
            names = ", ".join(sorted(thread.name for thread in self._living.values()))
            log.warning("threads that still run although their connections are gone: %s", names)

    def abort(self) -> None:
        """Abort every connection. Threads cannot be ended: `drain` waits a second more for them."""
        for conn in self._living:
            conn.abort()
        if self._living:
            self.loop.call_later(_GRACE_SECONDS, self._give_up)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.settle()
        super().end()
        self.counters.open = 0  # threads that still run have lost their connections


def _leave(exc: BaseException) -> None:
    """Raise SystemExit or KeyboardInterrupt of a handler where it leaves run."""
    raise exc
