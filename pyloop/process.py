"""One worker process, and the slot that such processes fill in turn, as their supervisor sees them.

slot:   incoming --ready--> current --retire--> leaving --> gone
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable

from pyloop.client import adopt
from pyloop.connection import Connection
from pyloop.framing import Lines
from pyloop.loop import running_loop
from pyloop.protocol import Protocol, log
from pyloop.watchdog import Limits
from pyloop.worker import ABORT, FAILED, LEAVING, READY, RETIRE

__all__ = ["Slot", "WorkerProcess"]

_REPORT_BYTES = 1 << 20
_HEAR_OUT_SECONDS = 1.0
_LEAVE_SECONDS = 1.0


class WorkerProcess(Protocol):
    """One worker process, and the supervisor's end of the pipe to it.

    Attributes:
        pid: 0 before it was started.
        ready_at: time.monotonic() when it said so; 0.0 before.
        doomed: it was told to leave, so its end is no surprise.
        ended: its pid may be another's by now.
    """

    def __init__(
        self,
        slot: Slot,
        cell: int,
        limits: Limits,
        on_ready: Callable[[WorkerProcess], None],
        on_failure: Callable[[WorkerProcess, str], None],
    ) -> None:
        self.slot, self.cell, self.limits = slot, cell, limits
        self.pid = 0
        self.ready_at = 0.0
        self.doomed = False
        self.ended = False
        self.recycled = False
        self.ending: asyncio.Future[None] | None = None
        self._on_ready, self._on_failure = on_ready, on_failure
        self._conn: Connection | None = None
        self._settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._left = asyncio.Event()  # it accepts no more
        self._leave_by = 0.0
        self._warned = False

    @property
    def names(self) -> tuple[int, int]:
        """The worker's number and its pid, for messages."""
        return self.slot.worker_id, self.pid

    # ---- the pipe ----

    def open_pipe(self) -> socket.socket:
        """Make the pipe; return the worker's end. A forked child closes ours with the loop."""
        ours, theirs = socket.socketpair()
        try:
            adopt(running_loop("a supervisor"), ours, Lines(max_size=_REPORT_BYTES), self)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs

    def close_pipe(self) -> None:
        """Give up the pipe: a worker takes that for its supervisor's end."""
        if self._conn is not None:
            self._conn.close()

    def connection_made(self, conn: Connection) -> None:
        self._conn = conn

    def message_received(self, message: bytes) -> None:
        try:
            report = json.loads(message)
        except ValueError:
            report = None
        if not isinstance(report, dict):
            log.error("worker %d (pid %d) said what nobody understands", *self.names)
        elif report.get(READY):
            self._on_ready(self)
        elif report.get(LEAVING):
            self._left.set()
        elif FAILED in report:
            self._on_failure(self, str(report[FAILED]))

    async def hear_out(self) -> None:
        """Wait until it has said all; it has ended, so that is soon."""
        if self._conn is not None:
            with contextlib.suppress(TimeoutError):  # its own children may hold the pipe
                async with asyncio.timeout(_HEAR_OUT_SECONDS):
                    await self._conn.wait_closed()
            self._conn.abort()

    # ---- its life ----

    def settle(self, ready: bool) -> None:
        """It is ready, or it has ended; the first counts."""
        if not ready:
            self._left.set()
        if not self._settled.done():
            self._settled.set_result(ready)

    async def became_ready(self) -> bool:
        """Wait until it is ready, or has ended without that."""
        return await asyncio.shield(self._settled)

    async def has_left(self) -> None:
        """Wait until it accepts no more, or has ended; a second, since it may hang."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._left.wait()

    def retire(self, patience: float) -> None:
        """Have it accept no more, and leave when its connections have; overdue after `patience`."""
        self.doomed = True
        self._leave_by = time.monotonic() + patience
        if self._conn is not None:
            self._conn.send(RETIRE)

    def abort(self) -> None:
        """Have it stop, and abort its connections."""
        if self._conn is not None:
            self._conn.send(ABORT)

    @property
    def is_overdue(self) -> bool:
        """Should it have left by now?"""
        return bool(self._leave_by) and time.monotonic() > self._leave_by

    def is_slow_to_start(self, after: float) -> bool:
        """Is it still starting, `after` seconds after it was started? True once."""
        late = not self.ready_at and time.monotonic() - self.limits.born > after
        self._warned, first = self._warned or late, not self._warned
        return late and first

    @property
    def is_stuck(self) -> bool:
        """Was it found slow to start, does it start still, and was it not told to leave?"""
        return self._warned and not self.ready_at and not self.doomed

    def give_up(self, patience: float) -> None:
        """Wait for its start no longer; what it serves already has its time."""
        log.error("worker %d (pid %d) does not become ready: it is told to stop", *self.names)
        self.retire(patience)
        self.kill(signal.SIGTERM)

    def kill(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if not self.ended:
                os.kill(self.pid, number)


class Slot:
    """The place of one worker, filled by one process after another."""

    def __init__(self, number: int, backoff: float) -> None:
        self.number = number
        self.backoff = backoff
        self.incoming: WorkerProcess | None = None
        self.current: WorkerProcess | None = None
        self.leaving: WorkerProcess | None = None
        self.unready_deaths = 0
        self.removed = False
        self.respawn: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    @property
    def worker_id(self) -> int:
        """The worker's number, from 1."""
        return self.number + 1

    @property
    def processes(self) -> tuple[WorkerProcess, ...]:
        """The processes that it has now."""
        return tuple(filter(None, (self.incoming, self.current, self.leaving)))

    def promote(self) -> WorkerProcess | None:
        """Make the incoming process the current one. Returns the one before, which is leaving."""
        old, self.current, self.incoming = self.current, self.incoming, None
        if old is not None:
            self.leaving = old
        self._changed.set()
        return old

    def drop(self, process: WorkerProcess) -> None:
        """Forget a process that has ended."""
        for role in ("incoming", "current", "leaving"):
            if getattr(self, role) is process:
                setattr(self, role, None)
        self._changed.set()

    async def change(self) -> None:
        """Wait until a process comes, goes, or changes its role."""
        self._changed.clear()
        await self._changed.wait()

    def cancel_respawn(self) -> None:
        """A process need not be started later."""
        if self.respawn is not None:
            self.respawn.cancel()
            self.respawn = None
