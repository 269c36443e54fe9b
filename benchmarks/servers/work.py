"""A fixed amount of computing, the same in every server that is compared.

python work.py 50        # prints how many steps take 50 microseconds of CPU time
"""

from __future__ import annotations

import sys
import time

TRIAL_STEPS = 50_000
TRIALS = 40


def compute(steps: int) -> None:
    """Keep the CPU busy, and the GIL, for so many turns of an empty loop."""
    for _ in range(steps):
        pass


def steps_for(microseconds: float) -> int:
    """Return the steps that take so long when nothing interferes: by the best of many trials."""
    best = float("inf")
    for _ in range(TRIALS):
        start = time.thread_time_ns()
        compute(TRIAL_STEPS)
        best = min(best, time.thread_time_ns() - start)
    return max(1, round(microseconds * 1000 * TRIAL_STEPS / best))


if __name__ == "__main__":
    print(steps_for(float(sys.argv[1])))
