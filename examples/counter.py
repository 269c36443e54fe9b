"""A counter that several processes raise, one at a time: in shared memory, under a semaphore.

    python examples/counter.py --processes 4 --times 10000

The processes are strangers to each other: all that they are told is a name.
"""

import argparse
import subprocess
import sys

from pyloop import Semaphore, SharedMemory

GUARD = 64  # where the semaphore is; the number is at 0


def count(memory: SharedMemory, times: int) -> None:
    """Raise the number so many times."""
    guard = Semaphore(memory=memory, offset=GUARD, create=False)
    number = memory.buf[:8].cast("Q")
    for _ in range(times):
        with guard:  # to read, add and write takes three steps: nobody may come in between
            number[0] += 1


def run(processes: int, times: int) -> int:
    """Have strangers count together; return what they came to."""
    with SharedMemory(size=GUARD + Semaphore.SIZE, create=True) as memory:
        try:
            Semaphore(1, memory=memory, offset=GUARD, create=True)
            join = [sys.executable, __file__, "--join", memory.name, "--times", str(times)]
            running = [subprocess.Popen(join) for _ in range(processes)]
            statuses = [process.wait() for process in running]
            if any(statuses):
                sys.exit("a process has failed")
        finally:
            memory.unlink()
        return int.from_bytes(memory[:8], sys.byteorder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--times", type=int, default=10000, help="how often each one counts")
    parser.add_argument("--join", metavar="NAME", help="count in the memory of this name")
    options = parser.parse_args()
    if options.join:
        with SharedMemory(options.join) as memory:
            count(memory, options.times)
    else:
        print(f"{options.processes} processes counted to {run(options.processes, options.times)}")
