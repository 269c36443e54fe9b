"""Compute for strangers: a process for each client, with a limit to what it may use.

    python examples/sandbox.py
    printf 'digits 1000\n' | nc -N 127.0.0.1 8888      (how many digits 1000! has: 2568)

A client who asks for too much has his own process ended by the kernel, after a second of CPU or
at 512 MiB. The others are in other processes: they do not notice.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys

import pyloop

CPU_SECONDS = 1
MEMORY_BYTES = 512 << 20


def compute(conn: pyloop.BlockingConnection) -> None:
    """Answer one client. This process is his alone, so nothing here can harm anybody else."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.set_int_max_str_digits(0)
    for line in conn:
        try:
            order, number = line.split()
            if order != b"digits":
                raise ValueError(order)
            conn.send(b"%d" % len(str(math.factorial(int(number)))))
        except (ValueError, OverflowError, MemoryError):
            conn.send(b"try: digits NUMBER")


def announce(server: pyloop.Server) -> None:
    host, port = server.sockets[0].getsockname()[:2]
    print(f"sandbox on {host}:{port}; try: echo digits 1000 | nc -N {host} {port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Factorials, one process for each client.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    server = pyloop.Server(
        *(compute, args.host, args.port),
        framing=pyloop.Lines(200),
        model="fork",
        max_connections=64,
        on_start=announce,
    )
    pyloop.run(server)
    ended = server.stats().processes
    print(f"{ended.started} clients, {ended.killed} of them ended by the kernel")
