"""run(): one call that serves, or runs a coroutine, on a pyloop.Loop, with signals seen to."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

from pyloop.loop import new_event_loop
from pyloop.server import Server

__all__ = ["run"]

T = TypeVar("T")


@overload
def run(main: Coroutine[Any, Any, T], /, *, backend: str = ..., debug: bool | None = ...) -> T: ...
@overload
def run(*servers: Server, backend: str = ..., debug: bool | None = ...) -> None: ...
def run(*servers: Any, backend: str = "auto", debug: bool | None = None) -> Any:
    """Serve until SIGINT or SIGTERM, or run one coroutine to its end.

    Servers: the first signal stops them in good order (see Server.stop), a second one aborts.
    A coroutine: SIGINT is as in asyncio.run; SIGTERM cancels it, and run raises SystemExit(143).

    Args:
        servers: one or more Servers, or one coroutine.
        backend: "auto", "select", "poll" or "epoll"; see Loop.
        debug: asyncio's debug mode; None leaves it to the environment.

    Returns:
        None for servers, the coroutine's result otherwise.

    Raises:
        OSError: a server cannot listen.
        TypeError, ValueError: naming what was passed and what is expected.
    """
    coroutines: tuple[Any, ...] = servers
    try:
        main = _main(servers[0]) if _is_main(servers) else _serve(servers)
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


class _Signals:
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
        for number, before in self._before.items():
            self._loop.remove_signal_handler(number)
            if before is not None:
                signal.signal(number, before)


async def _main(coroutine: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    with _Signals(terminate, signal.SIGTERM):
        try:
            return await coroutine
        except asyncio.CancelledError:
            if terminated:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise


async def _serve(servers: tuple[Server, ...]) -> None:
    stop = asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            for server in servers:
                server.abort()
        stop.set()

    with _Signals(signalled, signal.SIGINT, signal.SIGTERM):
        try:
            if await _started(stop, servers):
                await _until_stopped(stop, servers)
        finally:
            await _stop_all(servers)


async def _started(stop: asyncio.Event, servers: tuple[Server, ...]) -> bool:
    """Start them in turn; a signal meanwhile gives it up."""

    async def start() -> None:
        for server in servers:
            await server._start()

    starting = asyncio.ensure_future(start())
    signalled = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        return starting.done()
    finally:
        signalled.cancel()
        starting.cancel()
        await asyncio.gather(starting, signalled, return_exceptions=True)


async def _stop_all(servers: tuple[Server, ...]) -> None:
    """Stop them side by side, each to its end, then raise what the first on_stop raised."""
    results = await asyncio.gather(*(s.stop() for s in servers), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _until_stopped(stop: asyncio.Event, servers: tuple[Server, ...]) -> None:
    """Wait for a signal, or until every server was stopped from within."""
    signalled = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(
        asyncio.gather(*(server._stopped.wait() for server in servers if server._stopped))
    )
    try:
        await asyncio.wait((signalled, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        ended.cancel()
        await asyncio.gather(signalled, ended, return_exceptions=True)
