"""Are connections spread evenly over workers? `python benchmarks/spread.py` holds many and counts.

With n connections and N workers each should have n/N, give or take 4 sqrt(n/N): over four
standard deviations of a fair lottery, which is what SO_REUSEPORT makes of it. Exit status: 0 it
is so in every case, 1 it is not or a server failed, 2 cannot run, 3 pyloop is not built.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import measure
import tools

WORKERS = (2, 4)


@dataclass(frozen=True)
class Spread:
    """How many connections each worker of one server had."""

    kind: str
    counts: tuple[int, ...]

    @property
    def fair(self) -> float:
        return sum(self.counts) / len(self.counts)

    @property
    def allowed(self) -> float:
        return 4 * math.sqrt(self.fair)

    @property
    def off(self) -> float:
        """How far the worker that is furthest off is from its fair share."""
        return max(abs(count - self.fair) for count in self.counts)

    @property
    def holds(self) -> bool:
        return self.off <= self.allowed

    def cells(self) -> str:
        """Return its line of the table."""
        counts = " ".join(map(str, self.counts))
        figures = f"{self.fair:g} | {self.allowed:.1f} | {self.off:g} | {counts}"
        verdict = "yes" if self.holds else "NO"
        return f"| {self.kind} | {len(self.counts)} | {figures} | {verdict} |"


HEAD = """\
| socket | workers | n/N | allowed off | furthest off | connections of each | holds |
|---|--:|--:|--:|--:|---|---|"""


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            pass  # closed since it was listed
    return found


def measure_spread(
    packages: tools.Packages, kind: str, workers: int, connections: int, directory: str
) -> Spread:
    """Start a server, hold connections, and count those of each worker."""
    path = ["--path", f"{directory}/{workers}"] if kind == "unix" else []
    server = str(tools.HERE / "servers" / "pyloop_echo.py")
    command = [packages.python, server, "--workers", str(workers), *path]
    usable = os.sched_getaffinity(0)
    with measure.Child(command, usable, packages.env) as child:
        place = child.line(measure.START_SECONDS).split()[1]
        pids = children(child.process.pid)
        before = [sockets(pid) for pid in pids]
        load = [str(tools.BUILD / "load"), "--path" if path else "--port", place]
        with measure.hold(load, usable, connections):
            counts = [sockets(pid) - had for pid, had in zip(pids, before, strict=True)]
    if len(counts) != workers or sum(counts) != connections:
        raise measure.PeerFailed(f"{workers} workers have {counts} of {connections} connections")
    return Spread(kind, tuple(counts))


def spreads(args: argparse.Namespace, packages: tools.Packages) -> Iterator[Spread]:
    """Measure every case."""
    with tempfile.TemporaryDirectory() as directory:
        for kind, workers in itertools.product(("tcp", "unix"), args.workers):
            yield measure_spread(packages, kind, workers, args.connections, directory)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000, help="to hold (1000)")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="of a server (2 4)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    args = parser.parse_args(argv)
    if not 1 <= args.connections <= 20000 or not all(2 <= n <= 64 for n in args.workers):
        parser.error("--connections 1..20000, --workers 2..64")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        tools.compile_tools()
    except tools.CannotRun as error:
        print(f"spread: {error}", file=sys.stderr)
        return 2
    packages = tools.Packages(args.python)
    if packages.lacks("pyloop"):
        print("spread: pyloop is not built", file=sys.stderr)
        return 3
    tools.raise_fd_limit()
    print(HEAD)
    status = 0
    try:
        for spread in spreads(args, packages):
            print(spread.cells(), flush=True)
            status |= not spread.holds
    except measure.PeerFailed as error:
        print(f"spread: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
