"""How late a sleep of 0.2 ms ends on each loop: `python benchmarks/timers.py`.

Beside them clock_nanosleep, as time.sleep calls it: what the kernel makes of such a sleep. Peers
take turns, some sleeps each; wall clock, so the medians count. Exit status: 0 all ran, 3 pyloop
is not built, 4 with --strict a target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import report

SLEEP_US = 200.0
LIMIT_US = 150.0  # later than clock_nanosleep, in the median
SLEEPS = 100
FLOOR = "clock_nanosleep"

Peer = Callable[[int], list[float]]  # so many sleeps: how late each was, us


def late_us(start: float) -> float:
    return (time.perf_counter() - start) * 1e6 - SLEEP_US


def sleep_plainly(count: int) -> list[float]:
    out = []
    for _ in range(count):
        start = time.perf_counter()
        time.sleep(SLEEP_US / 1e6)
        out.append(late_us(start))
    return out


async def sleep_often(count: int) -> list[float]:
    out = []
    for _ in range(count):
        start = time.perf_counter()
        await asyncio.sleep(SLEEP_US / 1e6)
        out.append(late_us(start))
    return out


def sleep_on(make_loop: Callable[[], asyncio.AbstractEventLoop], count: int) -> list[float]:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(sleep_often(count))


def peers() -> dict[str, Peer]:
    """Return clock_nanosleep and the loops that are installed. Raises ImportError: no pyloop."""
    import pyloop

    out: dict[str, Peer] = {FLOOR: sleep_plainly}
    for backend in ("epoll", "poll", "select"):
        make_loop = functools.partial(pyloop.new_event_loop, backend)
        out[f"pyloop.Loop {backend}"] = functools.partial(sleep_on, make_loop)
    out["asyncio"] = functools.partial(sleep_on, asyncio.SelectorEventLoop)
    for name in ("uvloop", "rloop"):
        try:
            make_loop = importlib.import_module(name).new_event_loop
        except ImportError:
            continue
        out[name] = functools.partial(sleep_on, make_loop)
    return out


def verdicts(medians: dict[str, float]) -> list[dict[str, object]]:
    """Return a verdict for each backend, as report.verdict_text takes it."""
    out = []
    for name, median in medians.items():
        if name.startswith("pyloop"):
            value = median - medians[FLOOR]
            text = f"{name} <= {LIMIT_US:g} us later than {FLOOR}"
            out.append({"text": text, "limit": LIMIT_US, "value": value, "met": value <= LIMIT_US})
    return out


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help=f"of {SLEEPS} sleeps each (10)")
    parser.add_argument("--strict", action="store_true", help="exit 4 when a target is missed")
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    if not 1 <= args.rounds <= 1000:
        parser.error("--rounds 1..1000")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        sleepers = peers()
    except ImportError as error:
        print(f"timers: pyloop cannot be imported ({error})", file=sys.stderr)
        return 3
    late: dict[str, list[float]] = {name: [] for name in sleepers}
    for _ in range(args.rounds):
        for name, sleeper in sleepers.items():
            late[name] += sleeper(SLEEPS)
    medians = {name: statistics.median(values) for name, values in late.items()}
    print("| sleep of 0.2 ms | late, µs, median | least | 9 of 10 within |\n|---|--:|--:|--:|")
    for name, values in late.items():
        tenths = statistics.quantiles(values, n=10)
        print(f"| {name} | {medians[name]:.0f} | {min(values):.0f} | {tenths[-1]:.0f} |")
    judged = verdicts(medians)
    print("", *(f"- {report.verdict_text(verdict)}" for verdict in judged), sep="\n")
    args.results.mkdir(exist_ok=True)
    found = {"rounds": args.rounds, "late_us": late, "targets": judged}
    (args.results / "timers.json").write_text(json.dumps(found) + "\n")
    return 4 if args.strict and not all(verdict["met"] for verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
