"""Measure pyloop beside plain C, asyncio and uvloop: `python benchmarks/run.py`.

Without options it runs the rows that have a target; docs/benchmarks.md tells the
method. Exit status: 0 all ran, 1 a peer failed, 2 cannot run, 3 a peer is not
installed, 4 with --strict a target was missed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

import measure
import report
import rows
import sampler
import tools
from row import Peer, Row


class Progress:
    """Tells on stderr where the run is and when it may end."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def step(self, where: str) -> None:
        """Say what is measured next."""
        spent = time.monotonic() - self.start
        eta = f"{spent / self.done * (self.total - self.done):4.0f} s left" if self.done else ""
        self.say(f"[{self.done + 1:3}/{self.total}] {where:68} {eta}")
        self.done += 1


class Run:
    """One invocation: its peers that are absent or failed, and its results."""

    def __init__(self, args: argparse.Namespace, chosen: list[Row]) -> None:
        self.args = args
        self.rows = chosen
        self.cpus = tools.choose_cpus()
        self.packages = tools.Packages(args.python, args.base)
        times = {"seconds": args.seconds, "warmup": args.warmup}
        self.sampler = sampler.Sampler(self.packages, self.cpus, times, args.patience)
        self.results: list[dict[str, object]] = []
        self.missing: set[str] = set()
        self.failures = 0
        self.interrupted = False
        total = sum(self.rounds(row) * len(row.peers) for row in chosen)
        self.progress = Progress(total)

    def rounds(self, row: Row) -> int:
        return min(self.args.rounds, row.max_rounds)

    def absent(self, row: Row) -> dict[str, str]:
        """Peers of `row` that cannot run, with the reason; says it once per package."""
        found = {}
        for peer in row.peers:
            packages = self.packages.of(peer)
            for needed in filter(packages.lacks, (peer.needs, *row.tools)):
                found[peer.name] = "not built" if needed.startswith("pyloop") else "not installed"
                if needed not in self.missing:
                    self.progress.say(f"{needed} is missing: {hint(needed)}")
                self.missing.add(needed)
        return found

    def measure_row(self, number: int, row: Row) -> None:
        """Run the rounds of one row and keep its result, however far it comes."""
        absent = self.absent(row)
        samples: dict[str, dict[int, dict[str, float]]] = {peer.name: {} for peer in row.peers}
        try:
            for turn in range(self.rounds(row)):
                shift = turn % len(row.peers)
                for peer in row.peers[shift:] + row.peers[:shift]:
                    place = f"row {number} of {len(self.rows)} {row.key}, round {turn + 1}"
                    self.progress.step(f"{place} of {self.rounds(row)}: {peer.name}")
                    if peer.name not in absent:
                        self.take(row, peer, turn, samples, absent)
        finally:
            self.results.append(report.row_result(row, samples, absent))

    def take(self, row: Row, peer: Peer, turn: int, samples: dict, absent: dict) -> None:
        """Take one sample; a peer that fails is left out of the rounds to come."""
        try:
            got = self.sampler.sample(row, peer)
        except measure.PeerFailed as error:
            self.progress.say(f"    {peer.name} failed: {error}")
            absent[peer.name] = "failed"
            self.failures += 1
        else:
            samples[peer.name][turn] = got

    def document(self) -> dict[str, object]:
        """Everything that the JSON file holds."""
        return {
            "method": report.METHOD,
            "machine": tools.machine_facts(self.packages, self.cpus),
            "run": {
                "rounds": self.args.rounds,
                "short": self.args.short,
                "seconds": self.args.seconds,
                "warmup": self.args.warmup,
                "retaken": self.sampler.retaken,
                "interrupted": self.interrupted,
                "took_s": round(time.monotonic() - self.progress.start, 1),
            },
            "rows": self.results,
        }

    def go(self) -> None:
        """Measure every row, until the end or an interrupt."""
        tools.raise_fd_limit()
        mask = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.cpus.generator})
        if self.cpus.server == self.cpus.generator:
            self.progress.say("only one CPU: server and generator share it, figures mean little")
        try:
            for number, row in enumerate(self.rows, 1):
                self.measure_row(number, row)
                self.progress.say("\n" + report.row_markdown(self.results[-1]))
        except KeyboardInterrupt:
            self.interrupted = True
            self.progress.say("interrupted: what was measured is written")
        finally:
            os.sched_setaffinity(0, mask)

    def status(self) -> int:
        """Return the exit status."""
        verdicts = [v for result in self.results for v in result["targets"]]
        if self.interrupted:
            return 130
        if self.failures:
            return 1
        if self.missing:
            return 3
        return 4 if self.args.strict and not all(v["met"] for v in verdicts) else 0


def hint(package: str) -> str:
    """What to do about a package that is not there."""
    if package == "pyloop.model":
        return "this pyloop's Server has no argument of that name"
    if package.startswith("pyloop"):
        return "build it first (python build_ffi.py, or pip install .)"
    return tools.TOOLS.get(package, "pip install -r benchmarks/requirements.txt")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every row, with a target or without")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose key matches")
    text = "only peers whose name matches"
    parser.add_argument("--peers", default="", metavar="REGEX", help=text)
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--rounds", type=int, default=5, help="samples per peer (default 5)")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a window (0.6)")
    parser.add_argument("--warmup", type=float, default=0.2, help="before each window (0.2)")
    text = "seconds spent on taking disturbed samples again, in all (60)"
    parser.add_argument("--patience", type=float, default=60, help=text)
    text = "one round, short windows: to try rows out, not to measure"
    parser.add_argument("--short", action="store_true", help=text)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    text = "interpreter with another build of pyloop: its peers run on both, ratios are to this one"
    parser.add_argument("--base", metavar="PYTHON", help=text)
    text = "directory to write latest.json and latest.md into (benchmarks/results)"
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="DIR", help=text)
    parser.add_argument("--write-readme", action="store_true", help="fill in README.md's table")
    parser.add_argument("--strict", action="store_true", help="exit 4 when a target is missed")
    args = parser.parse_args(argv)
    if args.short:
        args.rounds, args.seconds, args.warmup, args.patience = 1, 0.2, 0.1, 0
    if not 1 <= args.rounds <= 100 or not 0.05 <= args.seconds <= 60 or not 0 <= args.warmup <= 60:
        parser.error("--rounds 1..100, --seconds 0.05..60, --warmup 0..60")
    return args


def choose(args: argparse.Namespace) -> list[Row]:
    """Return the rows that the options name."""
    every = args.all or args.rows or args.peers or args.list
    pool = rows.all_rows() if every else rows.target_rows()
    try:
        keys, peers = re.compile(args.rows), re.compile(args.peers)
    except re.error as error:
        raise tools.CannotRun(f"--rows or --peers is no regular expression: {error}") from error
    chosen = [rows.only(row, peers.search) for row in pool if keys.search(row.key)]
    if not any(row.peers for row in chosen):
        known = " ".join(row.key for row in pool)
        raise tools.CannotRun(f"no row matches {args.rows!r}, {args.peers!r}; there are: {known}")
    chosen = [rows.beside_base(row) if args.base else row for row in chosen if row.peers]
    return [rows.shortened(row) for row in chosen] if args.short else chosen


def interrupt(number: int, frame: object) -> None:
    """Make SIGTERM end the run as Ctrl-C does: the children go too."""
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        chosen = choose(args)
        if args.list:
            print("\n".join(f"{row.key:24} {row.title}" for row in chosen))
            return 0
        tools.compile_tools()
        run = Run(args, chosen)
    except tools.CannotRun as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    run.go()
    document = run.document()
    report.write(document, args.results)
    print(report.markdown(document))
    readme = tools.ROOT / "README.md"
    if args.write_readme and (complaint := report.fill_readme(document, readme)):
        print(f"benchmarks: README not written: {complaint}", file=sys.stderr)
        return 2
    return run.status()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
