"""Connections that come and go leave nothing behind: no fd, no memory. tests/soak is the long run.

Also run by tests/soak/test_soak.py, which imports `churn_leaves_nothing`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from faults import Child, asan, compile_load

SERVER = """if True:
    import gc, sys; from faults import echo, serve
    gc.disable()
    serve(echo, sys.argv[1], backlog=4096)
"""


def churn(load: Path, port: int, count: int) -> None:
    """Connect, echo one line, close: `count` times, twenty at once."""
    command = [str(load), "--port", str(port), "--framing", "lines", "--connections", "20"]
    done = subprocess.run([*command, "--churn", str(count)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def settle(child: Child, accepted: int) -> list[int]:
    """Wait until every connection is gone and return the fds that are open."""
    while (stats := child.ask("stats"))["open"] or stats["accepted"] < accepted:
        pass
    assert stats["accepted"] == accepted and stats["log"] == []
    return child.ask("fds")["fds"]


def churn_leaves_nothing(
    load: Path, backend: str, warm_up: int, count: int, bound: int, seconds: float = 0.0
) -> dict[str, float]:
    """Churn `count` connections or more, for `seconds` or longer; assert that nothing is left.

    Args:
        bound: bytes that the resident memory may grow by after `warm_up` connections.
    """
    with Child(SERVER, backend) as child:
        port = child.next()["port"]
        churn(load, port, warm_up)
        fds, rss = settle(child, warm_up), child.rss()
        began, total = time.monotonic(), 0
        while total < count or time.monotonic() - began < seconds:
            churn(load, port, min(20_000, max(count - total, 5000)))
            total += min(20_000, max(count - total, 5000))
        took = time.monotonic() - began
        assert settle(child, warm_up + total) == fds
        grown = child.rss() - rss
        assert grown <= bound or asan(), f"{grown} bytes more after {total} connections"
        child.stop()
    return {"connections": total, "seconds": took, "rss": rss, "grown": grown, "fds": len(fds)}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


def test_connections_that_come_and_go_leave_no_fd_and_no_memory(load: Path) -> None:
    churn_leaves_nothing(load, "auto", 5000, 20_000, bound=1 << 20)
