"""How late a sleep of 0.2 ms ends, beside clock_nanosleep: `python benchmarks/timers.py`.

Peers are interleaved: every round runs each once, and the median of all their sleeps is shown. The
floor is `time.sleep`, which is clock_nanosleep(2): what the kernel's timers and this machine leave.
Wall clock, since lateness is. Exit status: 0 all ran, 2 cannot run, 4 with --strict a target was
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

import report

try:
    import pyloop
except ImportError as error:
    sys.exit(f"timers: pyloop cannot be imported ({error}): build it, then run with PYTHONPATH=.")
try:
    import uvloop
except ImportError:
    uvloop = None

SECONDS = 0.0002
FLOOR = "clock_nanosleep"
LIMIT = 0.15  # ms over the floor
OURS = [f"pyloop {name}" for name in ("select", "poll", "epoll")]

Lateness = list[float]
"""Of each sleep, in ms."""


def sleep_by_kernel(count: int) -> Lateness:
    late = []
    for _ in range(count):
        start = time.perf_counter()
        time.sleep(SECONDS)
        late.append((time.perf_counter() - start - SECONDS) * 1e3)
    return late


def sleep_on(make: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[int], Lateness]:
    async def sleep(count: int) -> Lateness:
        late = []
        for _ in range(count):
            start = time.perf_counter()
            await asyncio.sleep(SECONDS)
            late.append((time.perf_counter() - start - SECONDS) * 1e3)
        return late

    def run(count: int) -> Lateness:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(sleep(count))

    return run


def peers() -> dict[str, Callable[[int], Lateness]]:
    found = {FLOOR: sleep_by_kernel}
    for name in OURS:
        backend = name.split()[1]
        try:
            pyloop.Loop(backend).close()
        except OSError:  # not on this platform
            continue
        found[name] = sleep_on(lambda backend=backend: pyloop.Loop(backend))
    found["asyncio"] = sleep_on(asyncio.SelectorEventLoop)
    if uvloop is not None:
        found["uvloop"] = sleep_on(uvloop.new_event_loop)
    return found


def table(late: dict[str, Lateness]) -> str:
    lines = ["| sleep of 0.2 ms | median lateness, ms | over clock_nanosleep, ms | early |"]
    lines.append("|---|--:|--:|--:|")
    floor = statistics.median(late[FLOOR])
    for peer, values in late.items():
        median, early = statistics.median(values), sum(value < 0 for value in values)
        lines.append(f"| {peer} | {median:.3f} | {median - floor:+.3f} | {early} |")
    return "\n".join(lines)


def verdicts(late: dict[str, Lateness]) -> list[dict[str, object]]:
    floor, out = statistics.median(late[FLOOR]), []
    for peer in filter(late.__contains__, OURS):
        value = statistics.median(late[peer]) - floor
        text = f"{peer}: median lateness <= {LIMIT:g} ms over {FLOOR}"
        out.append({"text": text, "limit": LIMIT, "value": value, "met": value <= LIMIT})
    return out


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="samples per peer (7)")
    parser.add_argument("--sleeps", type=int, default=300, help="in a sample (300)")
    text = "one round, few sleeps: to try it out, not to measure"
    parser.add_argument("--short", action="store_true", help=text)
    parser.add_argument("--strict", action="store_true", help="exit 4 when a target is missed")
    parser.add_argument("--results", type=report.Path, default=report.RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    if args.short:
        args.rounds, args.sleeps = 1, 20
    if not 1 <= args.rounds <= 100 or not 1 <= args.sleeps <= 100_000:
        parser.error("--rounds 1..100, --sleeps 1..100000")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    found = peers()
    late: dict[str, Lateness] = {peer: [] for peer in found}
    for _ in range(args.rounds):
        for peer, measure in found.items():
            late[peer] += measure(args.sleeps)
    targets = verdicts(late)
    print(table(late), "", *(f"- {report.verdict_text(v)}" for v in targets), sep="\n")
    args.results.mkdir(exist_ok=True)
    medians = {peer: statistics.median(values) for peer, values in late.items()}
    out = {"rounds": args.rounds, "sleeps": args.sleeps, "short": args.short}
    out |= {"median_ms": medians, "targets": targets}
    (args.results / "timers.json").write_text(json.dumps(out, indent=1) + "\n")
    return 4 if args.strict and not all(verdict["met"] for verdict in targets) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
