"""What went on between two snapshots of a page: rates, shares, percentiles; and how to show them.

Cells are compared with themselves, not processes: a cell counts on when its process is replaced.
Nothing is taken for granted of the numbers: they are whatever lay in the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pyloop.stats import PageStats, WorkerStats

__all__ = ["COLUMNS", "HUNG_SECONDS", "Row", "headline", "percentile", "rows", "texts", "total"]

HUNG_SECONDS = 1.0
"""A loop that has not turned for longer is pointed out."""


COLUMNS = (
    ("worker", 7),
    ("pid", 7),
    ("state", 9),
    ("conns", 6),
    ("in/s", 6),
    ("out/s", 6),
    ("B in/s", 6),
    ("B out/s", 7),
    ("busy", 5),
    ("p50", 5),
    ("p99", 5),
    ("restarts", 9),
    ("age", 6),
    ("running", 8),
)
"""Titles, and the width of the widest value, or of the title and a mark."""


@dataclass(frozen=True, slots=True)
class Row:
    """One worker, or all of them, over an interval."""

    connections: int
    messages_in: float
    """Per second, as the next three."""
    messages_out: float
    bytes_in: float
    bytes_out: float
    busy: float
    """Share of the interval that its loop spent between two waits; of all loops, their sum."""
    lag_p50: float | None
    """Seconds: half of the turns were shorter. None without a turn, inf beyond the last bucket."""
    lag_p99: float | None
    restarts: int
    """Processes that had a predecessor."""
    running_seconds: float
    """For how long its loop has not turned; 0 while it waits."""
    worker: str = "total"
    pid: int = 0
    state: str = ""
    age_seconds: float = 0.0


def rows(before: PageStats, after: PageStats, seconds: float) -> list[Row]:
    """Return a Row for each living process, by the worker's number.

    Args:
        seconds: between the two snapshots, above 0.
    """
    numbers = [number for number, cell in enumerate(after.cells) if cell.state != "free"]
    numbers.sort(key=lambda number: (after.cells[number].worker_id, after.cells[number].pid))
    return [_worker_row(before, after, number, seconds) for number in numbers]


def _worker_row(before: PageStats, after: PageStats, number: int, seconds: float) -> Row:
    cell = after.cells[number]
    return replace(
        _row(before.cells[number : number + 1], [cell], seconds),
        worker=str(cell.worker_id),
        pid=cell.pid,
        state=cell.state,
        restarts=_restarts(c for c in after.cells if c.worker_id == cell.worker_id),
        age_seconds=cell.age_seconds,
    )


def total(before: PageStats, after: PageStats, seconds: float) -> Row:
    """Return the sum over all cells, also those whose process has ended."""
    return replace(
        _row(before.cells, after.cells, seconds),
        pid=after.pid,
        state=f"{len(after.workers)} alive",
        age_seconds=after.age_seconds,
    )


def _restarts(cells: Iterable[WorkerStats]) -> int:
    """Return how many processes had a predecessor."""
    started = [cell for cell in cells if cell.starts]
    return sum(cell.starts for cell in started) - len({cell.worker_id for cell in started})


def _row(before: Sequence[WorkerStats], after: Sequence[WorkerStats], seconds: float) -> Row:
    def rate(counter: str) -> float:
        change = _counted(after, counter) - _counted(before, counter)
        return max(0, change) / seconds  # below 0 only in a page that is no server's

    busy = sum(cell.busy_seconds for cell in after) - sum(cell.busy_seconds for cell in before)
    turns = _turns(before, after)
    return Row(
        connections=_counted(after, "open"),
        messages_in=rate("messages_in"),
        messages_out=rate("messages_out"),
        bytes_in=rate("bytes_in"),
        bytes_out=rate("bytes_out"),
        busy=max(0.0, busy) / seconds,
        lag_p50=percentile(turns, 0.5),
        lag_p99=percentile(turns, 0.99),
        restarts=_restarts(after),
        running_seconds=max((cell.running_seconds for cell in after), default=0.0),
    )


def _counted(cells: Iterable[WorkerStats], counter: str) -> int:
    return sum(getattr(server, counter) for cell in cells for server in cell.servers)


def _turns(before: Sequence[WorkerStats], after: Sequence[WorkerStats]) -> list[int]:
    """Return the turns of the interval, by their length."""
    new = [sum(column) for column in zip(*(cell.lag for cell in after), strict=True)]
    old = [sum(column) for column in zip(*(cell.lag for cell in before), strict=True)]
    return [max(0, a - b) for a, b in zip(new, old or [0] * len(new), strict=True)]


def percentile(lag: Sequence[int], share: float) -> float | None:
    """Return the seconds that `share` of the turns stayed below.

    Args:
        lag: as LoopStats.lag.

    Returns:
        A bucket's upper end: 2**i microseconds, inf for the last one; None without a turn.
    """
    turns = sum(lag)
    reached = 0
    for number, count in enumerate(lag):
        reached += count
        if count and reached >= share * turns:
            return math.inf if number == len(lag) - 1 else 2**number / 1e6
    return None


# ---- for people ----


def headline(stats: PageStats) -> str:
    """Say in one line whose counters these are."""
    ended = stats.processes
    parts = [
        f"pyloop {printable(stats.label) or '(no address)'}",
        f"pid {stats.pid}",
        f"up {show_seconds(stats.age_seconds)}",
        f"{ended.started} started, {ended.failed} failed, {ended.killed} killed, {ended.hung} hung",
        f"{ended.reloads} reload{'' if ended.reloads == 1 else 's'}",
    ]
    return ", ".join(parts)


def texts(row: Row) -> list[str]:
    """Return what to show of a row, in the order of COLUMNS."""
    hung = row.running_seconds > HUNG_SECONDS
    return [
        row.worker,
        str(row.pid),
        row.state,
        show_count(row.connections),
        show_count(row.messages_in),
        show_count(row.messages_out),
        show_count(row.bytes_in),
        show_count(row.bytes_out),
        f"{min(row.busy, 99.99):.0%}",
        show_lag(row.lag_p50),
        show_lag(row.lag_p99),
        show_count(row.restarts),
        show_seconds(row.age_seconds),
        show_seconds(row.running_seconds) if hung else "-",
    ]


def printable(text: str) -> str:
    """Return one line of text that plays no tricks on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show_count(number: float) -> str:
    """Return a count or a rate in at most 6 characters, "12.3k" say."""
    if number < 9999.5:
        return f"{number:.0f}"
    for unit in "kMGTPE":
        number /= 1000
        if number < 999.95:
            return f"{number:.1f}{unit}"
    return "huge"


def show_lag(seconds: float | None) -> str:
    """Return the upper end of a lag bucket."""
    if seconds is None:
        return "-"
    if seconds == math.inf:
        return "long"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1e3:.0f}ms" if seconds < 1 else f"{seconds:.0f}s"


def show_seconds(seconds: float) -> str:
    """Return a duration in at most 6 characters."""
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 100:
        return f"{minutes:.0f}m"
    return f"{hours:.0f}h" if hours < 100 else f"{days:.0f}d"
