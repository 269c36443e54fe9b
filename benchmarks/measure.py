"""One sample: start a server, put load on it, read what it cost, stop it.

Every sample has a fresh server process, so that hash seeds, memory layout and what
an earlier sample left behind are part of the spread instead of a constant error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO

import tools
from row import Peer, Row

START_SECONDS = 20.0
SETTLE_SECONDS = 0.3
DISTURBED = 0.03  # of the window, server and generator together


class PeerFailed(Exception):
    """A server did not start or an echo was wrong; the text says which."""


class Child:
    """A process of ours on CPUs of our choice: a context manager that leaves none behind."""

    def __init__(
        self, command: list[str], cpus: Collection[int], env: dict[str, str] | None = None
    ) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second Ctrl-C while waiting leaves no child behind either
            if process.poll() is None:
                process.kill()
                process.wait()
        process.stdin.close()
        process.stdout.close()
        self.errors.close()

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()[-2000:]

    def line(self, timeout: float) -> str:
        """Its next line on stdout; PeerFailed when none comes."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        text = self.process.stdout.readline().decode().strip() if ready else ""
        if not text:
            raise PeerFailed(f"it said nothing within {timeout:.0f} s. {self.said()}")
        return text


def start_server(
    peer: Peer, row: Row, packages: tools.Packages, cpus: Collection[int]
) -> tuple[Child, int]:
    """Start `peer`'s server. The child and its port."""
    packages = packages.of(peer)
    command = peer.command(packages.python, row.load_for(peer).get("framing"))
    if row.compute_us:
        command += ["--work", str(packages.steps_for(row.compute_us))]
    child = Child(command, cpus, packages.env | peer.env)
    try:
        word, port = child.line(START_SECONDS).split()
        if word != "listening":
            raise PeerFailed(f"it said {word!r} instead of 'listening'")
        return child, int(port)
    except BaseException:
        child.__exit__()
        raise


def load_command(
    row: Row, peer: Peer, ports: Collection[int], times: dict[str, float]
) -> list[str]:
    """The generator's command line for this row and peer; an option that is True has no value."""
    command = [str(tools.BUILD / ("load_tls" if row.tls else "load")), "--json"]
    if row.tls:
        command += ["--tls", str(tools.CERTIFICATE)]
    for port in ports:
        command += ["--port", str(port)]
    for name, value in {**times, **row.load_for(peer)}.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return command


def cpu_sample(
    row: Row, peer: Peer, packages: tools.Packages, cpus: tools.Cpus, times: dict[str, float]
) -> dict[str, float]:
    """Measure CPU time per unit of work under load."""
    theirs, ours = ({cpus.server}, {cpus.generator}) if row.pinned else (cpus.usable, cpus.usable)
    servers: dict[int, Child] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(peer.copies):
            server, port = start_server(peer, row, packages, theirs)
            servers[port] = stack.enter_context(server)
        if peer.crowd:
            stack.enter_context(hold(load_command(row, peer, servers, {}), ours, peer.crowd))
        command = load_command(row, peer, servers, times)
        for server in servers.values():
            command += ["--pid", str(server.process.pid)]
        command += ["--children"] * peer.several
        generator = stack.enter_context(Child(command, ours))
        out = generator.process.stdout.read()
        if generator.process.wait() != 0:
            said = [child.said() for child in (generator, *servers.values())]
            raise PeerFailed(f"load generator: {' | '.join(said)}")
    sample = json.loads(out)
    work = sample["bytes"] / 2**20 if row.unit == "us/MiB" else sample["messages"]
    if not work:
        raise PeerFailed("no message came back within the window")
    sample["cost"] = sample["server_cpu_us"] / work
    sample["busy"] = sample["server_cpu_us"] / 1e6 / sample["seconds"]
    if row.pinned and not peer.several:
        waited = sample["server_delay_us"] + sample["client_delay_us"]
        sample["disturbed"] = waited / 1e6 / sample["seconds"]
    else:  # they wait for each other as well
        sample["disturbed"] = sample["others"]
    return sample


def rss_bytes(pid: int) -> int:
    """Resident memory from the page tables: /proc/PID/status is off by up to 256 KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise PeerFailed("no Rss in smaps_rollup")


def hold(command: list[str], cpus: Collection[int], connections: int) -> Child:
    """Start a generator, given its command line so far, that holds so many connections."""
    child = Child([*command, "--hold", "--connections", str(connections)], cpus)
    try:
        told = child.line(60)
        if told != f"ready held={connections} errors=0":
            raise PeerFailed(f"the generator said {told!r}. {child.said()}")
        return child
    except BaseException:
        child.__exit__()
        raise


def rss_sample(
    row: Row, peer: Peer, packages: tools.Packages, cpus: tools.Cpus, times: dict[str, float]
) -> dict[str, float]:
    """Measure resident memory per held connection, after a few that came and went."""
    held = row.hold
    server, port = start_server(peer, row, packages, {cpus.server})
    command = load_command(row, peer, [port], {})
    with server:
        pid = server.process.pid
        with hold(command, {cpus.generator}, 20):
            pass
        time.sleep(SETTLE_SECONDS)
        before = rss_bytes(pid)
        with hold(command, {cpus.generator}, held):
            time.sleep(SETTLE_SECONDS)
            after = rss_bytes(pid)
    return {"rss_before": before, "rss_after": after, "held": held, "cost": (after - before) / held}
