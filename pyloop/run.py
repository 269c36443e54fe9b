"""run(): one call that serves, or runs a coroutine, on a pyloop.Loop, with signals seen to."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar, overload

from pyloop.blocked import check_threshold
from pyloop.buses import Buses
from pyloop.loop import new_event_loop, running_loop
from pyloop.page import Page
from pyloop.server import Server
from pyloop.serving import Signals, children_of, give_buses, make_page, serve_alone
from pyloop.supervision import Supervision, cells_for, common_supervision, workers_most

__all__ = ["refuse_run", "run"]

T = TypeVar("T")
_refused = False


@overload
def run(
    main: Coroutine[Any, Any, T],
    /,
    *,
    backend: str = ...,
    debug: bool | None = ...,
    block_threshold: float | None = ...,
) -> T: ...
@overload
def run(
    *servers: Server,
    backend: str = ...,
    debug: bool | None = ...,
    block_threshold: float | None = ...,
) -> None: ...
def run(
    *servers: Any,
    backend: str = "auto",
    debug: bool | None = None,
    block_threshold: float | None = None,
) -> Any:
    """Serve until SIGINT or SIGTERM, or run one coroutine to its end.

    Servers: the first signal stops them in good order (see Server.stop), a second one aborts.
    A coroutine: SIGINT is as in asyncio.run; SIGTERM cancels it, and run raises SystemExit(143).

    Args:
        servers: one or more Servers, or one coroutine.
        backend: "auto", "select", "poll" or "epoll"; see Loop.
        debug: asyncio's debug mode; None leaves it to the environment.
        block_threshold: seconds after which a callback that still runs is logged; see Loop. It
            holds where handlers run: in each worker, and never in a process that forks.

    Returns:
        None for servers, the coroutine's result otherwise.

    Raises:
        OSError: a server cannot listen.
        TypeError, ValueError: naming what was passed and what is expected.
    """
    coroutines: tuple[Any, ...] = servers
    try:
        watch = check_threshold(block_threshold)
        main = (
            _main(servers[0], watch)
            if _is_main(servers)
            else _serve(servers, backend, debug, watch)
        )
        coroutines = (main, *servers)
        with asyncio.Runner(debug=debug, loop_factory=lambda: new_event_loop(backend)) as runner:
            return runner.run(main)
    finally:
        for coroutine in filter(inspect.iscoroutine, coroutines):
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()  # something was wrong before it could start


def _is_main(servers: tuple[Any, ...]) -> bool:
    """Is it one coroutine? If not, are they Servers, and may run() be called at all?"""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "run() cannot be called from a running event loop: await server.serve_forever()"
        )
    if len(servers) == 1 and inspect.iscoroutine(servers[0]):
        return True
    if _refused:
        raise RuntimeError(
            "run() with servers was called while `serve` imports them: put it under "
            'if __name__ == "__main__":'
        )
    if not servers:
        raise TypeError("run() expected Servers or one coroutine, got nothing")
    for server in servers:
        if not isinstance(server, Server):
            raise TypeError(f"run() expected Servers or one coroutine, got {server!r}")
    alone = [server for server in servers if server._model != "loop"]
    if alone and len(servers) > 1:
        raise ValueError(
            f'run() got {len(servers)} Servers, but one of model="{alone[0]._model}" runs alone: '
            f"{', '.join(map(repr, servers))}"
        )
    if len(set(servers)) != len(servers):
        raise ValueError("run() got the same Server twice")
    return False


async def _serve(
    servers: tuple[Server, ...], backend: str, debug: bool | None, block_threshold: float | None
) -> None:
    """Serve here, or have workers serve."""
    settings = common_supervision([(repr(server), server._supervision) for server in servers])
    if settings.workers > 1 and threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"run() with workers={settings.workers} needs the main thread: its signals steer them"
        )
    give_buses(servers, Buses(), shared=settings.workers > 1 or servers[0]._model == "fork")
    try:
        if settings.workers > 1:
            await _supervise(servers, settings, backend, debug, block_threshold)
            return
        if servers[0]._model != "fork":  # whose parent forks for each connection
            running_loop("run()")._watch_blocking(block_threshold)
        page = make_page(servers, 1 + children_of(servers))
        async with _metrics(servers, page):
            await serve_alone(servers, page)
    finally:
        for server in servers:
            server._buses = None


async def _supervise(
    servers: tuple[Server, ...],
    settings: Supervision,
    backend: str,
    debug: bool | None,
    block_threshold: float | None,
) -> None:
    """Have workers serve, each a fork of this process, until SIGTERM or SIGINT.

    Raises:
        OSError: an address cannot be listened on.
        SystemExit: 3, when no worker could start.
    """
    # Not above: most programs that import pyloop have no workers, and each import takes its time.
    from pyloop.launch import ForkLauncher
    from pyloop.slots import Slots, listen
    from pyloop.supervisor import Supervisor

    places = [Slots(server._place) for server in servers]
    page = make_page(servers, cells_for(workers_most(settings.workers)))
    async with listen(places, settings.workers, page):
        for server, place in zip(servers, places, strict=True):
            server._listening = place.first
        launcher = ForkLauncher(servers, places, backend, debug, block_threshold)
        drain_timeout = max(server._drain_timeout for server in servers)
        async with _metrics(servers, page):
            await Supervisor(launcher, places, settings, drain_timeout, page).run()


@contextlib.asynccontextmanager
async def _metrics(servers: tuple[Server, ...], page: Page) -> AsyncIterator[None]:
    """Serve metrics in this block, if any server asks for them."""
    addresses = [server._metrics for server in servers if server._metrics is not None]
    if not addresses:
        yield
        return
    from pyloop.metrics import serve_metrics

    async with serve_metrics(addresses, page):
        yield


@contextlib.contextmanager
def refuse_run() -> Iterator[None]:
    """Have run() refuse servers in this block, in which `serve` imports a module."""
    global _refused
    _refused = True
    try:
        yield
    finally:
        _refused = False


async def _main(coroutine: Coroutine[Any, Any, T], block_threshold: float | None) -> T:
    running_loop("run()")._watch_blocking(block_threshold)
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    with Signals(terminate, signal.SIGTERM):
        try:
            return await coroutine
        except asyncio.CancelledError:
            if terminated:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
