"""`python -m pyloop serve` in a process of its own, over modules that a test writes.

    with Command(tmp_path, "app:server", app=SOURCE) as command:
        command.wait_for("worker 1 .* is ready")
        command.ask(b"pid")
        assert command.stop() == 0

What it writes to stderr is in a file: `log()` reads it, `wait_for` waits until a pattern is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyloop

TIMEOUT = 60.0
LOOK = 0.02

APP = """if True:
    import os, pyloop

    def answer(conn, line):
        if line == b"pid":
            conn.send(b"%d" % os.getpid())
        elif line == b"worker":
            conn.send(b"%d" % conn.server.worker_id)
        else:
            conn.send(repr(eval(line)).encode())

    server = pyloop.Server(answer, framing=pyloop.Lines(){options})
"""
"""A server that says its pid, its worker's number, or the value of a Python expression."""


SLOW = """if True:
    import os, time
    open('importing', 'a').write('%d\\n' % os.getpid())
    while not os.path.exists('go'):
        time.sleep(0.02)
"""
"""To put in front of APP: its import goes on once there is a file `go`."""


IN_A_WORKER = 'import sys\nif \'"task": "work"\' in sys.orig_argv[-1]:\n'
"""To put in front of an indented block: it runs in workers, and not where they are described."""


def app(options: str = "") -> str:
    """The source of APP with more arguments of Server."""
    return APP.format(options=options and f", {options}")


def write(directory: Path, name: str, source: str) -> None:
    """Write a module in one step."""
    new = directory / f"{name}.new"
    new.write_text(source)
    new.rename(directory / f"{name}.py")


def until(condition: Callable[[], object]) -> None:
    """Look until `condition()` holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(LOOK)


def is_alive(pid: int) -> bool:
    """Does a process run, or is it at least not yet a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> dict[int, str]:
    """The living children of a process, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if stat[0] != "Z" and int(stat[1]) == pid:
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    return found


class Command:
    """The command, running in `directory`, where `modules` have been written."""

    program = ("pyloop", "serve")
    says_where = r"listening on [\w.]+:(\d+),"

    def __init__(
        self, directory: Path, *args: str, env: dict[str, str] | None = None, **modules: str
    ) -> None:
        self.directory = directory
        for name, source in modules.items():
            write(directory, name, source)
        environment = {k: v for k, v in os.environ.items() if k != "PYLOOP_BACKEND"}
        # A module rewritten in the second it was compiled in would be taken for the old one.
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        self._errors = directory / "stderr"
        with self._errors.open("wb") as errors, (directory / "stdout").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.program, *args],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def log(self) -> str:
        return self._errors.read_text()

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern is in the log so many times; return the last match."""
        end = time.monotonic() + TIMEOUT
        while len(found := list(re.finditer(pattern, self.log()))) < count:
            ended = self.process.poll() is not None and self.process.returncode
            if ended is not False or time.monotonic() > end:
                found = list(re.finditer(pattern, self.log()))
                assert len(found) >= count, f"{pattern!r} x {count} not in:\n{self.log()}"
                break
            time.sleep(LOOK)
        return found[count - 1]

    def ready(self, workers: int = 1) -> Command:
        """Wait until so many workers have become ready."""
        self.wait_for(r"worker \d+ \(pid \d+\) is ready", workers)
        return self

    @property
    def port(self) -> int:
        return int(self.wait_for(self.says_where)[1])

    def dial(self) -> pyloop.BlockingConnection:
        return pyloop.dial("127.0.0.1", self.port, framing=pyloop.Lines(1 << 20), timeout=TIMEOUT)

    def ask(self, question: bytes) -> bytes:
        """Send a line on a new connection; return the answer."""
        with self.dial() as conn:
            conn.send(question)
            answer = conn.receive()
            assert answer is not None
            return answer

    def write(self, name: str, source: str) -> None:
        write(self.directory, name, source)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def reload(self) -> None:
        self.signal(signal.SIGHUP)

    def finish(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(TIMEOUT)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.finish()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            left = [*children(self.pid), self.pid]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(TIMEOUT)


def importing(command: Command) -> list[int]:
    """The pids that have begun to import SLOW."""
    path = command.directory / "importing"
    return [int(pid) for pid in path.read_text().splitlines()] if path.exists() else []


def inodes(pid: int) -> set[str]:
    """What the fds of a process refer to, as far as that has a name of its own."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(entry))
    return {name for name in found if not name.startswith("anon_inode:")}


def listeners(port: int) -> set[str]:
    """The names of the TCP sockets that listen on a port of 127.0.0.1."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"
    return {f"socket:[{fields[9]}]" for fields in lines if fields[1] == here and fields[3] == "0A"}
