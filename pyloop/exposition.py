"""A page as Prometheus sees it: metric families with a label for each worker.

Cells change hands: a worker's successor may count in another cell, and its own be given to another
worker. So that no counter ever goes down, what each cell has gained since the last look is added to
the worker that has the cell now.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pyloop.page import Page
from pyloop.stats import PageStats, WorkerStats, page_stats, resident_bytes

__all__ = ["Exposition"]

# name without "pyloop_" and "_total", field of Counters, meaning
_SERVER_COUNTERS = (
    ("connections_accepted", "accepted", "Connections accepted."),
    ("connections_refused", "refused", "Connections closed at once for want of an fd."),
    ("connections_aborted", "aborts", "Connections aborted, for whatever reason."),
    (
        "accept_pauses",
        "accept_pauses",
        "Times that accepting rested because fds or memory ran short.",
    ),
    ("messages_received", "messages_in", "Messages cut out of what was received."),
    ("messages_sent", "messages_out", "Messages and writes queued."),
    ("messages_dropped", "dropped", "Sends to a connection that was already closing."),
    ("received_bytes", "bytes_in", "Bytes received from the kernel."),
    ("sent_bytes", "bytes_out", "Bytes that the kernel took."),
    ("framing_errors", "framing_errors", "Connections closed for a bad message."),
    ("timeouts", "timeouts", "Connections closed for idleness or a slow message."),
    ("write_limit_aborts", "write_limit_aborts", "Connections aborted for unread output."),
)
# the same, of WorkerStats
_WORKER_COUNTERS = (
    ("worker_starts", "starts", "Processes that were started for this worker."),
    ("loop_turns", "ticks", "Turns of the loop."),
    ("loop_events", "events", "Events that the core returned."),
    ("loop_wait_seconds", "wait_seconds", "Time that the loop waited in the kernel."),
    ("loop_busy_seconds", "busy_seconds", "Time that the loop spent between two waits."),
    ("loop_wakes", "wakes", "Waits that another thread ended."),
)
# the same, of ProcessStats
_PROCESS_COUNTERS = (
    ("process_starts", "started", "Processes started."),
    ("process_hangs", "hung", "Processes killed because their loop did not turn."),
    ("process_recycles", "recycled", "Processes replaced at a limit of memory, age or messages."),
    ("reloads", "reloads", "Reloads completed."),
)
_ENDS = ("exited", "failed", "killed")


class Exposition(Collector):
    """Renders a page; one object for the page's whole life, for it remembers."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._last: dict[int, dict[Hashable, float]] = {}
        self._workers: defaultdict[int, Counter[Hashable]] = defaultdict(Counter)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type, in the format that an Accept field asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Look at the page, and yield a family for each counter."""
        stats = page_stats(self._page)
        self._gain(stats)
        yield from _about_run(stats)
        yield from _gauges(stats, self._workers)
        yield from self._server_counters(len(stats.servers))
        for name, field, meaning in _WORKER_COUNTERS:
            family = CounterMetricFamily(f"pyloop_{name}", meaning, labels=["worker"])
            for worker, counted in self._ordered():
                family.add_metric([worker], counted[field])
            yield family
        yield self._turns()

    def _gain(self, stats: PageStats) -> None:
        """Credit each worker with what its cells have counted since the last look."""
        for number, cell in enumerate(stats.cells):
            now, before = _flat(cell), self._last.get(number, {})
            gained = {key: max(0, value - before.get(key, 0)) for key, value in now.items()}
            self._workers[cell.worker_id].update(gained)
            self._last[number] = now

    def _ordered(self) -> list[tuple[str, Counter[Hashable]]]:
        return [(str(worker), counted) for worker, counted in sorted(self._workers.items())]

    def _server_counters(self, servers: int) -> Iterator[Metric]:
        for name, field, meaning in _SERVER_COUNTERS:
            family = CounterMetricFamily(f"pyloop_{name}", meaning, labels=_labels(servers))
            for worker, counted in self._ordered():
                for server in range(servers):
                    family.add_metric(_values(servers, worker, server), counted[server, field])
            yield family

    def _turns(self) -> Metric:
        family = HistogramMetricFamily(
            "pyloop_loop_turn_seconds", "How long turns kept the loop busy.", labels=["worker"]
        )
        for worker, counted in self._ordered():
            lag = [counted[key] for key in counted if isinstance(key, tuple) and key[0] == "lag"]
            ends = [str(2**number / 1e6) for number in range(len(lag) - 1)] + ["+Inf"]
            buckets = list(zip(ends, accumulate(lag), strict=True))
            family.add_metric([worker], buckets, counted["busy_seconds"])
        return family


def _flat(cell: WorkerStats) -> dict[Hashable, float]:
    """Return all that a cell has counted."""
    flat: dict[Hashable, Any] = {field: getattr(cell, field) for _, field, _ in _WORKER_COUNTERS}
    flat |= {("lag", number): count for number, count in enumerate(cell.lag)}
    for server, counters in enumerate(cell.servers):
        flat |= {(server, field): getattr(counters, field) for _, field, _ in _SERVER_COUNTERS}
    return flat


def _labels(servers: int) -> list[str]:
    return ["worker", "server"] if servers > 1 else ["worker"]


def _values(servers: int, worker: str, server: int) -> list[str]:
    return [worker, str(server)] if servers > 1 else [worker]


def _about_run(stats: PageStats) -> Iterator[Metric]:
    """Yield what concerns all processes together."""
    info = GaugeMetricFamily("pyloop_info", "Who serves what.", labels=["version", "serves"])
    info.add_metric([version("pyloop-io"), stats.label], 1)
    yield info
    yield GaugeMetricFamily(
        "pyloop_age_seconds", "Since the counters began.", value=stats.age_seconds
    )
    for name, field, meaning in _PROCESS_COUNTERS:
        value = getattr(stats.processes, field)
        yield CounterMetricFamily(f"pyloop_{name}", meaning, value=value)
    ends = CounterMetricFamily("pyloop_process_ends", "Processes that ended.", labels=["how"])
    for how in _ENDS:
        ends.add_metric([how], getattr(stats.processes, how))
    yield ends


def _gauges(stats: PageStats, workers: dict[int, Counter[Hashable]]) -> Iterator[Metric]:
    """Yield what is so now; a worker without a process has zeroes."""
    up = GaugeMetricFamily("pyloop_worker_up", "1 while it accepts.", labels=["worker"])
    running = GaugeMetricFamily(
        "pyloop_loop_running_seconds", "Since the loop last waited.", labels=["worker"]
    )
    memory = GaugeMetricFamily(
        "pyloop_worker_resident_memory_bytes", "Resident memory.", labels=["worker"]
    )
    servers = len(stats.servers)
    connections = GaugeMetricFamily(
        "pyloop_connections_open", "Connections open now.", labels=_labels(servers)
    )
    for worker in sorted(workers):
        mine = [cell for cell in stats.workers if cell.worker_id == worker]
        name = str(worker)
        up.add_metric([name], int(any(cell.state == "ready" for cell in mine)))
        running.add_metric([name], max((cell.running_seconds for cell in mine), default=0))
        memory.add_metric([name], sum(resident_bytes(cell.pid) for cell in mine))
        for server in range(servers):
            value = sum(cell.servers[server].open for cell in mine)
            connections.add_metric(_values(servers, name, server), value)
    yield from (up, running, memory, connections)
