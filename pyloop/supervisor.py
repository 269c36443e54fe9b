"""The supervisor: it keeps N workers serving, and replaces what dies, hangs or has grown old.

    slot:   incoming --ready--> current --retire--> leaving --> gone
            (one process each, at most two of a slot at once: they have the slot's two cells)

It serves nobody itself. It is one thread with one loop, so that it may fork at any time; what takes
turns (reloads, replacements, slots that come and go) is a queue of jobs, done one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pyloop.core import lib
from pyloop.launch import Launcher
from pyloop.page import Page
from pyloop.process import Slot, WorkerProcess
from pyloop.protocol import log
from pyloop.serving import Signals
from pyloop.slots import Slots, run_dry
from pyloop.supervision import CELLS_PER_SLOT, Supervision, workers_most
from pyloop.watchdog import Watchdog
from pyloop.worker import Post

__all__ = ["Supervisor"]

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 10.0
"""Seconds before a slot's worker is started again: doubled with each early death."""
SETTLED_SECONDS = 1.0
"""A worker that was ready for so long is restarted at once."""
GIVE_UP_AFTER = 5
"""Deaths before readiness in a row, in every slot, after which there is no hope."""
GRACE_SECONDS = 5.0
"""Beyond the time it has, before a worker that does not leave is killed. To stop it has
drain_timeout; to retire twice that, first for its clients to finish, then as any that stops."""
_TOLD = 32


class Supervisor:
    """Workers, kept running until SIGTERM or SIGINT."""

    def __init__(
        self,
        launcher: Launcher,
        places: Sequence[Slots],
        settings: Supervision,
        drain_timeout: float,
        page: Page,
        most: int | None = None,
    ) -> None:
        self._launcher = launcher
        self._places = places
        self._settings = settings
        self._most = workers_most(settings.workers) if most is None else most
        self._drain_timeout = drain_timeout
        self._page = page
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(page, settings)
        self._patience = 2 * drain_timeout + GRACE_SECONDS
        self._slots = [Slot(number, BACKOFF_FIRST) for number in range(settings.workers)]
        self._processes: dict[int, WorkerProcess] = {}
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._reload_waits = False
        self._preparing: asyncio.Future[bool] | None = None
        self._told: deque[str] = deque(maxlen=_TOLD)  # tracebacks that were logged
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()  # the last process has ended
        self._hopeless = False

    async def run(self) -> None:
        """Supervise until told to stop, and until the last worker has gone.

        Raises:
            SystemExit: 3, when no worker could start.
        """
        signals = (
            (self._stop, signal.SIGTERM, signal.SIGINT),
            (self.reload, signal.SIGHUP),
            (self._add_slot, signal.SIGTTIN),
            (self._remove_slot, signal.SIGTTOU),
            (self._reap, signal.SIGCHLD),
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._watchdog.close)
            for callback, *numbers in signals:
                stack.enter_context(Signals(callback, *numbers))
            for slot in self._slots:
                self._spawn(slot)
            tasks = [asyncio.ensure_future(self._do_jobs()), asyncio.ensure_future(self._look())]
            try:
                await self._stopping.wait()
            finally:
                for task in tasks:
                    task.cancel()
                await self._shut_down()
        if self._hopeless:
            raise SystemExit(3)

    # ---- processes come ----

    def _spawn(self, slot: Slot) -> WorkerProcess:
        """Start a worker for a slot that has a cell free."""
        slot.cancel_respawn()
        numbers = range(slot.number * CELLS_PER_SLOT, (slot.number + 1) * CELLS_PER_SLOT)
        cell = next(n for n in numbers if self._page.cell(n).state == lib.PL_CELL_FREE)
        limits = self._watchdog.limits(cell)
        process = WorkerProcess(slot, cell, limits, self._heard_ready, self._heard_failure)
        slot.incoming = process
        self._page.claim(cell, slot.worker_id)
        try:
            process.pid = self._launch(process)
        except Exception as exc:  # fds, memory or processes run short for a while
            foreseen = isinstance(exc, OSError)
            log.error("worker %d cannot be started: %s", slot.worker_id, exc, exc_info=not foreseen)
            self._loop.call_soon(self._withdraw, process)
            return process
        self._page.cell(cell).pid = process.pid
        self._processes[process.pid] = process
        return process

    def _launch(self, process: WorkerProcess) -> int:
        slot = process.slot
        with process.open_pipe() as theirs:
            post = Post(
                worker_id=slot.worker_id,
                page=self._page,
                cell=process.cell,
                orders=theirs,
                stack_fd=self._watchdog.stack_fd,
                sockets=tuple(place.sockets(slot.number) for place in self._places),
                shared=tuple(place.shared for place in self._places),
            )
            return self._launcher.launch(post)

    def _heard_ready(self, process: WorkerProcess) -> None:
        slot = process.slot
        if slot.incoming is not process or process.doomed:
            return  # told to leave meanwhile
        log.info("worker %d (pid %d) is ready", slot.worker_id, process.pid)
        process.ready_at = time.monotonic()
        slot.unready_deaths = 0
        old = slot.promote()
        if old is not None:
            old.retire(self._patience)
        self._launcher.started(slot.worker_id)
        process.settle(True)

    def _heard_failure(self, process: WorkerProcess, text: str) -> None:
        """Log a traceback, once."""
        if text not in self._told:
            self._told.append(text)
            log.error("worker %d (pid %d) failed:\n%s", process.slot.worker_id, process.pid, text)

    # ---- processes go ----

    def _reap(self) -> None:
        """Take the status of those of our processes that have ended, and of no others."""
        for pid, process in tuple(self._processes.items()):
            try:
                got, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # a hook took the status of every child
                got, status = pid, 0xFF00
            if got:
                del self._processes[pid]
                process.ended = True
                self._watchdog.forget(pid)
                ending = self._hear_out(process, os.waitstatus_to_exitcode(status))
                process.ending = asyncio.ensure_future(ending)

    async def _hear_out(self, process: WorkerProcess, status: int) -> None:
        """What it had to say may be in the pipe still."""
        await process.hear_out()
        self._ended(process, status)

    def _ended(self, process: WorkerProcess, status: int) -> None:
        self._page.free(process.cell)
        self._page.note_exit(status)
        expected = self._stopping.is_set() or process.doomed
        how = f"signal {-status}" if status < 0 else f"status {status}"
        report = log.info if expected else log.error
        report("worker %d (pid %d) ended with %s", *process.names, how)
        if process.ready_at:
            self._launcher.ended(process.slot.worker_id)
        self._drop(process)

    def _withdraw(self, process: WorkerProcess) -> None:
        """Forget a process that could not be started."""
        process.close_pipe()
        self._page.withdraw(process.cell)
        self._drop(process)

    def _drop(self, process: WorkerProcess) -> None:
        slot = process.slot
        slot.drop(process)
        process.settle(False)
        if self._stopping.is_set():
            self._check_gone()
        elif not slot.removed and slot.current is None and slot.incoming is None:
            self._plan_respawn(slot, process)

    def _plan_respawn(self, slot: Slot, process: WorkerProcess) -> None:
        """At once if it had settled; else later and later, and in the end not at all."""
        if process.pid and not process.ready_at:
            slot.unready_deaths += 1
        if all(s.unready_deaths >= GIVE_UP_AFTER for s in self._slots):
            log.critical("no worker became ready in %d attempts of each: giving up", GIVE_UP_AFTER)
            self._hopeless = True
            self._stopping.set()
            return
        if process.ready_at and time.monotonic() - process.ready_at >= SETTLED_SECONDS:
            slot.backoff = BACKOFF_FIRST
            self._respawn(slot)
        else:
            log.info("worker %d is started again in %.1f s", slot.worker_id, slot.backoff)
            slot.respawn = self._loop.call_later(slot.backoff, self._respawn, slot)
            slot.backoff = min(2 * slot.backoff, BACKOFF_MOST)

    def _respawn(self, slot: Slot) -> None:
        slot.respawn = None
        if not self._stopping.is_set() and slot.incoming is None and slot.current is None:
            self._spawn(slot)

    # ---- stopping ----

    def _stop(self) -> None:
        """SIGTERM or SIGINT; again, and the workers abort, or are killed if they cannot."""
        if self._stopping.is_set():
            for process in self._processes.values():
                process.abort()
            self._loop.call_later(GRACE_SECONDS, self._kill_all)
        else:
            log.info("stopping; asked again, connections are aborted")
        self._stopping.set()

    def _signal_all(self, number: int) -> None:
        for process in self._processes.values():
            process.kill(number)

    def _check_gone(self) -> None:
        if not any(slot.processes for slot in self._slots):
            self._gone.set()

    async def _shut_down(self) -> None:
        """Have every worker stop; kill those that do not."""
        self._stopping.set()
        for slot in self._slots:
            slot.cancel_respawn()
        self._signal_all(signal.SIGTERM)
        for place in self._places:
            place.close()
        self._check_gone()
        late = self._loop.call_later(self._drain_timeout + GRACE_SECONDS, self._kill_all)
        await self._gone.wait()
        late.cancel()

    def _kill_all(self) -> None:
        for process in self._processes.values():
            log.error("worker %d (pid %d) does not stop: killed", *process.names)
        self._signal_all(signal.SIGKILL)

    # ---- looking at them ----

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._watchdog.interval)
            for process in tuple(self._processes.values()):
                try:
                    if why := await self._watchdog.look_at(process):
                        self._recycle_soon(process, why)
                    elif self._reload_waits and process.is_stuck:
                        process.give_up(self._patience)
                except Exception:
                    log.exception("worker %d (pid %d) cannot be looked at", *process.names)

    def _recycle_soon(self, process: WorkerProcess, why: str) -> None:
        log.info("worker %d (pid %d) is replaced: %s", *process.names, why)
        process.recycled = True
        self._jobs.put_nowait(lambda: self._recycle(process))

    # ---- jobs ----

    async def _do_jobs(self) -> None:
        while True:
            job = await self._jobs.get()
            try:
                await job()
            except Exception:
                log.exception("a job of the supervisor failed")

    async def _replace(self, slot: Slot) -> bool:
        """Start a successor; once it is ready the old worker retires. False if it never was."""
        while slot.incoming is not None or len(slot.processes) == CELLS_PER_SLOT:
            await slot.change()
        return await self._spawn(slot).became_ready()

    async def _recycle(self, process: WorkerProcess) -> None:
        slot = process.slot
        if slot.current is process and await self._replace(slot):
            self._page.header.recycled += 1
        else:
            process.recycled = False

    def reload(self) -> None:
        """Replace all workers, one by one; asked during a reload, once more after it.

        A worker that is slow to start does not keep a reload from its turn: it is given up.
        """
        if not self._reload_waits:
            self._reload_waits = True
            self._jobs.put_nowait(self._reload)
        if self._preparing is not None:
            self._preparing.cancel()  # what it prepares is old already

    async def _reload(self) -> None:
        self._reload_waits = False
        self._told.clear()
        log.info("reloading %d workers", len(self._slots))
        if not await self._prepare():
            return
        for slot in tuple(self._slots):
            if not await self._replace(slot):
                log.error("reload: worker %d did not start; the old ones go on", slot.worker_id)
                return
            if slot.leaving is not None:
                await slot.leaving.has_left()  # who comes after "reloaded" meets new code only
        self._page.header.reloads += 1
        log.info("reloaded %d workers", len(self._slots))

    async def _prepare(self) -> bool:
        """Have the launcher get ready, until asked to reload again; false if it is not."""
        self._preparing = preparing = asyncio.ensure_future(self._launcher.prepare(self.adjust))
        try:
            return await preparing
        except asyncio.CancelledError:
            if self._stopping.is_set():
                raise
            return False
        finally:
            self._preparing = None

    def adjust(self, settings: Supervision, drain_timeout: float) -> None:
        """Go by other limits from now on; the number of workers stays."""
        self._settings = replace(settings, workers=self._settings.workers)
        self._watchdog.adjust(self._settings)
        self._patience = 2 * drain_timeout + GRACE_SECONDS
        self._drain_timeout = max(self._drain_timeout, drain_timeout)

    def _add_slot(self) -> None:
        self._jobs.put_nowait(self._do_add_slot)

    async def _do_add_slot(self) -> None:
        number = len(self._slots)
        if number >= self._most:
            log.error("SIGTTIN: there are %d workers already, the most there can be", number)
            return
        try:
            self._add_places()
        except OSError as exc:
            log.error("SIGTTIN: %s", exc)
            return
        slot = Slot(number, BACKOFF_FIRST)
        self._slots.append(slot)
        self._spawn(slot)
        log.info("SIGTTIN: %d workers", len(self._slots))

    def _add_places(self) -> None:
        """Listen for one slot more everywhere, or nowhere."""
        with contextlib.ExitStack() as undo:
            for place in self._places:
                place.add()
                undo.callback(place.remove)
            undo.pop_all()

    def _remove_slot(self) -> None:
        self._jobs.put_nowait(self._do_remove_slot)

    async def _do_remove_slot(self) -> None:
        if len(self._slots) == 1:
            log.error("SIGTTOU: one worker is the least there can be")
            return
        slot = self._slots[-1]
        await run_dry(self._places, self._drain_timeout)
        slot.removed = True
        slot.cancel_respawn()
        for process in slot.processes:
            process.retire(self._patience)
        while slot.processes:
            await slot.change()
        for place in self._places:
            place.remove()
        self._slots.pop()
        log.info("SIGTTOU: %d workers", len(self._slots))
