"""The accepting half of a started server, the same in every model: a group, and its listeners."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING, Any

from pyloop.core import lib
from pyloop.mapping import MappedView
from pyloop.protocol import Owner, log

if TYPE_CHECKING:
    from pyloop.loop import Loop
    from pyloop.server import Server

__all__ = ["Acceptor", "Connections"]

_LOG_SECONDS = 1.0


class Connections(Set[Any]):
    """A live, read-only view of a server's connections."""

    __slots__ = ("_members",)

    def __init__(self, members: set[Any]) -> None:
        self._members = members

    def __contains__(self, conn: object) -> bool:
        return conn in self._members

    def __iter__(self) -> Iterator[Any]:
        return iter(self._members.copy())  # the one step in which no other thread can run

    def __len__(self) -> int:
        return len(self._members)

    @classmethod
    def _from_iterable(cls, it: Any) -> Any:
        return set(it)


class Acceptor(Owner):
    """What accepts for a server, on a loop.

    Attributes:
        stopping: accepting has ended for good.
        connections: of this process, which the handler knows.
        tasks: asyncio tasks that run handlers.
    """

    __slots__ = (
        "_core",
        "_dispatch",
        "_group",
        "_idle",
        "_ptr",
        "_refused_at",
        "connections",
        "stopping",
        "tasks",
    )

    loop: Loop

    def __init__(self, server: Server, loop: Loop) -> None:
        self._group = group = server._group
        limits = server._read_limit, server._write_limit
        super().__init__(loop, group.counters, server._framing, *limits)
        self.server = server
        self.stopping = False
        self.connections: set[Any] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Future[None] | None = None
        self._refused_at = -_LOG_SECONDS
        self._core = loop._core
        self._dispatch = loop._core.dispatch
        self._ptr = loop._open_core()
        group.open(self._ptr)
        self._dispatch.owners[group.number] = self

    def accept(self, sockets: tuple[socket.socket, ...]) -> None:
        """Begin to accept on listening sockets, whose fds the core borrows."""
        core = self._core
        for sock in sockets:
            core.watches.vacate(sock.fileno())
            code = lib.pl_listener_open(self._ptr, self._group.number, sock.fileno())
            core.check_fd(code, sock.fileno())

    def refuse_more(self, sockets: tuple[socket.socket, ...]) -> None:
        """Stop accepting."""
        for sock in sockets:
            lib.pl_listener_close(self._ptr, sock.fileno())

    def cut_off(self) -> None:
        self.server._cut_off()

    def cast(self, conn: Any, data: bytes | MappedView) -> None:
        """Send to a connection what is framed already, or a view, without waiting for its peer."""
        if isinstance(data, MappedView):
            conn.send(data)
        else:
            conn.write(data)

    def settle(self) -> None:
        """Bring the server's counters up to date. Any thread may call."""

    # ---- refusing ----

    def refused(self, code: int, waits: bool) -> None:
        """Log, at most once a second, that a connection was closed at once or waits, and why."""
        if waits:
            self._log_refused(os.strerror(-code), "accepting rests")
        elif code == -errno.ERANGE:
            self._log_refused(
                f"its fd is not below FD_SETSIZE ({lib.pl_fdset_size()}), the limit of "
                'backend="select"; use backend="auto"'
            )
        else:
            self._log_refused(os.strerror(-code))

    def _log_refused(self, why: str, what: str = "connection refused") -> None:
        now = time.monotonic()
        if now - self._refused_at >= _LOG_SECONDS:
            self._refused_at = now
            log.error("%s: %s", what, why)

    def _refuse_fd(self, fd: int, why: str) -> None:
        """Close a socket that was handed over, as if it had not been accepted."""
        lib.pl_socket_reset(fd)
        os.close(fd)
        self.counters.accepted -= 1
        self.counters.refused += 1
        self._release()
        self._log_refused(why)

    def _release(self) -> None:
        """Make room for the next one: a socket that was handed over is done with."""
        lib.pl_group_release(self._ptr, self._group.number)

    # ---- stopping ----

    def _is_busy(self) -> bool:
        """Is there anything that `drain` waits for?"""
        raise NotImplementedError  # abstract: connections and tasks, threads, or children

    def _check_idle(self) -> None:
        idle = self._idle
        if idle is not None and not self._is_busy() and not idle.done():
            idle.set_result(None)

    async def wait_idle(self, timeout: float | None) -> bool:
        """Wait until nothing is busy; false if that took too long."""
        if self._idle is None or self._idle.done():  # else somebody waits already: both will hear
            self._idle = self.loop.create_future()
        self._check_idle()
        done, _ = await asyncio.wait([self._idle], timeout=timeout)
        return bool(done)

    def _give_up(self) -> None:
        """Wait no longer, whoever is busy."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def drain(self, timeout: float) -> None:
        """Let handlers finish for `timeout` seconds, then abort what is left."""
        raise NotImplementedError  # abstract: each model has its own way to tell them

    def abort(self) -> None:
        """Abort every connection and whatever serves it."""
        raise NotImplementedError  # abstract: tasks are cancelled, children killed

    def end(self) -> None:
        """Leave the core."""
        self._dispatch.owners.pop(self._group.number, None)
        self._group.close()
