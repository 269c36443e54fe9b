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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pyloop.core import lib
from pyloop.launch import Launcher
from pyloop.page import Page
from pyloop.process import Slot, WorkerProcess
from pyloop.protocol import log
from pyloop.serving import Signals
from pyloop.slots import Slots
from pyloop.supervision import WORKERS_MAX, Supervision
from pyloop.watchdog import Watchdog
from pyloop.worker import Post

__all__ = ["Supervisor", "cells_for"]

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 10.0
"""Seconds before a slot's worker is started again: doubled with each early death in a row."""
SETTLED_SECONDS = 1.0
"""A worker that was ready for so long is restarted at once."""
GIVE_UP_AFTER = 5
"""Deaths before readiness in a row, in every slot, after which there is no hope."""
GRACE_SECONDS = 5.0
"""Beyond drain_timeout, before a worker that does not leave is killed."""
_CELLS_PER_SLOT = 2
_SLOTS_SPARE = 64


def cells_for(workers: int) -> int:
    """Return how many cells the page of so many workers needs, those that SIGTTIN adds included."""
    return _CELLS_PER_SLOT * min(WORKERS_MAX, workers + _SLOTS_SPARE)


class Supervisor:
    """Workers, kept running until SIGTERM or SIGINT."""

    def __init__(
        self,
        launcher: Launcher,
        places: Sequence[Slots],
        settings: Supervision,
        drain_timeout: float,
        page: Page,
    ) -> None:
        self._launcher = launcher
        self._places = places
        self._settings = settings
        self._drain_timeout = drain_timeout
        self._page = page
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(page, settings)
        self._slots = [Slot(number) for number in range(settings.workers)]
        self._processes: dict[int, WorkerProcess] = {}
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._reload_waits = False
        self._preparing: asyncio.Future[bool] | None = None
        self._told: set[str] = set()  # tracebacks that were logged
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
        numbers = range(slot.number * _CELLS_PER_SLOT, (slot.number + 1) * _CELLS_PER_SLOT)
        cell = next(n for n in numbers if self._page.cell(n).state == lib.PL_CELL_FREE)
        limits = self._watchdog.limits(cell)
        process = WorkerProcess(slot, cell, limits, self._heard_ready, self._heard_failure)
        slot.incoming = process
        theirs = process.open_pipe()
        post = Post(
            worker_id=slot.worker_id,
            page=self._page,
            cell=cell,
            orders=theirs,
            stack_fd=self._watchdog.stack_fd,
            sockets=tuple(place.sockets(slot.number) for place in self._places),
            shared=tuple(place.shared for place in self._places),
        )
        self._page.claim(cell, slot.worker_id)
        try:
            process.pid = self._launcher.launch(post)
        except OSError as exc:
            log.error("worker %d cannot be started: %s", slot.worker_id, exc)
            process.close_pipe()
            self._loop.call_soon(self._ended, process, 1)
            return process
        finally:
            theirs.close()
        self._page.cell(cell).pid = process.pid
        self._processes[process.pid] = process
        return process

    def _heard_ready(self, process: WorkerProcess) -> None:
        slot = process.slot
        if slot.incoming is not process:
            return  # told to leave meanwhile
        log.info("worker %d (pid %d) is ready", slot.worker_id, process.pid)
        process.ready_at = time.monotonic()
        slot.unready_deaths = 0
        old = slot.promote()
        if old is not None:
            old.retire(self._drain_timeout + GRACE_SECONDS)
        self._call_hook(self._launcher.started, slot.worker_id)
        process.settle(True)

    def _heard_failure(self, process: WorkerProcess, text: str) -> None:
        """Log a traceback, once."""
        if text not in self._told:
            self._told.add(text)
            log.error("worker %d (pid %d) failed:\n%s", process.slot.worker_id, process.pid, text)

    def _call_hook(self, hook: Callable[[int], None], worker_id: int) -> None:
        try:
            hook(worker_id)
        except Exception:
            log.exception("a hook of worker %d raised", worker_id)

    # ---- processes go ----

    def _reap(self) -> None:
        """Take the status of those of our processes that have ended, and of no others."""
        for pid, process in tuple(self._processes.items()):
            with contextlib.suppress(ChildProcessError):
                got, status = os.waitpid(pid, os.WNOHANG)
                if got:
                    del self._processes[pid]
                    self._watchdog.forget(pid)
                    ending = self._hear_out(process, os.waitstatus_to_exitcode(status))
                    process.ending = asyncio.ensure_future(ending)

    async def _hear_out(self, process: WorkerProcess, status: int) -> None:
        """What it had to say may be in the pipe still."""
        await process.hear_out()
        self._ended(process, status)

    def _ended(self, process: WorkerProcess, status: int) -> None:
        slot = process.slot
        self._page.free(process.cell)
        self._page.note_exit(status)
        expected = self._stopping.is_set() or process.doomed
        how = f"signal {-status}" if status < 0 else f"status {status}"
        report = log.info if expected else log.error
        report("worker %d (pid %d) ended with %s", slot.worker_id, process.pid, how)
        slot.drop(process)
        if process.ready_at:
            self._call_hook(self._launcher.ended, slot.worker_id)
        process.settle(False)
        if self._stopping.is_set():
            self._check_gone()
        elif not slot.removed and slot.current is None and slot.incoming is None:
            self._plan_respawn(slot, process)

    def _plan_respawn(self, slot: Slot, process: WorkerProcess) -> None:
        """At once if it had settled; else later and later, and in the end not at all."""
        if not process.ready_at:
            slot.unready_deaths += 1
        if all(s.unready_deaths >= GIVE_UP_AFTER for s in self._slots):
            log.critical("no worker became ready in %d attempts of each: giving up", GIVE_UP_AFTER)
            self._hopeless = True
            self._stopping.set()
            return
        settled = process.ready_at and time.monotonic() - process.ready_at >= SETTLED_SECONDS
        slot.early_deaths = 0 if settled else slot.early_deaths + 1
        delay = min(BACKOFF_FIRST * 2 ** (slot.early_deaths - 1), BACKOFF_MOST)
        if settled:
            self._respawn(slot)
        else:
            log.info("worker %d is started again in %.1f s", slot.worker_id, delay)
            slot.respawn = self._loop.call_later(delay, self._respawn, slot)

    def _respawn(self, slot: Slot) -> None:
        slot.respawn = None
        if not self._stopping.is_set() and slot.incoming is None and slot.current is None:
            self._spawn(slot)

    # ---- stopping ----

    def _stop(self) -> None:
        """SIGTERM or SIGINT; again, and the workers abort."""
        if self._stopping.is_set():
            self._signal_all(signal.SIGTERM)
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
        for patience in (self._drain_timeout + GRACE_SECONDS, None):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._gone.wait()
                    return
            for process in self._processes.values():
                log.error("worker %d (pid %d) does not stop: killed", *process.names)
            self._signal_all(signal.SIGKILL)

    # ---- looking at them ----

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._watchdog.interval)
            for process in tuple(self._processes.values()):
                if process.ready_at and self._watchdog.hangs(process.pid, process.cell):
                    await self._end_hanging(process)
                elif process.is_overdue:
                    log.error("worker %d (pid %d) does not leave: killed", *process.names)
                    process.kill(signal.SIGKILL)
                elif process is process.slot.current and not process.recycled:
                    self._recycle_if_over(process)
                elif process.is_slow_to_start(self._settings.worker_timeout or 30.0):
                    log.warning("worker %d (pid %d) is not ready yet: waiting", *process.names)

    async def _end_hanging(self, process: WorkerProcess) -> None:
        stack = await self._watchdog.stack_of(process.pid)
        if process.pid not in self._processes:
            return  # it has ended by itself
        log.error(
            "worker %d (pid %d) has not turned its loop for %g s and is replaced; it hangs in:\n%s",
            *process.names,
            self._settings.worker_timeout,
            stack,
        )
        self._page.header.hung += 1
        self._watchdog.forget(process.pid)
        process.kill(signal.SIGKILL)

    def _recycle_if_over(self, process: WorkerProcess) -> None:
        why = self._watchdog.over(process.limits, process.pid, process.cell)
        if why:
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
        while slot.incoming is not None or len(slot.processes) == _CELLS_PER_SLOT:
            await slot.change()
        return await self._spawn(slot).became_ready()

    async def _recycle(self, process: WorkerProcess) -> None:
        slot = process.slot
        if slot.current is process and await self._replace(slot):
            self._page.header.recycled += 1
        else:
            process.recycled = False

    def reload(self) -> None:
        """Replace all workers, one by one; asked during a reload, once more after it."""
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
        self._drain_timeout = max(self._drain_timeout, drain_timeout)

    def _add_slot(self) -> None:
        self._jobs.put_nowait(self._do_add_slot)

    async def _do_add_slot(self) -> None:
        number = len(self._slots)
        if (number + 1) * _CELLS_PER_SLOT > self._page.header.cells:
            log.error("SIGTTIN: there are %d workers already, the most there can be", number)
            return
        for place in self._places:
            place.add()
        slot = Slot(number)
        self._slots.append(slot)
        self._spawn(slot)
        log.info("SIGTTIN: %d workers", len(self._slots))

    def _remove_slot(self) -> None:
        self._jobs.put_nowait(self._do_remove_slot)

    async def _do_remove_slot(self) -> None:
        if len(self._slots) == 1:
            log.error("SIGTTOU: one worker is the least there can be")
            return
        slot = self._slots[-1]
        for place in self._places:
            await place.run_dry(self._drain_timeout)
        slot.removed = True
        slot.cancel_respawn()
        for process in slot.processes:
            process.retire(self._drain_timeout + GRACE_SECONDS)
        while slot.processes:
            await slot.change()
        for place in self._places:
            place.remove()
        self._slots.pop()
        log.info("SIGTTOU: %d workers", len(self._slots))
