"""A server on all cores: each worker is a process, and a supervisor keeps them running.

    python examples/workers.py
    nc 127.0.0.1 8888

Each line is answered with the worker that got it. Then hurt it from another terminal, with the
supervisor's pid that it printed, and watch what it logs:

    kill -HUP PID       replaces the workers one by one, and breaks no conversation
    kill -TTIN PID      one worker more; -TTOU: one less
    kill -9 WORKER      is started again; `spin` instead of a line makes a worker hang
    kill PID            ends it in good order, as Ctrl-C does
"""

from __future__ import annotations

import argparse
import logging
import os

import pyloop


def answer(conn: pyloop.Connection, line: bytes) -> None:
    """Runs in a worker, as all handlers do."""
    while line == b"spin":
        pass  # until the supervisor finds that this loop does not turn
    stats = server.stats()  # of all workers together
    who = f"worker {server.worker_id} (pid {os.getpid()}), of {len(stats.workers)}"
    conn.send(f"{who}: {stats.messages_in} lines so far".encode())


def announce(server: pyloop.Server, worker_id: int) -> None:
    """Runs in the supervisor, whenever a worker is ready."""
    where = f"127.0.0.1:{server.port}"
    print(f"worker {worker_id} serves on {where}; the supervisor is {os.getpid()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A server on all cores.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    parser.add_argument("--workers", type=int, default=0, help="0: one for each core")
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    server = pyloop.Server(
        answer,
        port=args.port,
        framing=pyloop.Lines(),
        workers=args.workers or "auto",
        worker_timeout=5,
        on_worker_start=announce,
    )
    pyloop.run(server)
