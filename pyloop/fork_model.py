"""Model fork: a child process for each connection.

    parent    accept, fork, close the socket, accept the next; reap by pidfd
    child     close what is the parent's, converse, exit

Each child counts in a cell of the run's page, which the parent lends it; cell 0 is the acceptor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import os
import signal
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyloop.address import decode_sockaddr, show_address
from pyloop.blocking import next_id
from pyloop.core import lib
from pyloop.forking import fork_child
from pyloop.models import BlockingAcceptor
from pyloop.outlet import Wake
from pyloop.served import ServedConnection

if TYPE_CHECKING:
    from pyloop.loop import Loop
    from pyloop.server import Server

__all__ = ["ForkService"]

_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    cell: int
    pidfd: int
    """-1: there was none, so the child is looked after by a timer."""


def _is_alive(pid: int) -> bool:
    """Does a process run? A zombie, which may never be reaped, does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in b"ZX"
    except (OSError, IndexError):
        return False


class ForkService(BlockingAcceptor):
    """A started server of model "fork".

    Its cells may be in use: children of a predecessor that was killed still converse. Who is
    accepted meanwhile waits until one of them ends, if there is no other cell.
    """

    __slots__ = ("_children", "_free", "_lent", "_page", "_rest", "_sweep", "_waiting")

    def __init__(self, server: Server, loop: Loop) -> None:
        super().__init__(server, loop)
        page = server._group.page
        assert page is not None and len(server._child_cells) > 0
        self._page = page
        self._children: dict[int, _Child] = {}
        self._free: list[int] = []
        self._lent = [n for n in server._child_cells if page.cell(n).state != lib.PL_CELL_FREE]
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._rest: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._free += sorted(set(server._child_cells).difference(self._lent))
        self._sweep_children()

    # ---- coming ----

    def handed_over(self, fd: int, peer: bytes) -> None:
        if not self._free:
            self._waiting.append((fd, peer))
            return
        cell = heapq.heappop(self._free)
        child = functools.partial(self._child_main, fd, peer, cell, next_id(), os.getpid())
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it can obey
        try:
            pid = fork_child(child)
        except OSError as exc:
            heapq.heappush(self._free, cell)
            self._refuse(fd, peer, exc.strerror or str(exc))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(fd)
        self._page.claim(cell, 0)
        entry = self._page.cell(cell)
        entry.pid, entry.state = pid, lib.PL_CELL_READY
        self._children[pid] = born = _Child(pid, cell, self._watch(pid))
        if self.stopping:
            self._tell(born, signal.SIGTERM)

    def _refuse(self, fd: int, peer: bytes, why: str) -> None:
        self._refuse_fd(fd, f"no process for {show_address(decode_sockaddr(peer))}: {why}")
        self._rest_a_while()

    def _rest_a_while(self) -> None:
        """Processes or memory are short: accept no more for a moment."""
        if self._rest is None and not self.stopping:
            self.counters.accept_pauses += 1
            self.refuse_more(self.server.sockets)
            self._rest = self.loop.call_later(_RETRY_SECONDS, self._accept_again)

    def _accept_again(self) -> None:
        self._rest = None
        if self.stopping:
            return
        try:
            self.accept(self.server.sockets)
        except OSError:
            self._rest_a_while()

    # ---- in the child ----

    def _child_main(self, fd: int, peer: bytes, cell: int, ident: int, parent: int) -> int:
        server = self.server
        for child in self._children.values():
            if child.pidfd >= 0:
                os.close(child.pidfd)
        self._children.clear()
        while self._waiting:
            os.close(self._waiting.pop()[0])
        self._page.close_fd()
        server._service = self
        wake = Wake(pipe=True)
        signal.set_wakeup_fd(wake.write_fd, warn_on_full_buffer=False)
        conn = self._connect(
            fd, peer, wake, self._page.counters(cell, server._group.page_server), ident
        )
        self._obey(conn, parent)
        try:
            conn._context.run(self._converse, conn)
        finally:
            signal.set_wakeup_fd(-1)
            if os.getppid() != parent:  # nobody does it for us
                self._page.free(cell)
        return int(conn._failed)

    def _obey(self, conn: ServedConnection, parent: int) -> None:
        """Take SIGTERM, from the parent or at its end, for: finish the conversation."""

        def leave(number: int = 0, frame: object = None) -> None:
            if os.getppid() != parent:  # nobody is left to end a handler that does not
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, self.server._drain_timeout or 1e-6)
            conn._drain_input()

        signal.signal(signal.SIGTERM, leave)
        lib.pl_orphan_signal(signal.SIGTERM)
        if os.getppid() != parent:
            leave()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    # ---- going ----

    def _watch(self, pid: int) -> int:
        """Have the loop tell of the child's end; return the pidfd, -1 where there can be none."""
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, AttributeError):
            self._sweep_later()
            return -1
        try:
            self.loop.add_reader(pidfd, self._reap, pid)
            return pidfd
        except (OSError, ValueError):  # ValueError: it does not fit select
            os.close(pidfd)
            self._sweep_later()
            return -1

    def _sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = self.loop.call_later(_RETRY_SECONDS, self._sweep_children)

    def _sweep_children(self) -> None:
        self._sweep = None
        for child in tuple(self._children.values()):
            if child.pidfd < 0:
                self._reap(child.pid)
        for cell in tuple(self._lent):
            if not _is_alive(self._page.cell(cell).pid):
                self._lent.remove(cell)
                self._take_back(cell)
        if self._lent or any(child.pidfd < 0 for child in self._children.values()):
            self._sweep_later()

    def _take_back(self, cell: int) -> None:
        """Let a cell have the next child, for which somebody may wait."""
        self._page.free(cell)
        heapq.heappush(self._free, cell)
        if self._waiting:
            self.handed_over(*self._waiting.popleft())

    def _reap(self, pid: int) -> None:
        """Take the status of a child that has ended: of this pid only, others are not ours."""
        child = self._children[pid]
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # taken by somebody who waits for every child
            ended, status = pid, 0
        if not ended:
            return
        del self._children[pid]
        if child.pidfd >= 0:
            self.loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
        self._page.note_exit(os.waitstatus_to_exitcode(status))
        self._release()
        self._take_back(child.cell)
        self._check_idle()

    def _is_busy(self) -> bool:
        return bool(self._children or self._waiting)

    def _kill(self, number: int) -> None:
        for child in self._children.values():
            self._tell(child, number)

    def _tell(self, child: _Child, number: int) -> None:
        """Send a signal, to nobody if somebody else took the child's status: its pid is free."""
        with contextlib.suppress(ProcessLookupError):
            if child.pidfd >= 0:
                signal.pidfd_send_signal(child.pidfd, number)
            else:
                os.kill(child.pid, number)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            fd, peer = self._waiting.popleft()
            self._refuse_fd(fd, f"no process for {show_address(decode_sockaddr(peer))}: stopping")

    async def drain(self, timeout: float) -> None:
        self._refuse_waiting()
        self._kill(signal.SIGTERM)
        if not await self.wait_idle(timeout):
            self.abort()
            await self.wait_idle(5.0)

    def abort(self) -> None:
        """Kill every child; in a child, abort its connection."""
        self._refuse_waiting()
        self._kill(signal.SIGKILL)
        for conn in tuple(self.connections):
            conn.abort()

    def end(self) -> None:
        for timer in (self._rest, self._sweep):
            if timer is not None:
                timer.cancel()
        for child in self._children.values():
            if child.pidfd >= 0:
                self.loop.remove_reader(child.pidfd)
                os.close(child.pidfd)
        super().end()
