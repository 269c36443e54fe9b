"""Counters of servers and loops, as frozen snapshots. Later releases only add fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LoopStats", "ServerStats", "loop_stats", "server_stats"]


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What one server has done since it was made. Counts, and bytes where it says so.

    Source: struct pl_counters in csrc/pyloop.h.
    """

    accepted: int
    """Connections accepted."""
    open: int
    """Connections open now."""
    refused: int
    """Connections closed at once because their fd did not fit (select) or could not be watched."""
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


_SERVER_FIELDS = tuple(ServerStats.__dataclass_fields__)


def server_stats(counters: Any) -> ServerStats:
    """Copy a struct pl_counters."""
    return ServerStats(*(getattr(counters, name) for name in _SERVER_FIELDS))


def loop_stats(backend: str, counters: Any) -> LoopStats:
    """Copy the loop's part of a struct pl_counters."""
    return LoopStats(
        backend=backend,
        ticks=counters.ticks,
        events=counters.events,
        wait_seconds=counters.wait_ns / 1e9,
        busy_seconds=counters.busy_ns / 1e9,
        wakes=counters.wakes,
    )
