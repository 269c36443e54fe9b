"""A page as Prometheus sees it: metric families with a label for each worker.

A worker has several cells, for it counts in one while its successor starts in another. What is
exposed is the sum of all that ever were its own, so no counter goes down when it is replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate

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
    ("loop_callbacks", "callbacks", "Callbacks that were due."),
)
# the same, of ProcessStats
_PROCESS_COUNTERS = (
    ("process_starts", "started", "Processes started."),
    ("process_hangs", "hung", "Processes killed because their loop did not turn."),
    ("process_recycles", "recycled", "Processes replaced at a limit of memory, age or messages."),
    ("reloads", "reloads", "Reloads completed."),
)
_ENDS = ("exited", "failed", "killed")
# label of pyloop_loop_system_calls_total: field of WorkerStats
_SYSTEM_CALLS = {
    "wait": "waits",
    "accept": "accepts",
    "receive": "receives",
    "send": "sends",
    "watch": "watches",
}


_Workers = Sequence[tuple[str, list[WorkerStats]]]
"""The cells of each worker, those of ended processes included."""


class Exposition(Collector):
    """Renders a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type, in the format that an Accept field asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Look at the page, and yield a family for each counter."""
        stats = page_stats(self._page)
        workers, servers = _workers(stats), len(stats.servers)
        yield from _about_run(stats)
        yield from _gauges(workers, servers)
        yield from _server_counters(workers, servers)
        for name, field, meaning in _WORKER_COUNTERS:
            family = CounterMetricFamily(f"pyloop_{name}", meaning, labels=["worker"])
            for worker, cells in workers:
                family.add_metric([worker], sum(getattr(cell, field) for cell in cells))
            yield family
        yield _system_calls(workers)
        yield _turns(workers)


def _workers(stats: PageStats) -> _Workers:
    cells = defaultdict(list)
    for cell in stats.cells:
        if cell.starts:  # else it is nobody's yet
            cells[cell.worker_id].append(cell)
    return [(str(worker), cells[worker]) for worker in sorted(cells)]


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


def _gauges(workers: _Workers, servers: int) -> Iterator[Metric]:
    """Yield what is so now; a worker without a process has zeroes."""
    up = GaugeMetricFamily("pyloop_worker_up", "1 while it accepts.", labels=["worker"])
    running = GaugeMetricFamily(
        "pyloop_loop_running_seconds", "Since the loop last waited.", labels=["worker"]
    )
    memory = GaugeMetricFamily(
        "pyloop_worker_resident_memory_bytes", "Resident memory.", labels=["worker"]
    )
    connections = GaugeMetricFamily(
        "pyloop_connections_open", "Connections open now.", labels=_labels(servers)
    )
    for worker, cells in workers:
        up.add_metric([worker], int(any(cell.state == "ready" for cell in cells)))
        running.add_metric([worker], max(cell.running_seconds for cell in cells))
        memory.add_metric([worker], sum(resident_bytes(cell.pid) for cell in cells))
        for server in range(servers):
            value = sum(cell.servers[server].open for cell in cells)
            connections.add_metric(_values(servers, worker, server), value)
    yield from (up, running, memory, connections)


def _server_counters(workers: _Workers, servers: int) -> Iterator[Metric]:
    for name, field, meaning in _SERVER_COUNTERS:
        family = CounterMetricFamily(f"pyloop_{name}", meaning, labels=_labels(servers))
        for worker, cells in workers:
            for server in range(servers):
                value = sum(getattr(cell.servers[server], field) for cell in cells)
                family.add_metric(_values(servers, worker, server), value)
        yield family


def _system_calls(workers: _Workers) -> Metric:
    family = CounterMetricFamily(
        "pyloop_loop_system_calls",
        "System calls of the loop, by what they are for.",
        labels=["worker", "call"],
    )
    for worker, cells in workers:
        for call, field in _SYSTEM_CALLS.items():
            family.add_metric([worker, call], sum(getattr(cell, field) for cell in cells))
    return family


def _turns(workers: _Workers) -> Metric:
    family = HistogramMetricFamily(
        "pyloop_loop_turn_seconds", "How long turns kept the loop busy.", labels=["worker"]
    )
    for worker, cells in workers:
        lag = [sum(column) for column in zip(*(cell.lag for cell in cells), strict=True)]
        ends = [str(2**number / 1e6) for number in range(len(lag) - 1)] + ["+Inf"]
        buckets = list(zip(ends, accumulate(lag), strict=True))
        family.add_metric([worker], buckets, sum(cell.busy_seconds for cell in cells))
    return family
