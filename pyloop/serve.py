"""python -m pyloop serve: a supervisor that imports nothing of the user's.

    supervisor --fork, exec--> describer: imports the module, says what the servers are, ends
               --fork, exec--> worker 1 .. N: import the module and serve
               --fork, exec--> watcher (--reload): sends SIGHUP when a file changes

So SIGHUP serves new code: all but the supervisor are interpreters that have just started. It is
one thread with one loop, as every supervisor: names are resolved, and children waited for, without.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyloop.application import Application, ApplicationError, Description
from pyloop.bus import Bus
from pyloop.client import adopt
from pyloop.framing import Lines
from pyloop.fresh import DESCRIBED, start_describer, start_watcher, start_worker
from pyloop.loop import new_event_loop, running_loop
from pyloop.metrics import serve_metrics
from pyloop.page import Page
from pyloop.protocol import Protocol, log
from pyloop.serving import Signals
from pyloop.slots import Slots, listen
from pyloop.supervision import Supervision, cells_for, workers_most
from pyloop.supervisor import Supervisor
from pyloop.worker import FAILED, Post

__all__ = ["serve"]

_REPORT_BYTES = 1 << 20
_EXIT_SECONDS = 5.0
"""How long a describer may take to end once it has said all."""
_LOOK_SECONDS = 0.01
_SLOW_SECONDS = 30.0


def serve(
    application: Application, *, reload: bool = False, log_level: str = "info", pid_file: str = ""
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ApplicationError: the servers cannot be loaded.
        OSError: an address cannot be listened on, or the pid file not be written.
        SystemExit: 3, when no worker could start.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(application, reload, log_level, pid_file))


async def _serve(application: Application, reload: bool, log_level: str, pid_file: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    changed = asyncio.Event()

    def stop() -> None:
        task.cancel()

    with contextlib.ExitStack() as stack:
        # Until the supervisor has its own, and between the two: default actions would end us.
        stack.enter_context(Signals(stop, signal.SIGTERM, signal.SIGINT))
        stack.enter_context(Signals(changed.set, signal.SIGHUP))
        stack.enter_context(Signals(lambda: None, signal.SIGTTIN, signal.SIGTTOU))
        if reload:
            stack.enter_context(_watching(application.app_dir, log_level))
        try:
            description = await _first_description(application, changed if reload else None)
            await _supervise(application, description, log_level, pid_file, changed)
        except asyncio.CancelledError:
            pass  # told to stop before all had started
    log.info("stopped")


async def _supervise(
    application: Application,
    description: Description,
    log_level: str,
    pid_file: str,
    changed: asyncio.Event,
) -> None:
    settings = description.settings
    places = [Slots(place) for place in description.places]
    children = description.children
    most = 1 if children else workers_most(settings.workers)
    page = Page(cells_for(most) + 2 * children, len(places))  # those of a predecessor go on
    async with (
        listen(places, settings.workers, page),
        serve_metrics(description.metrics, page),
    ):
        log.info("listening on %s, with %d workers", page.label, settings.workers)
        log.info(
            "Ctrl-C or SIGTERM to %d stops, SIGHUP reloads, SIGTTIN adds a worker, "
            "SIGTTOU removes one",
            os.getpid(),
        )
        if description.unheard:
            names = ", ".join(description.unheard)
            log.warning("%s: not called, since this process does not import your module", names)
        buses = {url: Bus(url) for url in description.buses if url and url.startswith("shm:")}
        launcher = ExecLauncher(application, description, buses, log_level)
        timeout = description.drain_timeout
        supervisor = Supervisor(launcher, places, settings, timeout, page, most)
        if changed.is_set():
            supervisor.reload()
        with _pid_file(pid_file):
            await supervisor.run()


@contextlib.contextmanager
def _pid_file(path: str) -> Iterator[None]:
    """Have a file with our pid in this block."""
    if not path:
        yield
        return
    mine = f"{os.getpid()}\n"
    with open(path, "w") as file:
        file.write(mine)
    try:
        yield
    finally:
        with contextlib.suppress(OSError), open(path) as file:
            if file.read() == mine:
                os.unlink(path)


@contextlib.contextmanager
def _watching(directory: str, log_level: str) -> Iterator[None]:
    """Have a watcher in this block."""
    pid = start_watcher(os.path.abspath(directory), log_level)
    try:
        yield
    finally:
        _kill(pid)


def _kill(pid: int) -> None:
    """End a child of ours that has not been reaped."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---- describing ----


class _Report(Protocol):
    """The line that a describer says, or b"" if it ended without."""

    def __init__(self) -> None:
        self.line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def message_received(self, message: bytes) -> None:
        if not self.line.done():
            self.line.set_result(message)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.message_received(b"")


async def _first_description(
    application: Application, changed: asyncio.Event | None
) -> Description:
    """Describe the servers; with `changed`, wait for it and try again until they can be loaded."""
    while True:
        if changed is not None:
            changed.clear()
        try:
            return await _ask(application)
        except ApplicationError as exc:
            if changed is None:
                raise
            log.error("%s", exc)
            log.info("waiting for a change")
            await changed.wait()


async def _ask(application: Application) -> Description:
    """Have a new interpreter describe the servers.

    Raises:
        ApplicationError: they cannot be loaded.
        OSError: no interpreter can be started.
    """
    log.info("loading %s", application.target)
    loop, report, status = running_loop("serve"), _Report(), None
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            undo.callback(adopt(loop, ours, Lines(max_size=_REPORT_BYTES), report).abort)
            pid = start_describer(application, theirs)
        slow = loop.call_later(_SLOW_SECONDS, log.warning, "it is not loaded yet: waiting")
        undo.callback(slow.cancel)
        try:
            line = await report.line
            status = await _status_of(pid)
        finally:
            if status is None:
                _kill(pid)
    return _understand(application, line, status)


async def _status_of(pid: int) -> int | None:
    """Return the exit status of a child that is about to end; None if it takes too long."""
    end = time.monotonic() + _EXIT_SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        await asyncio.sleep(_LOOK_SECONDS)
    return None


def _understand(application: Application, line: bytes, status: int | None) -> Description:
    answer: dict[str, Any] = json.loads(line) if line else {}
    if DESCRIBED in answer:
        return Description.from_json(answer[DESCRIBED])
    how = f"signal {-status}" if status and status < 0 else f"status {status}"
    silent = f"cannot serve {application.target}: the interpreter that imported it ended with {how}"
    raise ApplicationError(answer.get(FAILED, silent))


# ---- workers ----


class ExecLauncher:
    """Workers that are fresh interpreters, which import the module as it is then."""

    def __init__(
        self,
        application: Application,
        served: Description,
        buses: Mapping[str, Bus],
        log_level: str,
    ) -> None:
        self._application, self._served = application, served
        self._buses, self._log_level = buses, log_level

    def launch(self, post: Post) -> int:
        return start_worker(self._application, post, self._buses, self._log_level)

    async def prepare(self, adjust: Callable[[Supervision, float], None]) -> bool:
        """See whether the module can be loaded, and what has changed."""
        try:
            new = await _ask(self._application)
        except (ApplicationError, OSError) as exc:
            log.error("reload: the old workers go on: %s", exc)
            return False
        if len(new.places) != len(self._served.places):
            log.error(
                "reload: the old workers go on: %d servers instead of %d need a restart",
                len(new.places),
                len(self._served.places),
            )
            return False
        if new.children > self._served.children:
            log.error(
                "reload: the old workers go on: max_connections=%d of model fork, more than %d, "
                "needs a restart",
                new.children,
                self._served.children,
            )
            return False
        if new.buses != self._served.buses:
            log.error("reload: the old workers go on: another bus needs a restart")
            return False
        self._tell_changes(new)
        adjust(new.settings, new.drain_timeout)
        return True

    def _tell_changes(self, new: Description) -> None:
        for was, now in zip(self._served.places, new.places, strict=True):
            if was != now:
                log.warning(
                    "reload: to listen on %s (backlog %d) needs a restart: it is still %s (%d)",
                    now,
                    now.backlog,
                    was,
                    was.backlog,
                )
        if new.metrics != self._served.metrics:
            log.warning("reload: another address for metrics needs a restart")
        was_workers, workers = self._served.settings.workers, new.settings.workers
        if was_workers != workers:
            log.warning("reload: workers=%d instead of %d needs a restart", workers, was_workers)

    def started(self, worker_id: int) -> None:
        """The hooks for this are in the module, which is not imported here."""

    def ended(self, worker_id: int) -> None:
        """The same."""
