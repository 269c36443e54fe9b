"""The long runs behind tests/test_workers_*.py: `make soak`, PYLOOP_SOAK_SECONDS each."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_workers_leaks import deaths_cost_no_memory
from test_workers_load import kill_workers, reload_workers
from test_workers_slots import add_and_remove_workers
from test_workers_stop import stop_under_load
from workers import Load, rounds

SECONDS = float(os.environ.get("PYLOOP_SOAK_SECONDS", "60"))
pytestmark = pytest.mark.timeout(0)


def report(backend: str, load: Load) -> None:
    print(
        f"\n{backend}: {load.done} conversations with {len(load.served)} processes, "
        f"{len(load.broken)} broken"
    )


def test_soak_of_killed_workers(backend: str) -> None:
    report(backend, kill_workers(backend, kills=5, seconds=SECONDS, pause=1.0))


def test_soak_of_reloads(backend: str) -> None:
    report(backend, reload_workers(backend, reloads=10, seconds=SECONDS))


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_soak_of_workers_that_come_and_go(unix: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "socket") if unix else None
    load = add_and_remove_workers("auto", [path] if path else (), path, seconds=SECONDS)
    report("unix" if unix else "tcp", load)


def test_soak_of_stops_under_load() -> None:
    replies = [
        stop_under_load("auto", lambda program: program.signal(signal.SIGTERM))
        for _ in rounds(3, SECONDS)
    ]
    print(f"\n{len(replies)} stops, {sum(replies)} replies, each of them counted")


def test_soak_of_the_supervisor_s_memory() -> None:
    grown = deaths_cost_no_memory("auto", deaths=200, bound=1 << 20)
    print(f"\n{grown / 1024:+.0f} KiB")
