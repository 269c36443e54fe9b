"""The long run behind tests/test_asyncio_tls.py: both ends of 10,000 TLS connections
(PYLOOP_SOAK_COUNT), 200 at once, and as many as PYLOOP_SOAK_SECONDS allows.

After 5,000 to warm up they leave the resident memory within 4 MiB: 400 bytes a connection.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_asyncio_tls import many

import pyloop

COUNT = int(os.environ.get("PYLOOP_SOAK_COUNT", "10000"))
SECONDS = float(os.environ.get("PYLOOP_SOAK_SECONDS", "0"))
BOUND = 4 << 20


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(0)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_soak_of_tls_leaves_no_fd_and_no_memory(backend: str) -> None:
    with asyncio.Runner(loop_factory=lambda: pyloop.Loop(backend)) as runner:
        for _ in range(5):
            runner.run(many(1000, 200))
        before, end, count = resident(), time.monotonic() + SECONDS, 0
        while count < COUNT or time.monotonic() < end:
            runner.run(many(1000, 200))
            count += 1000
        grown = resident() - before
    print(f"\n{backend}: {count} TLS connections, RSS {grown / 1024:+.0f} KiB")
    assert grown <= BOUND
