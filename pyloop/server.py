"""Server: its settings, and its start and stop. What runs in between is a Service."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import ssl as ssl_module
from collections.abc import Callable, Collection, Set
from typing import TYPE_CHECKING, Any, Literal

from pyloop.acceptor import Acceptor, Connections
from pyloop.address import parse_address, resolve
from pyloop.buses import Buses, check_bus
from pyloop.connection import Connection
from pyloop.framing import Framing, Raw, as_bytes
from pyloop.handlers import HandlerKind, check_model, classify, one_by_one
from pyloop.listening import Listening
from pyloop.loop import Loop, running_loop
from pyloop.mapping import MappedView
from pyloop.options import (
    Group,
    check_framing,
    check_hook,
    check_place,
    check_seconds,
    check_size,
    check_ssl,
)
from pyloop.page import Page
from pyloop.service import service_of
from pyloop.supervision import check_supervision

if TYPE_CHECKING:
    from pyloop.bus import Bus
    from pyloop.stats import ServerStats

__all__ = ["Server"]

_FORKS_MOST = 32_768  # each has a cell of the page
_MOST_CONNECTIONS = {"loop": 0, "thread": 1000, "fork": 512}
"""max_connections=None, by model; 0 is no limit."""


def _check_most(value: Any, model: str) -> int:
    if value is None:
        return _MOST_CONNECTIONS[model]
    return check_size("max_connections", value, 1, _FORKS_MOST if model == "fork" else 1 << 31)


class Server:
    """A server: `pyloop.run(server)` serves until SIGINT or SIGTERM.

    Args:
        handler: a Protocol subclass (or a callable that makes protocols), `def (conn, message)`,
            `async def (conn, message)`, or `async def (conn)`; `def (conn)` in models thread, fork.
        host: address or name to listen on, or several.
        port: TCP port; 0 chooses a free one, see `port`.
        path: a Unix socket instead; "\\0name" or "@name" is abstract.
        sock: a bound stream socket instead; the server closes it.
        framing: how messages are cut.
        ssl: an ssl.SSLContext for TLS.
        model: "loop", "thread" (one per connection) or "fork" (a process per connection).
        workers: processes that serve, under a supervisor: `run` only. "auto": one per core.
        backlog: connections that the kernel may hold for accept.
        max_connections: accepting pauses at this many, in each worker; None is no limit, 1,000
            threads, 512 processes.
        idle_timeout: seconds without a whole message or output taken, None for none.
        handshake_timeout: seconds for the TLS handshake.
        message_timeout: seconds from a message's first byte to its last, None for none.
        drain_timeout: seconds that `stop` waits for handlers.
        linger: seconds that a closed connection waits for the peer's end of stream.
        write_limit: bytes queued for a peer beyond which a further send aborts it.
        read_limit: bytes of messages that a coroutine handler may leave waiting; an empty message
            counts as one.
        on_start, on_stop: called with the server when it starts and has stopped, in each worker;
            may be async.
        worker_timeout: seconds after which a worker whose loop does not turn is replaced.
        max_rss, max_lifetime, max_messages: bytes of memory, seconds, and messages received after
            which a worker is replaced, give or take a tenth; None for no limit.
        on_worker_start, on_worker_stop: called in the supervisor with the server and the worker's
            number, when that worker is ready and when it has ended; plain functions.
        metrics: where `run` serves the counters over HTTP, to Prometheus and to people:
            "host:port", ":port", a port, or a Unix socket. Needs the extra pyloop-io[metrics].
        bus: the URL of the Bus between all workers, see `bus`; None for none.

    Raises:
        TypeError, ValueError: naming the argument, what was passed and what is expected.
    """

    _worker_id = 0
    _buses: Buses | None = None  # of whoever runs this server
    _own_buses: Buses | None = None  # of start()

    def __init__(
        self,
        handler: Any,
        host: str | list[str] | tuple[str, ...] = "127.0.0.1",
        port: int = 0,
        *,
        path: str | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
        framing: Framing | None = None,
        ssl: ssl_module.SSLContext | None = None,
        model: str = "loop",
        workers: int | Literal["auto"] = 1,
        backlog: int = 1024,
        max_connections: int | None = None,
        idle_timeout: float | None = None,
        handshake_timeout: float = 60.0,
        message_timeout: float | None = None,
        drain_timeout: float = 10.0,
        linger: float = 1.0,
        write_limit: int = 16 * 1024 * 1024,
        read_limit: int = 64 * 1024,
        on_start: Callable[[Server], Any] | None = None,
        on_stop: Callable[[Server], Any] | None = None,
        worker_timeout: float | None = 30.0,
        max_rss: int | None = None,
        max_lifetime: float | None = None,
        max_messages: int | None = None,
        on_worker_start: Callable[[Server, int], None] | None = None,
        on_worker_stop: Callable[[Server, int], None] | None = None,
        metrics: str | int | tuple[str, int] | None = None,
        bus: str | None = "shm://",
    ) -> None:
        self._model = check_model(model)
        self._kind = classify(handler, model)
        self._handler = handler
        if self._kind is HandlerKind.ASYNC_MESSAGE:
            self._handler = one_by_one(handler)
        self._place = check_place(host, port, path, sock, backlog)
        self._framing = Raw() if framing is None else check_framing(framing)
        self._ssl = check_ssl("ssl", ssl)
        self._handshake_timeout = check_seconds("handshake_timeout", handshake_timeout)
        self._drain_timeout = check_seconds("drain_timeout", drain_timeout, none=False)
        self._read_limit = check_size("read_limit", read_limit)
        self._write_limit = check_size("write_limit", write_limit)
        self._group = Group(
            self._framing,
            idle_timeout=check_seconds("idle_timeout", idle_timeout),
            message_timeout=check_seconds("message_timeout", message_timeout),
            linger=check_seconds("linger", linger, none=False),
            write_limit=self._write_limit,
            max_connections=_check_most(max_connections, model),
            tls=ssl is not None and model == "loop",
            hand_over=model != "loop",
        )
        self._supervision = check_supervision(
            workers, worker_timeout, max_rss, max_lifetime, max_messages
        )
        if model == "fork" and self._supervision.workers != 1:
            raise ValueError(f'workers: expected 1 with model="fork", got {workers!r}')
        self._on_start = check_hook("on_start", on_start)
        self._on_stop = check_hook("on_stop", on_stop)
        self._on_worker_start = check_hook("on_worker_start", on_worker_start, plain=True)
        self._on_worker_stop = check_hook("on_worker_stop", on_worker_stop, plain=True)
        self._metrics = None if metrics is None else parse_address("metrics", metrics)
        self._bus_url = check_bus(bus)
        self._child_cells = range(0)  # of the page, for model="fork"
        self._listening = Listening()
        self._service: Acceptor | None = None
        self._stopped: asyncio.Event | None = None
        self._starting = False
        self._hook: asyncio.Future[Any] | None = None  # an on_start or on_stop that is running

    # ---- what it is ----

    @property
    def port(self) -> int | None:
        """The TCP port it listens on; None before start and on a Unix socket."""
        return self._listening.port

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; empty before start and after stop."""
        return self._listening.sockets

    @property
    def connections(self) -> Set[Connection]:
        """The open connections: a live, read-only set."""
        return Connections(self._service.connections if self._service else set())

    @property
    def worker_id(self) -> int:
        """The number of this process among the server's workers: 0 without workers."""
        return self._worker_id

    @property
    def bus(self) -> Bus:
        """The bus that all processes share which serve this server, and others of the same run
        that were given the same URL.

        Raises:
            RuntimeError: the server was made with bus=None, or is not started.
        """
        if self._buses is None or self._bus_url is None:
            none = "it has none, by bus=None"
            raise RuntimeError(f"server.bus: {none if self._bus_url is None else 'not started'}")
        return self._buses.get(self._bus_url)

    def stats(self) -> ServerStats:
        """Return what the server has done since it was made."""
        from pyloop.stats import page_server_stats, server_stats  # when asked: see __init__

        group, service = self._group, self._service
        if service is not None:
            service.settle()
        if group.page is not None:
            return page_server_stats(group.page, group.page_server)
        return server_stats(group.counters, [] if service is None else [service.loop._counters])

    def _use_page(self, page: Page, number: int) -> None:
        """Count in a page, as its server `number`, beginning with what was counted so far."""
        from pyloop.stats import copy_counters

        before = self.stats()
        self._group.count_in(page, 0, number)
        copy_counters(before, self._group.counters)

    def __repr__(self) -> str:
        place = self._place
        where = place.path or f"{place.hosts[0]}:{self.port or place.port}"
        return f"<pyloop.Server {where} {'serving' if self._service else 'stopped'}>"

    # ---- serving ----

    async def start(self) -> None:
        """Listen, run on_start, and begin to accept.

        Raises:
            OSError: the address cannot be listened on; the message names it.
            RuntimeError: no pyloop.Loop is running, the server was started already, or it has a
                model or workers that only `run` serves.
        """
        if self._model != "loop" or self._supervision.workers != 1:
            model, workers = self._model, self._supervision.workers
            what = f'model="{model}"' if model != "loop" else f"workers={workers}"
            raise RuntimeError(
                f"Server.start(): a server with {what} is served by pyloop.run(server)"
            )
        await self._start()

    async def _start(self) -> None:
        import pyloop.stats  # noqa: F401  now: not while clients wait, or after a chroot

        loop = running_loop("Server.start()")
        if self._service is not None or self._starting:
            raise RuntimeError("Server.start(): the server has been started already")
        self._starting = True
        try:
            if not self._listening.sockets:  # a worker has those of its slot
                self._listening.open(self._place, await self._resolve(loop))
            self._stopped = asyncio.Event()
            if self._buses is None:
                self._buses = self._own_buses = Buses()
            if self._bus_url is not None and not self._bus_url.startswith("shm:"):
                self.bus._started()
            self._service = service = service_of(self._model)(self, loop)
            await self._call_hook(self._on_start)
            service.accept(self._listening.sockets)
        except BaseException:
            if self._service is not None:
                self._service.end()
            self._cut_off()
            await self._close_own_buses()
            raise
        finally:
            self._starting = False

    def _cut_off(self) -> None:
        """Give up the listening sockets and the running half; the core is gone, or will be."""
        self._listening.close()
        self._service = None
        self._group.cut_off()

    async def _resolve(self, loop: Loop) -> list[Any]:
        place = self._place
        infos: list[Any] = []
        for host in () if place.sock or place.path else place.hosts:
            infos += await resolve(loop, host, place.port, "cannot listen on", socket.AI_PASSIVE)
        return infos

    async def stop(self) -> None:
        """Stop in good order; returns when every connection is closed and on_stop has run.

        No new connections; what has arrived is delivered, then end of stream; handlers have
        drain_timeout seconds, then they are cancelled and their connections aborted.
        """
        service = self._service
        if service is None:
            return
        assert self._stopped is not None
        if asyncio.current_task() in service.tasks:
            raise RuntimeError(
                "Server.stop(): awaited in a handler of this server it would wait for itself; "
                "use asyncio.create_task(server.stop())"
            )
        if service.stopping:
            await self._stopped.wait()
            return
        service.stopping = True
        self._stop_accepting()
        try:
            await service.drain(self._drain_timeout)
            await self._call_hook(self._on_stop)
        finally:
            service.abort()  # what is left when this was cancelled
            service.end()
            self._service = None
            self._stopped.set()
            await self._close_own_buses()

    async def _close_own_buses(self) -> None:
        buses, self._own_buses = self._own_buses, None
        if buses is not None:
            self._buses = None
            await buses.close()

    def _retire(self) -> None:
        """Accept no more; who is there goes on."""
        if self._service is not None and not self._service.stopping:
            self._stop_accepting()

    async def _retired(self) -> None:
        """Wait until all connections have ended, for drain_timeout at most."""
        service = self._service
        if service is not None and not service.stopping:
            await service.wait_idle(self._drain_timeout)

    def _stop_accepting(self) -> None:
        assert self._service is not None
        self._service.refuse_more(self._listening.sockets)
        self._listening.close()

    def abort(self) -> None:
        """Abort every connection, cancel every handler and hook: `stop` is then quick."""
        if self._service is not None:
            self._service.abort()
        if self._hook is not None:
            self._hook.cancel()

    async def serve_forever(self) -> None:
        """Serve until stopped or cancelled; starts the server if need be."""
        if self._service is None:
            await self.start()
        assert self._stopped is not None
        try:
            await self._stopped.wait()
        finally:
            await self.stop()

    async def __aenter__(self) -> Server:
        if self._service is None:
            await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def broadcast(
        self, message: Any, exclude: Connection | Collection[Connection] | None = None
    ) -> None:
        """Send one message to every connection, framed once.

        Args:
            message: bytes-like, or a MappedView.
            exclude: a Connection, or a collection of them, that does not get it.

        Raises:
            TypeError, ValueError: as Connection.send; nobody gets it.
        """
        data: bytes | MappedView
        if type(message) is MappedView:
            self._framing._wrap_view(message)  # refused by all, or by none
        if type(message) is MappedView and self._ssl is None:
            data = message
        else:
            payload = as_bytes(message)
            head, tail = self._framing.wrap(payload)
            data = head + payload + tail
        left_out = set(exclude) if isinstance(exclude, Collection) else {exclude}
        if (service := self._service) is None:
            return
        for conn in self.connections:
            if conn not in left_out:
                service.cast(conn, data)

    async def _call_hook(self, hook: Callable[[Server], Any] | None) -> None:
        result = hook(self) if hook is not None else None
        if inspect.isawaitable(result):
            self._hook = asyncio.ensure_future(result)
            try:
                await self._hook
            finally:
                self._hook = None
