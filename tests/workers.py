"""A server program with workers in processes of its own, and the clients that load it.

    with Program(SOURCE, backend) as program:
        port = program.ready(2)  # both workers are
        program.signal(signal.SIGHUP)
        program.wait_log("reloaded 2 workers")

SOURCE finds in its namespace: `serve(handler=talk, **options)`, which runs a Server of lines with
two workers and a `ready` line per worker, `talk`, `say`, and the modules it is likely to need.
`talk` answers "pid" with its process's and everything else with itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
HERE = Path(__file__).resolve().parent

PRELUDE = """
import asyncio, logging, os, random, signal, socket, sys, time
import pyloop

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def talk(conn, line):
    conn.send(str(os.getpid()).encode() if line == b"pid" else line)

def is_ready(server, worker_id):
    say("ready", worker_id, server.port)

def server_of(handler=talk, **options):
    settings = dict(framing=pyloop.Lines(), workers=2, on_worker_start=is_ready) | options
    return pyloop.Server(handler, **settings)

def serve(handler=talk, **options):
    pyloop.run(server_of(handler, **options))
"""


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Return what `condition` says once that is true; AssertionError if it never is."""
    end = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < end, f"never came: {what or condition}"
        time.sleep(0.01)
    return value


def rounds(count: int, seconds: float = 0.0) -> Iterator[int]:
    """Yield 0, 1, 2, ... `count` times at least, and for as long as that."""
    end = time.monotonic() + seconds
    number = 0
    while number < count or time.monotonic() < end:
        yield number
        number += 1


def children_of(pid: int) -> dict[int, str]:
    """Return the children of a process, and the state of each: Z is a zombie. Source: proc(5)."""
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid:
                found[int(entry)] = state
    return found


def is_alive(pid: int) -> bool:
    """Does the process run, or is it at most a zombie?"""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def fds_of(pid: int) -> list[str]:
    """Return what the fds of a process refer to, sorted: "socket:[INODE]" for a socket."""
    folder = f"/proc/{pid}/fd"
    links = []
    for entry in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{folder}/{entry}"))
    return sorted(links)


class Program:
    """A program in a session of its own, which ends with the block, workers and all."""

    def __init__(self, source: str, backend: str = "auto", *args: str, **popen: Any) -> None:
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 -- closed by __exit__
        self._seen = b""
        env = {**os.environ, "PYLOOP_BACKEND": backend, **popen.pop("env", {})}
        prefix = popen.pop("prefix", ())  # a command that runs another one in other surroundings
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PRELUDE + textwrap.dedent(source), *args],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
            **popen,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # a session of ours: nobody else is in it
        self.process.wait()
        self._stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self.process.pid

    def line(self) -> str:
        """Return the next line that any of its processes printed."""
        line = self._stdout.readline().decode().strip()
        assert line, f"the program ended: {self.process.poll()}\n{self.log()}"
        return line

    def ready(self, count: int = 2) -> int:
        """Wait for so many workers to be ready. Returns the port."""
        for _ in range(count):
            word, _, port = self.line().split()
            assert word == "ready"
        return int(port) if port != "None" else 0

    def log(self) -> str:
        """Return what was logged so far."""
        self._seen += os.pread(self._log.fileno(), 1 << 24, len(self._seen))
        return self._seen.decode()

    def wait_log(self, pattern: str, count: int = 1) -> list[Any]:
        """Wait until a pattern was logged so often. Returns re.findall's answer."""

        def found() -> list[Any]:
            matches = re.findall(pattern, self.log())
            return matches if len(matches) >= count else []

        try:
            return list(eventually(found, pattern))
        except AssertionError as exc:
            raise AssertionError(f"{exc}; the log:\n{self.log()}") from None

    def workers(self) -> dict[int, int]:
        """Return the pid of each worker's newest process that said it is ready, and lives."""
        said = re.findall(r"worker (\d+) \(pid (\d+)\) is ready", self.log())
        newest = {int(number): int(pid) for number, pid in said}
        return {number: pid for number, pid in newest.items() if is_alive(pid)}

    def signal(self, *numbers: int) -> None:
        """Send signals to the supervisor."""
        for number in numbers:
            self.process.send_signal(number)

    def end(self, *numbers: int, wait_output: bool = True) -> tuple[int, str]:
        """Send signals, wait for the end. Returns the exit status and what was printed."""
        self.signal(*numbers)
        out = self._stdout.read().decode() if wait_output else ""
        status = self.process.wait(TIMEOUT)
        return status, out


def connect(port: int, path: str | None = None) -> socket.socket:
    """Return a blocking client of a server."""
    if path is None:
        return socket.create_connection(("127.0.0.1", port), TIMEOUT)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect("\0" + path[1:] if path[0] == "@" else path)
    return sock


class Talker:
    """One conversation: `ask` sends a line and returns the next one that comes."""

    def __init__(self, port: int, path: str | None = None) -> None:
        self.sock = connect(port, path)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def ask(self, line: str) -> str:
        """Raises EOFError at the end of stream, ConnectionError when it is cut off."""
        self.send(line)
        return self.next()

    def send(self, line: str) -> None:
        self.sock.sendall(line.encode() + b"\n")

    def next(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError(line)
        return line[:-1].decode()

    def pid(self) -> int:
        """The worker that serves this one."""
        return int(self.ask("pid"))


class Broken(Exception):
    """A conversation that did not end as its client wanted."""

    def __init__(self, pid: int, since: float, cause: Exception) -> None:
        super().__init__(f"worker process {pid}: {cause!r}")
        self.pid, self.since, self.cause = pid, since, cause
        self.until = time.monotonic()


class Load:
    """Clients in threads, each with one short conversation after another until the block ends.

    Attributes:
        done: conversations that went as they should.
        broken: those that did not, a refused connection included; pid 0 if it was never told.
        served: conversations per worker process.
    """

    def __init__(
        self, port: int, clients: int = 4, messages: int = 10, path: str | None = None
    ) -> None:
        self._where = port, path
        self._messages = messages
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._lock = threading.Lock()
        self.done = 0
        self.broken: list[Broken] = []
        self.served: dict[int, int] = {}

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every conversation come to its end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
            assert not thread.is_alive(), "a client waits for ever"

    def wait_more(self, count: int) -> None:
        """Wait until so many conversations more are done."""
        aim = self.done + count
        eventually(lambda: self.done >= aim, f"{aim} conversations; broken: {self.broken[-3:]}")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                pid = self._talk()
            except Broken as exc:
                self.broken.append(exc)
                time.sleep(0.01)  # a server that refuses all is not to fill the list
            else:
                with self._lock:
                    self.done += 1
                    self.served[pid] = self.served.get(pid, 0) + 1

    def _talk(self) -> int:
        pid, since = 0, time.monotonic()
        try:
            with Talker(*self._where) as talker:
                pid = talker.pid()
                for number in range(self._messages):
                    reply = talker.ask(f"message {number}")
                    if reply != f"message {number}":
                        raise ValueError(f"message {number} was answered with {reply!r}")
        except (OSError, EOFError, ValueError) as exc:
            raise Broken(pid, since, exc) from None
        return pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stand still, within a block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
