"""Messages between two processes, a Channel beside its peers: `python benchmarks/channels.py`.

One process puts without a pause, the other one gets and counts, each on a CPU of its own; or one
message goes there and back, over and over. Peers are interleaved: every round runs each once. Wall
clock, since both sides work. When others use the machine they stop one side for milliseconds, and
the other one waits, so what counts is the best of many short samples, the least disturbed one; the
JSON file has all. Exit status: 0 all ran, 2 cannot run, 4 with --strict a target was missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import report
import tools

try:
    import pyloop
except ImportError as error:
    sys.exit(f"channels: pyloop cannot be imported ({error}): build it, then run with PYTHONPATH=.")

BATCH = 64  # messages between two looks at the clock
QUEUE_MESSAGES = 1024  # that a multiprocessing.Queue may hold
WORKS = {"64 B": (64, False), "64 KiB": (65536, False), "there and back": (64, True)}

Send = Callable[[bytes], object]
Receive = Callable[[], bytes]


# ---- peers: each makes a way in one direction ----


@contextmanager
def channel() -> Iterator[tuple[Send, Receive]]:
    with pyloop.Channel() as made:
        yield made.put, made.get


@contextmanager
def named_channel() -> Iterator[tuple[Send, Receive]]:
    with pyloop.Channel(f"pyloop-bench-{os.getpid()}-{time.monotonic_ns()}") as made:
        try:
            yield made.put, made.get
        finally:
            made.unlink()


@contextmanager
def queue() -> Iterator[tuple[Send, Receive]]:
    made = multiprocessing.get_context("fork").Queue(QUEUE_MESSAGES)
    try:
        yield made.put, made.get
    finally:
        made.cancel_join_thread()
        made.close()


@contextmanager
def pipe() -> Iterator[tuple[Send, Receive]]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        yield sender.send_bytes, receiver.recv_bytes


@contextmanager
def unix_socket() -> Iterator[tuple[Send, Receive]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one.sendall, lambda: other.recv(65536)


PEERS = {
    "Channel": channel,
    "Channel with a name": named_channel,
    "multiprocessing.Queue": queue,
    "multiprocessing.Pipe": pipe,
    "Unix socket": unix_socket,
}
FLOOR = "C, a ring and no locks"


# ---- measuring ----


def put_for_ever(send: Send, receive: Receive | None, size: int, cpu: int) -> None:
    """The other process: until it is killed."""
    os.sched_setaffinity(0, {cpu})
    message = bytes(size)
    while True:
        if receive:
            receive()
        send(message)


def count(receive: Receive, send: Send | None, size: int, seconds: float) -> float:
    """Messages, or round trips, per second; the first batch is not counted."""
    message = bytes(size)
    start = spent = 0.0
    done = -BATCH
    while spent < seconds:
        for _ in range(BATCH):
            if send:
                send(message)
            if len(receive()) != size:
                raise RuntimeError("a message of another length")
        done += BATCH
        if not done:
            start = time.perf_counter()
        spent = time.perf_counter() - start if done else 0.0
    return done / spent


def sample(peer: str, size: int, echo: bool, seconds: float, cpus: tools.Cpus) -> float:
    if peer == FLOOR:
        command = [tools.BUILD / "floor_ring", size, seconds, cpus.server, cpus.generator]
        done = subprocess.check_output([*map(str, command), *["--echo"] * echo], text=True)
        return float(done)
    with PEERS[peer]() as (send, receive), PEERS[peer]() as (ask, hear):
        pid = os.fork()
        if pid == 0:
            put_for_ever(send, hear if echo else None, size, cpus.server)
        try:
            os.sched_setaffinity(0, {cpus.generator})
            return count(receive, ask if echo else None, size, seconds)
        finally:
            os.sched_setaffinity(0, cpus.usable)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# ---- what comes of it ----


@dataclass
class Results:
    """Samples by peer and work, round by round."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, peer: str, work: str, rate: float) -> None:
        self.rates.setdefault(peer, {}).setdefault(work, []).append(rate)

    def best(self, peer: str, work: str) -> float:
        return max(self.rates[peer][work])

    def table(self) -> str:
        lines = [
            "| | 64 B, per s | 64 KiB, per s | GB/s | 64 B there and back, µs |",
            "|---|--:|--:|--:|--:|",
        ]
        for peer in self.rates:
            small, large, back = (self.best(peer, work) for work in WORKS)
            figures = f"{small:,.0f} | {large:,.0f} | {large * 65536 / 1e9:.2f} | {1e6 / back:.1f}"
            lines.append(f"| {peer} | {figures} |")
        return "\n".join(lines)

    def verdicts(self) -> list[dict[str, object]]:
        out = []
        for work, other, limit in (("64 B", "multiprocessing.Queue", 5), ("64 KiB", FLOOR, 0.5)):
            value = self.best("Channel", work) / self.best(other, work)
            text = f"Channel >= {limit:g}x {other} at {work}"
            out.append({"text": text, "limit": limit, "value": value, "met": value >= limit})
        return out


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples per peer and work (15)")
    parser.add_argument("--seconds", type=float, default=0.15, help="length of a sample (0.15)")
    text = "one round, short samples: to try it out, not to measure"
    parser.add_argument("--short", action="store_true", help=text)
    parser.add_argument("--strict", action="store_true", help="exit 4 when a target is missed")
    parser.add_argument("--results", type=report.Path, default=report.RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    if args.short:
        args.rounds, args.seconds = 1, 0.02
    if not 1 <= args.rounds <= 100 or not 0.01 <= args.seconds <= 60:
        parser.error("--rounds 1..100, --seconds 0.01..60")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        tools.compile_tools()
    except tools.CannotRun as error:
        print(f"channels: {error}", file=sys.stderr)
        return 2
    results, cpus = Results(), tools.choose_cpus()
    for _ in range(args.rounds):
        for work, (size, echo) in WORKS.items():
            for peer in (FLOOR, *PEERS):
                results.add(peer, work, sample(peer, size, echo, args.seconds, cpus))
    verdicts = results.verdicts()
    print(results.table(), "", *(f"- {report.verdict_text(v)}" for v in verdicts), sep="\n")
    args.results.mkdir(exist_ok=True)
    found = {"rounds": args.rounds, "seconds": args.seconds, "short": args.short}
    found |= {"rates": results.rates, "targets": verdicts}
    (args.results / "channels.json").write_text(json.dumps(found, indent=1) + "\n")
    return 4 if args.strict and not all(verdict["met"] for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
