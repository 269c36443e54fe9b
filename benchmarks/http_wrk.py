"""Web servers under wrk, Debian's HTTP load generator, which is none of ours.

What a request costs is the CPU time of the server's process (all threads), read before and after
wrk runs, over the requests that wrk counted. wrk counts in whole seconds; it has one thread, and so
many connections that stay open.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import measure
import tools
from row import Peer, Row

PATIENCE_SECONDS = 20  # beyond what wrk was told


def cpu_ns(pid: int) -> int:
    """CPU time of a process: clock_getcpuclockid(3) makes the clock's number so."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def delay_ns(pid: int) -> int:
    """What its main thread has waited for a CPU that others had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def run_wrk(port: int, connections: int, seconds: int) -> str:
    """Return what wrk tells; an answer that is no success is an error. It has the CPU of run.py."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--duration", f"{seconds}s", f"http://127.0.0.1:{port}/"]
    patience = seconds + PATIENCE_SECONDS
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    if done.returncode or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise measure.PeerFailed(f"wrk: {done.stdout} {done.stderr}")
    return done.stdout


def parse(told: str) -> dict[str, float]:
    """Take requests, seconds and the 99th percentile out of wrk's text."""
    requests, seconds = re.search(r"(\d+) requests in ([\d.]+)s", told).groups()
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", told).groups()
    p99_us = float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
    return {"messages": int(requests), "seconds": float(seconds), "p99_us": p99_us}


def sample(
    row: Row, peer: Peer, packages: tools.Packages, cpus: tools.Cpus, times: dict[str, float]
) -> dict[str, float]:
    """Measure CPU time per request."""
    seconds = max(1, round(times["seconds"]))
    connections = row.load_for(peer)["connections"]
    server, port = measure.start_server(peer, row, packages, {cpus.server})
    with server:
        pid = server.process.pid
        run_wrk(port, connections, 1)  # to warm up: wrk knows no less
        spent, waited = cpu_ns(pid), delay_ns(pid)
        found = parse(run_wrk(port, connections, seconds))
        spent, waited = cpu_ns(pid) - spent, delay_ns(pid) - waited
    if not found["messages"]:
        raise measure.PeerFailed("no request was answered")
    found["messages_per_s"] = found["messages"] / found["seconds"]
    found["cost"] = spent / 1e3 / found["messages"]
    found["busy"] = spent / 1e9 / found["seconds"]
    found["disturbed"] = waited / 1e9 / found["seconds"]
    return found
