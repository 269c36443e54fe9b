"""What a loop's own calls cost, without a socket: `python benchmarks/looptime.py --loop uvloop`.

    python benchmarks/looptime.py --loop pyloop --work chain --seconds 1

Prints one JSON object: nanoseconds of CPU time (all threads) per operation, and which share of the
window other work had the CPU. `run.py --rows ^loop-` runs this for every loop, side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "servers"))

from asyncio_echo import LOOPS, loop_factory

BATCH = 1000
TURNS = 10_000  # of one run of the loop: starting and stopping it is lost in them
TASKS = 100
LIVE = 100_000
LATE = 3600.0  # seconds: never, here
FIRE_AFTER, FIRE_WITHIN = 0.5, 0.01  # seconds: all are scheduled before the first is due

Loop = asyncio.AbstractEventLoop


def nothing(*args: object) -> None:
    pass


# ---- callbacks ----


def chain(loop: Loop) -> int:
    """A callback that schedules itself: each is a turn of the loop."""
    left = TURNS

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(again)
        else:
            loop.stop()

    loop.call_soon(again)
    loop.run_forever()
    return TURNS


def run_batch(loop: Loop, schedule: Callable[..., object], *args: object) -> int:
    """Schedule callbacks from a callback; they run in the next turn."""

    def begin() -> None:
        for _ in range(BATCH):
            schedule(nothing, *args)
        loop.call_soon(loop.stop)

    loop.call_soon(begin)
    loop.run_forever()
    return BATCH


def batch(loop: Loop) -> int:
    return run_batch(loop, loop.call_soon)


def arguments(loop: Loop) -> int:
    return run_batch(loop, loop.call_soon, loop, BATCH, "three")


def threadsafe_own(loop: Loop) -> int:
    """call_soon_threadsafe from the loop's own thread."""
    return run_batch(loop, loop.call_soon_threadsafe)


def threadsafe(loop: Loop) -> int:
    """call_soon_threadsafe from another thread, while the loop waits."""

    def schedule() -> None:
        for _ in range(BATCH):
            loop.call_soon_threadsafe(nothing)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=schedule)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    return BATCH


# ---- timers ----


def later_cancel(loop: Loop) -> int:
    """A timer that is cancelled at once, as a time-out mostly is."""

    def begin() -> None:
        for _ in range(BATCH):
            loop.call_later(LATE, nothing).cancel()
        loop.call_soon(loop.stop)

    loop.call_soon(begin)
    loop.run_forever()
    return BATCH


@functools.cache
def populate(loop: Loop) -> list[asyncio.TimerHandle]:
    delays = random.Random(1)
    return [loop.call_later(LATE * (0.5 + delays.random()), nothing) for _ in range(LIVE)]


def timers_cancel(loop: Loop) -> int:
    """The same, among many timers that live, some of them due earlier and some later."""
    populate(loop)
    return later_cancel(loop)


def timers_fire(loop: Loop) -> int:
    """Many timers, scheduled in no order, all live at once; then all fire."""
    left, delays = LIVE, random.Random(1)

    def fired() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def begin() -> None:
        first = loop.time() + FIRE_AFTER
        for _ in range(LIVE):
            loop.call_at(first + FIRE_WITHIN * delays.random(), fired)

    loop.call_soon(begin)
    loop.run_forever()
    return LIVE


# ---- tasks ----


def switch(loop: Loop) -> int:
    """sleep(0) in many tasks: each is a switch to the next one."""

    async def sleep() -> None:
        for _ in range(BATCH // TASKS):
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        for task in [asyncio.create_task(sleep()) for _ in range(TASKS)]:
            await task

    loop.run_until_complete(all_of_them())
    return BATCH


def wake(loop: Loop) -> int:
    """A task that waits for a future, which a callback sets."""

    async def wait() -> None:
        for _ in range(BATCH):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    loop.run_until_complete(wait())
    return BATCH


def gather(loop: Loop) -> int:
    """Per coroutine that is gathered."""

    async def one() -> None:
        pass

    async def all_of_them() -> None:
        await asyncio.gather(*[one() for _ in range(BATCH)])

    loop.run_until_complete(all_of_them())
    return BATCH


WORKS = {
    "chain": chain,
    "batch": batch,
    "arguments": arguments,
    "threadsafe": threadsafe,
    "threadsafe-own": threadsafe_own,
    "later-cancel": later_cancel,
    "timers-cancel": timers_cancel,
    "timers-fire": timers_fire,
    "switch": switch,
    "wake": wake,
    "gather": gather,
}


# ---- measuring ----


def delay_ns() -> int:
    """What this process's main thread has waited for a CPU that others had."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    except OSError:
        return 0


def repeat(work: Callable[[], int], warmup: float, seconds: float) -> dict[str, float]:
    """Do the work for so long, first unseen; return what an operation costs."""
    until = time.perf_counter() + warmup
    while time.perf_counter() < until:
        work()
    start, spent, waited, done = time.perf_counter(), time.process_time_ns(), delay_ns(), 0
    while not done or time.perf_counter() < start + seconds:
        done += work()
    spent, took = time.process_time_ns() - spent, time.perf_counter() - start
    disturbed = (delay_ns() - waited) / 1e9 / took
    return {"ns": spent / done, "operations": done, "seconds": took, "disturbed": disturbed}


IMPORT = """
from time import process_time_ns
start = process_time_ns()
import {}
print(process_time_ns() - start)
"""


def time_imports(module: str, seconds: float) -> dict[str, float]:
    """Import a module, each time in a new interpreter, whose start is not counted."""
    command = [sys.executable, "-c", IMPORT.format(module)]
    subprocess.check_output(command)  # and its bytecode is written
    start, spent, done = time.perf_counter(), 0, 0
    while not done or time.perf_counter() < start + seconds:
        spent += int(subprocess.check_output(command))
        done += 1
    return {"ns": spent / done, "operations": done, "seconds": time.perf_counter() - start}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--backend", default="auto", help="of --loop pyloop (auto)")
    parser.add_argument("--work", choices=[*WORKS, "import"], default="chain")
    parser.add_argument("--warmup", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=0.3)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.work == "import":
        found = time_imports(args.loop, args.seconds)
    else:
        loop = loop_factory(args.loop, args.backend)()
        work = WORKS[args.work]
        found = repeat(lambda: work(loop), args.warmup, args.seconds)
        loop.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
