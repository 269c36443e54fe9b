"""Nanoseconds of single calls, without kernel or peer: `python benchmarks/micro.py`.

The best of several runs is shown: what the call costs when nothing else interferes. Only the core's
contract (csrc/pyloop.h) is used, through cffi, as pyloop/ uses it. What the loop's own calls cost
tells looptime.py.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

try:
    from pyloop.core import check, ffi, lib
except ImportError as error:
    sys.exit(f"micro: pyloop cannot be imported ({error}): build it, then run with PYTHONPATH=.")

COUNT = 2000  # messages per run: they fit a batch
RUNS = 30
LINE = b"x" * 63 + b"\n"
EVENT = struct.Struct("@8xIIPP8x")  # struct pl_event: kind, slot, data, end
MEMORY = ffi.buffer(ffi.cast("char *", 0), sys.maxsize)


def lines_framing():
    framing = ffi.new("struct pl_framing *")
    framing.kind, framing.max_size = lib.PL_LINES, 65536
    return framing


class Pair:
    """A loop with one Lines connection, and the socket at its other end."""

    def __init__(self, backend: int) -> None:
        error = ffi.new("int *")
        self.loop = lib.pl_loop_new(backend, error)
        check(error[0] if self.loop == ffi.NULL else 0)
        options = ffi.new("struct pl_options *")
        options.framing = lines_framing()[0]
        options.high_water, options.low_water = 1 << 24, 1 << 14
        group = check(lib.pl_group_new(self.loop, options, ffi.NULL))
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        ident = ffi.new("uint64_t *")
        check(lib.pl_conn_open(self.loop, group, ours.detach(), ident))
        self.id = ident[0]
        self.events = lib.pl_loop_events(self.loop)
        self.view = memoryview(ffi.buffer(self.events, COUNT * EVENT.size))

    def empty_peer(self) -> None:
        left = COUNT * len(LINE)
        while left:
            left -= len(self.peer.recv(left))


def time_send(pair: Pair) -> float:
    """Queue COUNT lines; the flush is not timed."""
    send, loop, ident, payload, size = lib.pl_conn_send, pair.loop, pair.id, LINE[:-1], 63
    start = time.perf_counter_ns()
    for _ in range(COUNT):
        send(loop, ident, payload, size)
    spent = time.perf_counter_ns() - start
    check(lib.pl_loop_tick(pair.loop, 0))
    pair.empty_peer()
    return spent / COUNT


def time_events(pair: Pair) -> float:
    """Walk batches of COUNT lines as dispatch does: every message becomes bytes."""
    pair.peer.sendall(LINE * COUNT)
    seen = spent = 0
    while seen < COUNT:
        count = check(lib.pl_loop_tick(pair.loop, 1_000_000_000))
        start = time.perf_counter_ns()
        for kind, _slot, data, end in EVENT.iter_unpack(pair.view[: count * EVENT.size]):
            if kind == lib.PL_EV_MESSAGE:
                MEMORY[data:end]
                seen += 1
        spent += time.perf_counter_ns() - start
    return spent / COUNT


def time_tick_cut(pair: Pair) -> float:
    """Receive and cut COUNT lines inside ticks: C only, system calls included."""
    pair.peer.sendall(LINE * COUNT)
    seen = 0
    start = time.perf_counter_ns()
    while seen < COUNT:
        seen += check(lib.pl_loop_tick(pair.loop, 1_000_000_000))
    return (time.perf_counter_ns() - start) / COUNT


def time_reader(pair: Pair) -> float:
    """Cut COUNT lines with pl_reader_next: one cffi call per message."""
    reader, framing = lib.pl_reader_new(), lines_framing()
    data, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
    check(lib.pl_reader_feed(reader, LINE * COUNT, COUNT * len(LINE)))
    start = time.perf_counter_ns()
    while lib.pl_reader_next(reader, framing, data, size) == 1:
        pass
    spent = time.perf_counter_ns() - start
    lib.pl_reader_free(reader)
    return spent / COUNT


def time_idle_tick(pair: Pair) -> float:
    """A tick that finds nothing: the fixed cost of a turn, one system call in it."""
    start = time.perf_counter_ns()
    for _ in range(COUNT):
        lib.pl_loop_tick(pair.loop, 0)
    return (time.perf_counter_ns() - start) / COUNT


BENCHES: dict[str, Callable[[Pair], float]] = {
    "send of a 63-byte line, through cffi": time_send,
    "event out of a batch, with its bytes": time_events,
    "receive and cut a 64-byte line, in C": time_tick_cut,
    "pl_reader_next of a 64-byte line": time_reader,
    "tick that finds nothing": time_idle_tick,
}


def main() -> None:
    for name, backend in (
        ("select", lib.PL_SELECT),
        ("poll", lib.PL_POLL),
        ("epoll", lib.PL_EPOLL),
    ):
        pair = Pair(backend)
        print(f"{name}:")
        for title, bench in BENCHES.items():
            best = min(bench(pair) for _ in range(RUNS))
            print(f"  {best:8.1f} ns  {title}")
        lib.pl_loop_free(pair.loop)
        pair.peer.close()


if __name__ == "__main__":
    main()
