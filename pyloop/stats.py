"""Counters of servers and loops, as frozen snapshots. Later releases only add fields."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyloop.core import lib
from pyloop.page import Page

__all__ = [
    "Counters",
    "LoopStats",
    "PageStats",
    "ProcessStats",
    "ServerStats",
    "WorkerStats",
    "copy_counters",
    "loop_stats",
    "page_server_stats",
    "page_stats",
    "resident_bytes",
    "server_stats",
]


@dataclass(frozen=True, slots=True)
class Counters:
    """What was done for one server, in one process or in all of them. Counts, and bytes.

    Source: struct pl_counters in csrc/pyloop_page.h.
    """

    accepted: int
    """Connections accepted."""
    open: int
    """Connections open now."""
    refused: int
    """Connections closed at once: their fd did not fit (select) or could not be watched, or there
    was no thread or process for them."""
    accept_pauses: int
    """Times accepting rested because fds or memory ran short."""
    messages_in: int
    messages_out: int
    bytes_in: int
    """Bytes received from the kernel."""
    bytes_out: int
    """Bytes the kernel took."""
    framing_errors: int
    timeouts: int
    write_limit_aborts: int
    aborts: int
    """Connections aborted, for whatever reason."""
    dropped: int
    """Sends to a connection that was already closing."""


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """What became of the processes of one run: its workers, or the children of model="fork".

    Source: struct pl_page in csrc/pyloop_page.h.
    """

    started: int
    exited: int
    """Ended with status 0."""
    failed: int
    """Ended with another status."""
    killed: int
    """Ended by a signal."""
    hung: int
    """Killed because their loop did not turn for worker_timeout."""
    recycled: int
    """Replaced at max_rss, max_lifetime or max_messages."""
    reloads: int
    """Reloads completed."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One process that serves, and what its cell of the page has counted, predecessors included.

    Source: struct pl_cell and struct pl_loop_counters in csrc/pyloop_page.h.
    """

    worker_id: int
    pid: int
    state: str
    """"starting", "ready" or "leaving"; "free" when the process has ended."""
    starts: int
    """Processes that have counted here."""
    age_seconds: float
    running_seconds: float
    """Since its loop last left the wait; 0 while it waits."""
    ticks: int
    events: int
    wait_seconds: float
    busy_seconds: float
    wakes: int
    lag: tuple[int, ...]
    """As LoopStats.lag."""
    servers: tuple[Counters, ...]
    callbacks: int
    bytes_in: int
    bytes_out: int
    waits: int
    accepts: int
    receives: int
    sends: int
    watches: int


@dataclass(frozen=True, slots=True)
class ServerStats(Counters):
    """What one server has done since it was made, in all processes that serve it."""

    ticks: int
    """Turns of their loops; in one process 0 while it does not serve, like the two below."""
    busy_seconds: float
    """Time that their loops spent between two waits."""
    lag: tuple[int, ...]
    """As LoopStats.lag, of all their loops."""
    processes: ProcessStats
    workers: tuple[WorkerStats, ...]
    """The processes that serve now; empty unless `run` serves."""


@dataclass(frozen=True, slots=True)
class LoopStats:
    """What one loop has done since it was made."""

    backend: str
    ticks: int
    """Turns of the loop: calls of the core."""
    events: int
    """Events that the core returned."""
    wait_seconds: float
    """Time spent waiting in the kernel interface."""
    busy_seconds: float
    """Time spent between two waits."""
    wakes: int
    """Waits ended by another thread."""
    lag: tuple[int, ...]
    """[i]: turns that kept the loop busy for less than 2**i microseconds and not for less than
    2**(i-1); the last one has all the longer ones too. Whoever became ready meanwhile waited."""
    callbacks: int
    """Callbacks that were due: of call_soon, of timers, of watched fds and tasks."""
    bytes_in: int
    """Bytes that the core received for connections."""
    bytes_out: int
    """Bytes of connections that the kernel took."""
    waits: int
    """System calls of the core, like the four below: pselect, ppoll, epoll_wait."""
    accepts: int
    receives: int
    sends: int
    watches: int
    """Changes of interest, each an epoll_ctl; none on select and poll."""


@dataclass(frozen=True, slots=True)
class PageStats:
    """A snapshot of a page: everything that one run has counted."""

    label: str
    pid: int
    age_seconds: float
    processes: ProcessStats
    workers: tuple[WorkerStats, ...]
    """The cells whose process lives."""
    cells: tuple[WorkerStats, ...]
    """All cells that were ever in use, by number."""
    servers: tuple[Counters, ...]
    """Sums over all cells, those of ended processes included."""
    ticks: int
    events: int
    wait_seconds: float
    busy_seconds: float
    wakes: int
    lag: tuple[int, ...]
    callbacks: int
    bytes_in: int
    bytes_out: int
    waits: int
    accepts: int
    receives: int
    sends: int
    watches: int


_STATES = {
    lib.PL_CELL_FREE: "free",
    lib.PL_CELL_STARTING: "starting",
    lib.PL_CELL_READY: "ready",
    lib.PL_CELL_LEAVING: "leaving",
}
_COUNTERS = tuple(Counters.__dataclass_fields__)
_LOOP_COUNTS = (
    *("callbacks", "bytes_in", "bytes_out"),
    *("waits", "accepts", "receives", "sends", "watches"),
)
_PROCESSES = tuple(ProcessStats.__dataclass_fields__)
NO_PROCESSES = ProcessStats(*(0 for _ in _PROCESSES))


def counters_sum(pointers: Iterable[Any]) -> Counters:
    """Copy and add up structs pl_counters."""
    every = tuple(pointers)
    return Counters(*(sum(getattr(p, name) for p in every) for name in _COUNTERS))


def copy_counters(counters: Counters, pointer: Any) -> None:
    """Write counts, but not the gauge, into a struct pl_counters."""
    for name in _COUNTERS:
        setattr(pointer, name, getattr(counters, name))
    pointer.open = 0


def loop_sum(pointers: Iterable[Any]) -> dict[str, Any]:
    """Copy and add up structs pl_loop_counters: the fields that LoopStats and its kin share."""
    every = tuple(pointers)
    lags = [tuple(p.lag) for p in every]
    return {
        "ticks": sum(p.ticks for p in every),
        "events": sum(p.events for p in every),
        "wait_seconds": sum(p.wait_ns for p in every) / 1e9,
        "busy_seconds": sum(p.busy_ns for p in every) / 1e9,
        "wakes": sum(p.wakes for p in every),
        "lag": tuple(map(sum, zip(*lags, strict=True))) if lags else (0,) * lib.PL_LAG_BUCKETS,
        **{name: sum(getattr(p, name) for p in every) for name in _LOOP_COUNTS},
    }


def loop_stats(backend: str, counters: Any, ran: int) -> LoopStats:
    """Copy a struct pl_loop_counters, which does not know of the callbacks that `ran` last."""
    shared = loop_sum([counters])
    shared["callbacks"] += ran
    return LoopStats(backend=backend, **shared)


def server_stats(counters: Any, loops: Iterable[Any]) -> ServerStats:
    """Return the stats of a server that counts in this process only."""
    return _of_server(counters_sum([counters]), loop_sum(loops), NO_PROCESSES, ())


def _of_server(
    counters: Counters,
    loop: dict[str, Any],
    processes: ProcessStats,
    workers: tuple[WorkerStats, ...],
) -> ServerStats:
    return ServerStats(
        **{name: getattr(counters, name) for name in _COUNTERS},
        ticks=loop["ticks"],
        busy_seconds=loop["busy_seconds"],
        lag=loop["lag"],
        processes=processes,
        workers=workers,
    )


def page_server_stats(page: Page, server: int) -> ServerStats:
    """Return the stats of a server, number `server` in the page: the sum over all cells."""
    return _of_server(
        counters_sum(page.counters(number, server) for number in page.used()),
        loop_sum(page.cell(number).loop for number in page.used()),
        _processes(page),
        _living(_cells(page)),
    )


def page_stats(page: Page) -> PageStats:
    """Return all that a page has counted."""
    cells = _cells(page)
    return PageStats(
        label=page.label,
        pid=page.header.pid,
        age_seconds=_age(page.header.since_ns),
        processes=_processes(page),
        workers=_living(cells),
        cells=cells,
        servers=tuple(
            counters_sum(page.counters(number, server) for number in page.used())
            for server in range(page.servers)
        ),
        **loop_sum(page.cell(number).loop for number in page.used()),
    )


def _processes(page: Page) -> ProcessStats:
    return ProcessStats(*(getattr(page.header, name) for name in _PROCESSES))


def _cells(page: Page) -> tuple[WorkerStats, ...]:
    return tuple(_worker(page, number) for number in page.used())


def _living(cells: Iterable[WorkerStats]) -> tuple[WorkerStats, ...]:
    living = [cell for cell in cells if cell.state != "free"]
    return tuple(sorted(living, key=lambda w: (w.worker_id, w.pid)))


def _age(since_ns: int) -> float:
    return max(0, time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0


def _worker(page: Page, number: int) -> WorkerStats:
    cell = page.cell(number)
    return WorkerStats(
        worker_id=cell.worker,
        pid=cell.pid,
        state=_STATES.get(cell.state, str(cell.state)),
        starts=cell.starts,
        age_seconds=_age(cell.since_ns),
        running_seconds=_age(cell.loop.running_since),
        servers=tuple(
            counters_sum([page.counters(number, server)]) for server in range(page.servers)
        ),
        **loop_sum([cell.loop]),
    )


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it has ended, or where nobody tells.

    Source: proc(5), statm.
    """
    if pid <= 0:
        return 0
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read(128).split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0
