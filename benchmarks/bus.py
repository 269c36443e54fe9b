"""What the bus costs: one process publishes, 1, 2 and 4 others hear all of it.

    python benchmarks/bus.py [MESSAGES]

The ring is large enough for all of them, so that none is missed. CPU is user and system time of the
processes, per message that was published, and per message that one subscriber heard.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from typing import NoReturn

import pyloop

SUBSCRIBERS = (1, 2, 4)
SIZES = (64, 4096)
MOST_BYTES = 32 << 20
ROUNDS = 3
REPORT = struct.Struct("=dd")  # when it had all, CPU seconds


async def hear(bus: pyloop.Bus, count: int, ready: int) -> None:
    """Hear so many messages."""
    everything = asyncio.get_running_loop().create_future()
    left = count

    def take(topic: str, message: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            everything.set_result(None)

    await bus.subscribe("bench", take, on_missed=print).ready()
    os.write(ready, b"x")
    await everything


def subscriber(bus: pyloop.Bus, count: int, ready: int, report: int) -> NoReturn:
    """A process that hears all, and reports."""
    pyloop.run(hear(bus, count, ready))
    os.write(report, REPORT.pack(time.monotonic(), time.process_time()))
    os._exit(0)


def measure(subscribers: int, size: int, count: int) -> tuple[float, float, float]:
    """Return messages heard per second, and microseconds of CPU to publish and to hear one."""
    record = -(-(16 + 5 + size) // 16) * 16
    bus = pyloop.Bus(f"shm://?capacity={(count + 1) * record}")
    from_ready, ready = os.pipe()
    reports, report = os.pipe()
    pids = []
    for _ in range(subscribers):
        if not (pid := os.fork()):
            subscriber(bus, count, ready, report)
        pids.append(pid)
        os.read(from_ready, 1)
    message, start, cpu = b"x" * size, time.monotonic(), time.process_time()
    for _ in range(count):
        bus.publish("bench", message)
    published = time.process_time() - cpu
    for pid in pids:
        os.waitpid(pid, 0)
    ends, spent = zip(*(REPORT.unpack(os.read(reports, REPORT.size)) for _ in pids), strict=True)
    for fd in (from_ready, ready, reports, report):
        os.close(fd)
    heard = count * subscribers
    return heard / (max(ends) - start), published / count * 1e6, sum(spent) / heard * 1e6


def main(count: int) -> None:
    titles = ("bytes", "subscribers", "heard per s", "us to publish", "us to hear")
    print("{:>6} {:>12} {:>12} {:>14} {:>11}".format(*titles))
    for size in SIZES:
        for subscribers in SUBSCRIBERS:
            messages = min(count, MOST_BYTES // size)
            rounds = [measure(subscribers, size, messages) for _ in range(ROUNDS)]
            rate, publish, hear_us = sorted(rounds)[ROUNDS // 2]
            print(f"{size:6} {subscribers:12} {rate:12,.0f} {publish:14.2f} {hear_us:11.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
