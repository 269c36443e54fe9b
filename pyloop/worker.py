"""A worker: one process that serves its slot's sockets, and does what its supervisor says.

    supervisor  --"retire"-->  worker        over a socketpair, a line each; its end means: leave
                --"abort"-->
                <--{"ready": true}--
                <--{"leaving": true}--    it accepts no more
                <--{"failed": traceback}--

SIGTERM means: stop, and no more than that if it comes twice, from the supervisor and from whoever
signals a whole group. SIGINT and SIGHUP, which a terminal sends to everybody, mean nothing. SIGIO
comes with each order.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import socket
import traceback
from dataclasses import dataclass

from pyloop.core import lib
from pyloop.forking import leave_stdin
from pyloop.listening import Listening
from pyloop.loop import new_event_loop
from pyloop.page import Page
from pyloop.protocol import log
from pyloop.server import Server
from pyloop.serving import Signals, Stage, count_in

__all__ = [
    "ABORT",
    "FAILED",
    "LEAVING",
    "READY",
    "RETIRE",
    "STACK_SIGNAL",
    "STDIN_WORKER",
    "Post",
    "work",
]

STACK_SIGNAL = signal.SIGRTMIN + 4 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Has a worker write the stacks of its threads, whatever it is doing."""

STDIN_WORKER = 1
"""The one that has the supervisor's standard input; until it retires, for its successor has it."""

ORPHAN_SECONDS = 5.0
"""Beyond drain_timeout, before a worker without a supervisor is ended by SIGALRM."""

RETIRE, ABORT = b"retire", b"abort"
READY, LEAVING, FAILED = "ready", "leaving", "failed"
_TRACEBACK_BYTES = 32 * 1024


@dataclass(frozen=True)
class Post:
    """What a worker is given: its number, and everything it shares with its supervisor."""

    worker_id: int
    page: Page
    cell: int
    orders: socket.socket
    """The worker's end."""
    stack_fd: int
    sockets: tuple[tuple[socket.socket, ...], ...]
    """Of its slot, for each server."""
    shared: tuple[bool, ...]
    """Do all slots have the same ones? For each server."""


def work(
    servers: tuple[Server, ...],
    post: Post,
    backend: str,
    debug: bool | None = None,
    block_threshold: float | None = None,
) -> int:
    """Serve until told to leave. Returns the exit status."""
    faulthandler.register(STACK_SIGNAL, file=post.stack_fd, all_threads=True)

    def loop_factory() -> asyncio.AbstractEventLoop:
        return new_event_loop(backend, block_threshold)

    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        return runner.run(_work(servers, post))


async def _work(servers: tuple[Server, ...], post: Post) -> int:
    cell = post.page.cell(post.cell)
    cell.pid = os.getpid()
    stage = Stage(servers)
    boss = _Boss(post.orders, stage)
    boss.outlive(max(server._drain_timeout for server in servers) + ORPHAN_SECONDS)

    def ready() -> None:
        cell.state = lib.PL_CELL_READY
        boss.say({READY: True})

    def leaving() -> None:
        cell.state = lib.PL_CELL_LEAVING
        boss.say({LEAVING: True})

    with Signals(stage.leave, signal.SIGTERM):
        try:
            _equip(servers, post)
            await stage.run(ready, leaving)
        except Exception:
            boss.say({FAILED: traceback.format_exc()[-_TRACEBACK_BYTES:]})
            return 1
    return 0


def _equip(servers: tuple[Server, ...], post: Post) -> None:
    """Give the servers what the post has for them."""
    for number, server in enumerate(servers):
        server._listening = Listening(post.sockets[number])
        server._group.shared = post.shared[number]
        server._worker_id = post.worker_id
        server._child_cells = _child_cells(server, post)
    count_in(servers, post.page, post.cell)


def _child_cells(server: Server, post: Post) -> range:
    """Return the cells for its children: at the page's end, and others than its predecessor's.

    Raises:
        ValueError: the page was made for fewer.
    """
    count = server._group.options.max_connections if server._model == "fork" else 0
    first = post.page.cells - count * (2 - post.cell % 2)
    if count and post.page.cells - 2 * count <= post.cell:
        raise ValueError(f"max_connections={count}: more than before need a restart")
    return range(first, first + count)


class _Boss:
    """The supervisor, as its worker hears it."""

    def __init__(self, sock: socket.socket, stage: Stage) -> None:
        self._sock = sock
        self._stage = stage
        self._heard = b""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock, self._listen)

    def outlive(self, seconds: float) -> None:
        """When the supervisor is gone, live on for `seconds` at most.

        A loop that hangs does not notice. A signal tells even an endless loop in Python that the
        socket has something to say; a hung worker would keep its port for ever.

        Source: fcntl(2), O_ASYNC.
        """

        def heard(number: int, frame: object) -> None:
            if self._is_gone():
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, seconds)

        signal.signal(signal.SIGIO, heard)
        fcntl.fcntl(self._sock, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._sock, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)

    def _is_gone(self) -> bool:
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def say(self, report: dict[str, object]) -> None:
        """Report; a supervisor that is gone, or stuck, is no reason to wait."""
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(report).encode() + b"\n")

    def _listen(self) -> None:
        try:
            data = self._sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *orders, self._heard = (self._heard + data).split(b"\n")
        if RETIRE in orders:
            leave_stdin()
            self._stage.retire()
        if ABORT in orders:
            self._stage.abort()
        if not data:
            asyncio.get_running_loop().remove_reader(self._sock)
            log.warning("the supervisor of worker process %d is gone: stopping", os.getpid())
            self._stage.leave()
