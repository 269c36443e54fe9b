"""A started server of model "loop": its connections and its handlers' tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyloop.acceptor import Acceptor
from pyloop.connection import Connection
from pyloop.handlers import HandlerKind, converse, make_protocol
from pyloop.inbox import Inbox
from pyloop.tls import TLSConnection

if TYPE_CHECKING:
    from pyloop.loop import Loop
    from pyloop.server import Server

__all__ = ["service_of"]


class Service(Acceptor):
    """A started server of model "loop": its connections and its handlers' tasks."""

    __slots__ = ("_begin", "_handshaking")

    def __init__(self, server: Server, loop: Loop) -> None:
        super().__init__(server, loop)
        self._handshaking: set[Connection] = set()  # TLS peers of whom the handler knows nothing
        self._begin = self._begin_of(server)

    def _begin_of(self, server: Server) -> Callable[[Connection], None]:
        """Return what starts the handler on a new connection."""
        handler = server._handler
        if server._kind is HandlerKind.MESSAGE:
            return lambda conn: conn._attach(handler, conn)
        if server._kind is HandlerKind.PROTOCOL:
            return lambda conn: conn._start_protocol(conn._context.run(make_protocol, handler))

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

    def forget(self, conn: Any) -> None:
        self.connections.discard(conn)
        self._handshaking.discard(conn)
        self._check_idle()

    # ---- stopping ----

    def _is_busy(self) -> bool:
        return bool(self.connections or self._handshaking or self.tasks)

    async def drain(self, timeout: float) -> None:
        for conn in (*self.connections, *self._handshaking):
            conn._drain_input()
        if not await self.wait_idle(timeout):
            self.abort()
            await self.wait_idle(1.0)

    def abort(self) -> None:
        for conn in (*self.connections, *self._handshaking):
            conn.abort()
        for task in tuple(self.tasks):
            task.cancel()


def service_of(model: str) -> type[Acceptor]:
    """Return what serves: that of another model is imported only to be used."""
    if model == "thread":
        from pyloop.thread_model import ThreadService

        return ThreadService
    if model == "fork":
        from pyloop.fork_model import ForkService

        return ForkService
    return Service
