"""The long run behind tests/test_leaks.py and tests/test_asyncio_leaks.py, on each backend.

`make soak`, not part of `make test`. After 20,000 connections to warm up, 180,000 more
(PYLOOP_SOAK_COUNT), and as many as PYLOOP_SOAK_SECONDS allows, leave the fds exactly where they
were and the resident memory within 1 MiB. Python's garbage collector is off in the server: what
goes, goes by reference counts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults import compile_load
from test_asyncio_leaks import churn_leaves_nothing as asyncio_churn_leaves_nothing
from test_leaks import churn_leaves_nothing

WARM_UP = 20_000
COUNT = int(os.environ.get("PYLOOP_SOAK_COUNT", "180000"))
SECONDS = float(os.environ.get("PYLOOP_SOAK_SECONDS", "0"))
BOUND = 1 << 20


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.mark.timeout(0)
def test_soak_leaves_no_fd_and_no_memory(load: Path, backend: str) -> None:
    told = churn_leaves_nothing(load, backend, WARM_UP, COUNT, BOUND, SECONDS)
    print(
        f"\n{backend}: {told['connections']} connections in {told['seconds']:.1f} s, "
        f"RSS {told['rss'] / 1024:.0f} KiB {told['grown'] / 1024:+.0f} KiB, {told['fds']} fds"
    )


@pytest.mark.timeout(0)
def test_soak_of_the_asyncio_face_leaves_no_fd_no_object_and_no_memory(backend: str) -> None:
    grown = asyncio_churn_leaves_nothing(backend, WARM_UP, max(COUNT, 100_000), BOUND)
    print(f"\n{backend}: RSS {grown / 1024:+.0f} KiB")
