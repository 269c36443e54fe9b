"""The rows without a socket: what a loop's own calls cost, and what importing it does.

Ratios are to the fastest of the peers. aiofastnet has no loop of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from row import FASTEST, Peer, Row, Target, cffi_alone

LOOPS = {"pyloop": "pyloop.Loop", "uvloop": "uvloop", "rloop": "rloop", "asyncio": None}
OURS = "pyloop"
FIRST = 1.0  # at least as fast as any
WORKS = {
    "chain": "a callback that schedules itself by call_soon, per turn of the loop",
    "batch": "call_soon, 1,000 callbacks a turn, to schedule and run one",
    "arguments": "call_soon with 3 arguments, 1,000 callbacks a turn",
    "threadsafe": "call_soon_threadsafe out of another thread, 1,000 callbacks",
    "threadsafe-own": "call_soon_threadsafe in the loop's own thread, 1,000 callbacks a turn",
    "later-cancel": "call_later and cancel, 1,000 timers a turn",
    "timers-cancel": "call_later and cancel among 100,000 live timers",
    "timers-fire": "call_at 100,000 times in no order, all live at once; then all fire",
    "switch": "task switch: sleep(0) in 100 tasks",
    "wake": "a task waits for a future that a callback sets",
    "gather": "gather of 1,000 coroutines, per coroutine",
}
TARGETS = ("chain", "batch", "later-cancel", "switch")


def script(loop: str, needs: str | None, *more: str) -> Peer:
    return Peer(loop, "looptime.py", ("--loop", loop, *more), needs)


def loop_rows() -> Iterator[Row]:
    ours, *others = (script(loop, needs) for loop, needs in LOOPS.items())
    for work, title in WORKS.items():
        yield Row(
            f"loop-{work}",
            f"Loop: {title}",
            {"work": work, "seconds": 0.2, "warmup": 0.05},
            (ours, cffi_alone(ours), *others),
            (Target(OURS, FASTEST, ahead=FIRST),),
            floor=FASTEST,
            unit="ns/operation",
            way="itself",
        )


def import_row() -> Row:
    return Row(
        "import",
        "Import, in an interpreter that has imported nothing (python -X importtime tells why)",
        {"work": "import", "seconds": 0.3},
        tuple(script(loop, needs) for loop, needs in LOOPS.items()),
        floor="asyncio",
        unit="ms/import",
        way="itself",
    )


def all_rows() -> list[Row]:
    return [*loop_rows(), import_row()]


def target_rows() -> list[Row]:
    """Return the rows of `make bench`."""
    return [row for row in loop_rows() if row.key.removeprefix("loop-") in TARGETS]
