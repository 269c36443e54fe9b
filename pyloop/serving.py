"""Serve in this process: start, wait for orders, stop. What run() does, and every worker."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from pyloop.buses import Buses
from pyloop.core import lib
from pyloop.loop import Loop
from pyloop.page import Page
from pyloop.server import Server

__all__ = [
    "Signals",
    "Stage",
    "children_of",
    "count_in",
    "give_buses",
    "label_of",
    "make_page",
    "serve_alone",
]


class Signals:
    """Handlers for signals while a block runs, in the main thread; elsewhere none."""

    def __init__(self, callback: Callable[[], None], *numbers: int) -> None:
        self._callback = callback
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._before[number] = signal.getsignal(number)
                self._loop.add_signal_handler(number, self._callback)

    def __exit__(self, *exc_info: object) -> None:
        # Between the two calls each would have its default action.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        for number, before in self._before.items():
            self._loop.remove_signal_handler(number)
            if before is not None:
                signal.signal(number, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def children_of(servers: tuple[Server, ...]) -> int:
    """Return how many children may serve at once, each with a cell of its own."""
    return sum(s._group.options.max_connections for s in servers if s._model == "fork")


def make_page(servers: tuple[Server, ...], cells: int) -> Page:
    """Return a page for the servers, which go on counting there."""
    page = Page(cells, len(servers))
    page.header.used = 1  # the first cell has what was counted before
    for number, server in enumerate(servers):
        server._use_page(page, number)
    return page


def give_buses(servers: tuple[Server, ...], buses: Buses, shared: bool) -> None:
    """Have the servers use these buses, all of which are made now if they are to be `shared` with
    processes yet to be forked."""
    for server in servers:
        server._buses = buses
        if shared and server._bus_url is not None:
            buses.get(server._bus_url)


def count_in(servers: tuple[Server, ...], page: Page, cell: int) -> None:
    """Have the servers, and the loop that runs, count in a cell of a page."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop._count_in(page, cell)
    for number, server in enumerate(servers):
        server._group.count_in(page, cell, number)


class Stage:
    """Servers that serve in this process until they are told to end."""

    def __init__(self, servers: tuple[Server, ...]) -> None:
        self._servers = servers
        self._stop = asyncio.Event()
        self._retire = asyncio.Event()

    def stop(self) -> None:
        """Stop in good order; told again, abort."""
        if self._stop.is_set():
            self.abort()
        self.leave()

    def leave(self) -> None:
        """Stop in good order, however often it is told."""
        self._stop.set()

    def abort(self) -> None:
        """Stop, and abort every connection."""
        for server in self._servers:
            server.abort()
        self._stop.set()

    def retire(self) -> None:
        """Accept no more; stop once the connections have ended, or drain_timeout has passed."""
        self._retire.set()

    async def run(self, ready: Callable[[], None], leaving: Callable[[], None]) -> None:
        """Serve; `ready` is called when all have started, `leaving` once or more, when
        accepting has ended."""
        try:
            if await self._unless_stopped(self._start()):
                ready()
                await self._unless_stopped(self._until_ended(leaving))
        finally:
            leaving()
            await self._stop_all()

    async def _start(self) -> None:
        for server in self._servers:
            await server._start()

    async def _until_ended(self, leaving: Callable[[], None]) -> None:
        """Wait until every server was stopped from within, or has retired."""
        stopped = (s._stopped.wait() for s in self._servers if s._stopped)
        ended = asyncio.gather(*stopped)
        retire = asyncio.ensure_future(self._retire.wait())
        try:
            await asyncio.wait((ended, retire), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                for server in self._servers:
                    server._retire()
                leaving()
                await asyncio.gather(*(server._retired() for server in self._servers))
        finally:
            await _cancel(ended, retire)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` to its end; false if the order to stop came first, and it was given up."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            return task.done()
        finally:
            await _cancel(task, stop)

    async def _stop_all(self) -> None:
        """Stop them side by side, each to its end, then raise what the first on_stop raised."""
        stops = (server.stop() for server in self._servers)
        results = await asyncio.gather(*stops, return_exceptions=True)
        for buses in {server._buses for server in self._servers if server._buses}:
            await buses.close()
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _cancel(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


async def serve_alone(servers: tuple[Server, ...], page: Page) -> None:
    """Serve in this process until SIGINT or SIGTERM; a second one aborts."""
    stage, cell = Stage(servers), page.cell(0)
    for server in servers:
        server._child_cells = range(1, page.cells)
    page.occupy(0, 0, page.header.pid)
    count_in(servers, page, 0)

    def ready() -> None:
        cell.state = lib.PL_CELL_READY
        page.set_label(label_of(servers))

    def leaving() -> None:
        cell.state = lib.PL_CELL_LEAVING

    try:
        with Signals(stage.stop, signal.SIGINT, signal.SIGTERM):
            await stage.run(ready, leaving)
    finally:
        page.free(0)
        page.close_fd()


def label_of(servers: tuple[Server, ...]) -> str:
    """Say where servers listen."""
    return ", ".join(server._listening.describe() for server in servers)
