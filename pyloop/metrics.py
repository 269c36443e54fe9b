"""Metrics over HTTP: Prometheus's text, and a page for people that draws the counters.

    GET /            metrics.html, which asks once a second for
    GET /stats.json  the counters of each cell of the page, as they are
    GET /metrics     the same for Prometheus

Runs on the loop of the process that owns the page, in its one thread: a process that forks must
not have another. So names are resolved in place, once, and not by asyncio, which takes a thread.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pyloop.address import parse_address, show_address
from pyloop.errors import ExtraMissingError
from pyloop.listening import Listening
from pyloop.loop import running_loop
from pyloop.page import Page
from pyloop.protocol import log
from pyloop.responder import FRAMING, Answer, Request, responder
from pyloop.server import Server
from pyloop.stats import Counters, WorkerStats, page_stats, resident_bytes

if TYPE_CHECKING:
    from pyloop.exposition import Exposition

__all__ = ["MetricsServer", "serve_metrics"]

FRESH_SECONDS = 0.1
"""An answer is given again for so long: asking often costs little."""

_TIMEOUT = 10.0
_CONNECTIONS = 64
_OPENMETRICS = "application/openmetrics-text"
_SUMMED = ("accepted", "open", "messages_in", "messages_out", "bytes_in", "bytes_out")


class MetricsServer:
    """Serves the counters of a page over HTTP, on the running pyloop.Loop.

    Args:
        address: "host:port", ":port" or a port on 127.0.0.1, "[::1]:port", (host, port), or a Unix
            socket as a path with a slash or "@name".
        page: what is shown; it stays mapped for as long as this object lives.

    Raises:
        TypeError, ValueError: naming the address and what is expected.
        ExtraMissingError: prometheus-client is not installed.
    """

    def __init__(self, address: Any, page: Page) -> None:
        self._address = parse_address("metrics", address)
        self._page = page
        self._exposition = _exposition(page)
        self._html = files("pyloop").joinpath("metrics.html").read_bytes()
        self._answers: dict[str, tuple[float, Answer]] = {}
        self._server: Server | None = None

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            OSError: the address cannot be listened on; the message names it.
            RuntimeError: no pyloop.Loop is running, or it was started already.
        """
        running_loop("MetricsServer.start()")
        if self._server is not None:
            raise RuntimeError("MetricsServer.start(): it has been started already")
        routes = {"/": self._page_for_people, "/stats.json": self._json, "/metrics": self._metrics}
        where = self._address
        server = Server(
            responder(routes, () if isinstance(where, str) else [where[0]]),
            **_listen(where),
            framing=FRAMING,
            max_connections=_CONNECTIONS,
            idle_timeout=_TIMEOUT,
            message_timeout=_TIMEOUT,
            drain_timeout=1.0,
        )
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Stop listening; answers that are under way still leave."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    @property
    def url(self) -> str:
        """Where it is to be seen; for a Unix socket its path."""
        if isinstance(self._address, str):
            return self._address.replace("\0", "@", 1)
        host, port = self._address
        return f"http://{show_address((host, (self._server and self._server.port) or port))}/"

    def __repr__(self) -> str:
        return f"<pyloop.MetricsServer {self.url} {'serving' if self._server else 'stopped'}>"

    # ---- routes ----

    def _page_for_people(self, request: Request) -> Answer:
        return Answer(self._html, "text/html; charset=utf-8")

    def _json(self, request: Request) -> Answer:
        return self._fresh("json", lambda: Answer(snapshot(self._page), "application/json"))

    def _metrics(self, request: Request) -> Answer:
        accept = _OPENMETRICS if _OPENMETRICS in request.fields.get("accept", "") else ""
        return self._fresh(accept, lambda: Answer(*self._exposition.render(accept)))

    def _fresh(self, key: str, make: Callable[[], Answer]) -> Answer:
        made, answer = self._answers.get(key, (-FRESH_SECONDS, None))
        now = time.monotonic()
        if answer is None or now - made >= FRESH_SECONDS:
            answer = make()
            self._answers[key] = now, answer
        return answer


@contextlib.asynccontextmanager
async def serve_metrics(addresses: Iterable[Any], page: Page) -> AsyncIterator[None]:
    """Serve the counters of a page on each of the addresses, while a block runs.

    Raises:
        OSError: one of them cannot be listened on.
        ExtraMissingError: prometheus-client is not installed.
    """
    async with contextlib.AsyncExitStack() as stack:
        for address in dict.fromkeys(addresses):
            server = MetricsServer(address, page)
            await server.start()
            stack.push_async_callback(server.stop)
            log.info("metrics on %s", server.url)
        yield


def _exposition(page: Page) -> Exposition:
    try:
        from pyloop.exposition import Exposition
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] != "prometheus_client":
            raise
        raise ExtraMissingError(
            'metrics need prometheus-client: pip install "pyloop-io[metrics]"'
        ) from None
    return Exposition(page)


def _listen(address: tuple[str, int] | str) -> dict[str, Any]:
    """Return the arguments of Server that make it listen there."""
    if isinstance(address, str):
        return {"path": address}
    try:
        infos = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        where = show_address(address)
        raise socket.gaierror(exc.errno, f"cannot listen on {where}: {exc.strerror}") from None
    listening = Listening()
    listening.open_tcp([min(infos)], address[1], _CONNECTIONS)  # IPv4, where a name has both
    return {"sock": listening.sockets[0]}


def snapshot(page: Page) -> bytes:
    """Return the counters as JSON: of the run, and of each cell, whose number is its place."""
    stats = page_stats(page)
    return json.dumps(
        {
            "now": time.monotonic(),
            "label": stats.label,
            "pid": stats.pid,
            "age": stats.age_seconds,
            "processes": {
                name: getattr(stats.processes, name) for name in stats.processes.__slots__
            },
            "cells": [_cell(cell) for cell in stats.cells],
        }
    ).encode()


def _cell(cell: WorkerStats) -> dict[str, Any]:
    def summed(name: str) -> int:
        counters: tuple[Counters, ...] = cell.servers
        return sum(getattr(server, name) for server in counters)

    return {
        "worker": cell.worker_id,
        "pid": cell.pid,
        "state": cell.state,
        "starts": cell.starts,
        "age": cell.age_seconds,
        "running": cell.running_seconds,
        "busy": cell.busy_seconds,
        "lag": cell.lag,
        "rss": resident_bytes(cell.pid),
        **{name: summed(name) for name in _SUMMED},
    }
