"""Many connections on one loop; the clients are benchmarks/load, in a process of its own."""

from __future__ import annotations

import itertools
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import TIMEOUT, Child, compile_load

SERVER = """if True:
    import resource, sys; from faults import echo, limit_fds, serve
    limit_fds(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    serve(echo, sys.argv[1], backlog=4096)
"""
MANY = 10_000


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


class Holder:
    """Clients that hold their connections, and echo once more on each when asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def answer(self) -> tuple[int, int]:
        """Return how many connections are held, and how many failed."""
        assert self._process.stdout is not None
        match = re.search(r"held=(\d+) errors=(\d+)", self._process.stdout.readline())
        assert match, "the load generator ended"
        return int(match[1]), int(match[2])

    def echo(self) -> tuple[int, int]:
        """Echo on every connection held."""
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return self.answer()


@contextmanager
def holding(load: Path, port: int, count: int) -> Iterator[Holder]:
    command = [str(load), "--port", str(port), "--hold", "--framing", "lines"]
    command += ["--connections", str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Holder(process)
            process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()


def needs_fds(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} fds, the hard limit is {hard}")


def test_ten_thousand_connections_all_echo_and_auto_has_moved(load: Path) -> None:
    needs_fds(MANY + 100)
    with Child(SERVER, "auto") as child:
        port = child.next()["port"]
        assert child.ask("stats")["backend"] == "select"
        with holding(load, port, MANY) as clients:
            assert clients.answer() == (MANY, 0)
            stats = child.ask("stats")
            assert (stats["open"], stats["refused"], stats["backend"]) == (MANY, 0, "epoll")
            for _ in range(2):
                assert clients.echo() == (MANY, 0)
        stats = child.ask("stats")
        assert (stats["messages_in"], stats["messages_out"]) == (3 * MANY, 3 * MANY)
        while child.ask("stats")["open"]:
            pass
        child.stop()


def test_poll_serves_fds_beyond_fd_setsize(load: Path) -> None:
    needs_fds(2100)
    with Child(SERVER, "poll") as child, holding(load, child.next()["port"], 2000) as clients:
        assert clients.answer() == (2000, 0)
        assert clients.echo() == (2000, 0)


def test_select_refuses_fds_beyond_fd_setsize_and_serves_the_rest(load: Path) -> None:
    needs_fds(2048)
    with Child(SERVER, "select") as child:
        port = child.next()["port"]
        room = 1024 - len(child.ask("fds")["fds"])
        with holding(load, port, 1200) as clients:
            assert clients.answer() == (room, 1200 - room)
            stats = child.ask("stats")
            assert (stats["open"], stats["refused"]) == (room, 1200 - room)
            assert clients.echo() == (room, 1200 - room)
        assert stats["log"]
        for _, message in stats["log"]:
            assert "FD_SETSIZE (1024)" in message and 'backend="auto"' in message
        times = [when for when, _ in stats["log"]]
        assert all(b - a >= 1.0 for a, b in itertools.pairwise(times))
        while child.ask("stats")["open"]:
            pass
        child.stop()
