"""What a supervisor looks at: loops that do not turn, and workers over a limit.

A loop stores `running_since` in its cell when it leaves the wait, and clears it when it enters. So
an idle loop, which makes no system call at all, is told from one that hangs. The clock of the
verdict are the supervisor's own looks: it must have seen the same `running_since` several times. A
machine that was suspended, or processes that were stopped and continued together, are then no hang.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyloop.core import lib
from pyloop.page import Page
from pyloop.protocol import log
from pyloop.stats import resident_bytes
from pyloop.supervision import Supervision
from pyloop.worker import STACK_SIGNAL

if TYPE_CHECKING:
    from pyloop.process import WorkerProcess

__all__ = ["Limits", "Watchdog"]

LOOKS = 4
"""How often a loop must be seen in one and the same turn, over worker_timeout seconds."""
_STACK_SECONDS = 1.0
_STACK_LOOK_SECONDS = 0.02
_STACK_BYTES = 64 * 1024
_SPREAD = 0.1
_SLOW_SECONDS = 30.0


def _jittered(limit: float) -> float:
    """So that workers which started together do not all end together."""
    return limit * random.uniform(1 - _SPREAD, 1 + _SPREAD)


@dataclass
class Limits:
    """When one worker is to be replaced; 0 is never."""

    max_rss: float
    max_lifetime: float
    max_messages: float
    born: float
    messages: int
    """What its cell had counted when it was born."""


def _stack_file() -> int:
    """Make a file without a name, to which a worker that hangs writes its stack."""
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("pyloop-stack")
        fd, path = tempfile.mkstemp()
        os.unlink(path)
        return fd
    except OSError as exc:
        what = f"cannot make a file for the stacks of workers: {exc.strerror}"
        raise OSError(exc.errno, what) from None


class Watchdog:
    """Looks at workers through their cells, and asks one that hangs for its stack."""

    def __init__(self, page: Page, settings: Supervision) -> None:
        self._page, self._settings = page, settings
        self._seen: dict[int, tuple[int, int]] = {}  # pid: running_since, and in how many looks
        self.stack_fd = _stack_file()

    def close(self) -> None:
        """Give up the stack file."""
        os.close(self.stack_fd)

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        timeout = self._settings.worker_timeout
        return min(1.0, timeout / LOOKS) if timeout else 1.0

    async def look_at(self, process: WorkerProcess) -> str:
        """Kill a process that hangs or is overdue. Returns why another is to be replaced, or ""."""
        if process.ended:
            return ""
        if process.ready_at and self.hangs(process.pid, process.cell):
            await self._end_hanging(process)
        elif process.is_overdue:
            log.error("worker %d (pid %d) does not leave: killed", *process.names)
            process.kill(signal.SIGKILL)
        elif process is process.slot.current and not (process.recycled or process.doomed):
            return self.over(process.limits, process.pid, process.cell)
        elif process.is_slow_to_start(self._settings.worker_timeout or _SLOW_SECONDS):
            log.warning("worker %d (pid %d) is not ready yet: waiting", *process.names)
        return ""

    # ---- loops that do not turn ----

    def hangs(self, pid: int, cell_number: int) -> bool:
        """Take one look at a worker: has it been in one turn of its loop for worker_timeout?"""
        timeout = self._settings.worker_timeout
        since = self._page.cell(cell_number).loop.running_since
        if not since or not timeout:
            self._seen.pop(pid, None)
            return False
        before, looks = self._seen.get(pid, (0, 0))
        looks = looks + 1 if before == since else 1
        self._seen[pid] = since, looks
        enough = max(LOOKS, int(timeout / self.interval))
        return looks > enough and time.monotonic_ns() - since > timeout * 1e9

    def forget(self, pid: int) -> None:
        """Its process has ended."""
        self._seen.pop(pid, None)

    async def _end_hanging(self, process: WorkerProcess) -> None:
        loop = self._page.cell(process.cell).loop
        since = loop.running_since
        stack = await self._stack_of(process)
        if process.ended or loop.running_since != since:
            return  # by itself; or it goes on
        log.error(
            "worker %d (pid %d) has not turned its loop for %g s and is replaced; it hangs in:\n%s",
            *process.names,
            self._settings.worker_timeout,
            stack,
        )
        self._page.header.hung += 1
        process.kill(signal.SIGKILL)

    async def _stack_of(self, process: WorkerProcess) -> str:
        """Return the Python stacks of a process that hangs, as faulthandler writes them."""
        os.ftruncate(self.stack_fd, 0)
        os.lseek(self.stack_fd, 0, os.SEEK_SET)
        process.kill(STACK_SIGNAL)
        size = 0
        for _ in range(int(_STACK_SECONDS / _STACK_LOOK_SECONDS)):
            await asyncio.sleep(_STACK_LOOK_SECONDS)
            before, size = size, os.fstat(self.stack_fd).st_size
            if size and size == before:
                break
        stack = os.pread(self.stack_fd, _STACK_BYTES, 0).decode("utf-8", "replace")
        return (
            _without_supervisor(stack)
            or "(it did not write its stack: it is stopped, or the kernel does not let go of it)"
        )

    # ---- limits ----

    def adjust(self, settings: Supervision) -> None:
        """Go by other settings; a worker keeps the limits that it was given."""
        self._settings = settings

    def limits(self, cell_number: int) -> Limits:
        """Return the limits of a worker that is about to start in a cell, each with its jitter."""
        settings = self._settings
        return Limits(
            max_rss=_jittered(settings.max_rss),
            max_lifetime=_jittered(settings.max_lifetime),
            max_messages=_jittered(settings.max_messages),
            born=time.monotonic(),
            messages=self._messages(cell_number),
        )

    def _messages(self, cell_number: int) -> int:
        page = self._page
        servers = range(page.servers)
        return sum(page.counters(cell_number, server).messages_in for server in servers)

    def over(self, limits: Limits, pid: int, cell_number: int) -> str:
        """Say why a worker is to be replaced: the limit it is over; "" for no reason."""
        if self._page.cell(cell_number).state == lib.PL_CELL_LEAVING:
            return "it was told to stop, not by its supervisor"
        if limits.max_lifetime and time.monotonic() - limits.born > limits.max_lifetime:
            return f"it has served for {time.monotonic() - limits.born:.0f} s (max_lifetime)"
        if limits.max_messages:
            messages = self._messages(cell_number) - limits.messages
            if messages > limits.max_messages:
                return f"it has received {messages} messages (max_messages)"
        if limits.max_rss and (rss := resident_bytes(pid)) > limits.max_rss:
            return f"it holds {rss} bytes (max_rss)"
        return ""


def _without_supervisor(stack: str) -> str:
    """Leave out the frames that a forked worker has inherited: those below fork_child."""
    threads = [thread.splitlines() for thread in stack.split("\n\n")]
    for lines in threads:
        for number, line in enumerate(lines):
            if line.endswith(" in _run_child"):
                del lines[number:]
                break
    return "\n\n".join("\n".join(lines) for lines in threads).rstrip()
