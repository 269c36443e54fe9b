"""What a supervisor needs to know of the servers that its workers serve."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from pyloop.options import check_count, check_seconds

__all__ = [
    "CELLS_PER_SLOT",
    "WORKERS_MAX",
    "Supervision",
    "cells_for",
    "check_supervision",
    "common_supervision",
    "workers_most",
]

WORKERS_MAX = 1024
CELLS_PER_SLOT = 2
"""A worker and its successor count side by side."""
_SPARE = 64


@dataclass(frozen=True)
class Supervision:
    """How many workers serve, and when one is replaced. A limit of 0 is none."""

    workers: int
    worker_timeout: float
    """Seconds that a loop may go without turning."""
    max_rss: int
    """Bytes of resident memory."""
    max_lifetime: float
    """Seconds."""
    max_messages: int
    """Messages received."""


def check_supervision(
    workers: Any, worker_timeout: Any, max_rss: Any, max_lifetime: Any, max_messages: Any
) -> Supervision:
    """Return the settings. Raises TypeError or ValueError that names the argument."""
    most = 1 << 62
    return Supervision(
        workers=_check_workers(workers),
        worker_timeout=check_seconds("worker_timeout", worker_timeout),
        max_rss=check_count("max_rss", max_rss, most),
        max_lifetime=check_seconds("max_lifetime", max_lifetime),
        max_messages=check_count("max_messages", max_messages, most),
    )


def _check_workers(workers: Any) -> int:
    if workers == "auto":
        return min(_usable_cores(), WORKERS_MAX)
    expected = f'expected 1 to {WORKERS_MAX}, or "auto" for one per core'
    if isinstance(workers, bool) or not isinstance(workers, (int, str)):
        raise TypeError(f"workers: {expected}, got {workers!r}")
    if isinstance(workers, str) or not 1 <= workers <= WORKERS_MAX:
        raise ValueError(f"workers: {expected}, got {workers!r}")
    return workers


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def common_supervision(named: list[tuple[str, Supervision]]) -> Supervision:
    """Return the settings of several servers, which share their workers.

    Raises:
        ValueError: two of them differ; both are named.
    """
    first_name, first = named[0]
    for name, other in named[1:]:
        for field in fields(Supervision):
            mine, theirs = getattr(first, field.name), getattr(other, field.name)
            if mine != theirs:
                raise ValueError(
                    f"run() got servers that differ in {field.name}, but all share the same "
                    f"workers: {first_name} has {mine}, {name} has {theirs}"
                )
    return first


def workers_most(workers: int) -> int:
    """Return how many workers SIGTTIN may make of so many."""
    return min(WORKERS_MAX, workers + _SPARE)


def cells_for(workers_most: int) -> int:
    """Return how many cells so many workers need."""
    return CELLS_PER_SLOT * workers_most
