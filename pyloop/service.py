"""A started server: its part in the core, its connections, its handlers' tasks."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyloop.connection import Connection
from pyloop.core import lib
from pyloop.handlers import HandlerKind, converse
from pyloop.inbox import Inbox
from pyloop.protocol import Owner, Protocol, log
from pyloop.tls import TLSConnection

if TYPE_CHECKING:
    from pyloop.loop import Loop
    from pyloop.server import Server

__all__ = ["Service"]

_REFUSED_LOG_SECONDS = 1.0


class Service(Owner):
    """A started server: its part in the core, its connections and its handlers' tasks."""

    __slots__ = (
        "_begin",
        "_core",
        "_dispatch",
        "_group",
        "_handshaking",
        "_idle",
        "_ptr",
        "_refused_at",
        "connections",
        "stopping",
        "tasks",
    )

    loop: Loop

    def __init__(self, server: Server, loop: Loop) -> None:
        counters = server._group.counters
        super().__init__(loop, counters, server._framing, server._read_limit, server._write_limit)
        self.server = server
        self.stopping = False
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._handshaking: set[Connection] = set()  # TLS peers of whom the handler knows nothing
        self._idle: asyncio.Future[None] | None = None
        self._refused_at = -_REFUSED_LOG_SECONDS
        self._core = loop._core
        self._dispatch = loop._core.dispatch
        self._ptr = loop._open_core()
        self._group = server._group
        self._group.open(self._ptr)
        self._dispatch.owners[self._group.number] = self
        self._begin = self._begin_of(server)

    def _begin_of(self, server: Server) -> Callable[[Connection], None]:
        """Return what starts the handler on a new connection."""
        handler = server._handler
        if server._kind is HandlerKind.MESSAGE:
            return lambda conn: conn._attach(handler, conn)
        if server._kind is HandlerKind.PROTOCOL:
            return lambda conn: conn._start_protocol(conn._context.run(_make_protocol, handler))

        def begin(conn: Connection) -> None:
            conn._attach(Inbox.push, Inbox(conn))
            self._track(self.loop.create_task(converse(conn, handler), context=conn._context))

        return begin

    def _track(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._check_idle()

    def accept(self, sockets: tuple[socket.socket, ...]) -> None:
        """Begin to accept on listening sockets, whose fds the core borrows."""
        core = self._core
        for sock in sockets:
            code = lib.pl_listener_open(self._ptr, self._group.number, sock.fileno())
            core.check_fd(code, sock.fileno())

    def refuse_more(self, sockets: tuple[socket.socket, ...]) -> None:
        """Stop accepting."""
        for sock in sockets:
            lib.pl_listener_close(self._ptr, sock.fileno())

    def accepted(self, ident: int, peer: bytes) -> None:
        context = self.server._ssl
        conn: Connection = (Connection if context is None else TLSConnection)(
            self._ptr, ident, self, peer
        )
        self._dispatch.add(ident, conn)
        if isinstance(conn, TLSConnection):
            self._handshaking.add(conn)
            timeout = self.server._handshake_timeout
            conn._guard(conn._start_tls, context, self._welcome, timeout, True, None)
        else:
            self._welcome(conn)
        if self.stopping:
            conn._drain_input()

    def _welcome(self, conn: Connection) -> None:
        self._handshaking.discard(conn)
        self.connections.add(conn)
        conn._guard(self._begin, conn)

    def forget(self, conn: Connection) -> None:
        self.connections.discard(conn)
        self._handshaking.discard(conn)
        self._check_idle()

    def cut_off(self) -> None:
        self.server._cut_off()

    def refused(self, code: int) -> None:
        """Log, at most once a second, that a connection was closed at once, and why."""
        now = time.monotonic()
        if now - self._refused_at < _REFUSED_LOG_SECONDS:
            return
        self._refused_at = now
        if code == -errno.ERANGE:
            log.error(
                "connection refused: its fd is not below FD_SETSIZE (%d), the limit of "
                'backend="select"; use backend="auto"',
                lib.pl_fdset_size(),
            )
        else:
            log.error("connection refused: %s", os.strerror(-code))

    # ---- stopping ----

    def _check_idle(self) -> None:
        idle = self._idle
        busy = self.connections or self._handshaking or self.tasks
        if idle is not None and not busy and not idle.done():
            idle.set_result(None)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no connection and no task is left; false if that took too long."""
        self._idle = self.loop.create_future()
        self._check_idle()
        done, _ = await asyncio.wait([self._idle], timeout=timeout)
        return bool(done)

    async def drain(self, timeout: float) -> None:
        """Let handlers finish for `timeout` seconds, then abort what is left."""
        for conn in (*self.connections, *self._handshaking):
            conn._drain_input()
        if not await self.wait_idle(timeout):
            self.abort()
            await self.wait_idle(1.0)

    def abort(self) -> None:
        """Abort every connection and cancel every task."""
        for conn in (*self.connections, *self._handshaking):
            conn.abort()
        for task in tuple(self.tasks):
            task.cancel()

    def end(self) -> None:
        """Leave the core."""
        self._dispatch.owners.pop(self._group.number, None)
        self._group.close()


def _make_protocol(factory: Callable[[], Any]) -> Protocol:
    protocol = factory()
    if not isinstance(protocol, Protocol):
        raise TypeError(f"{factory!r} made {protocol!r}; expected a pyloop.Protocol")
    return protocol
