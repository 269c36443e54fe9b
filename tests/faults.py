"""Servers in a process of their own, which tests question, starve and let fail.

In the test:

    with Child(SCRIPT, backend, shim=shim, rules="accept4:EMFILE:every=3") as child:
        port = child.next()["port"]
        child.ask("stats")  # -> a dict

In the child, SCRIPT says `from faults import serve` and calls `serve(handler, backend)`: a server
whose loop answers the test's questions on stdin with a line of JSON on stdout. Or it does anything
else, and prints JSON with `say`.

Faults are injected by tests/shim/faults.c, an LD_PRELOAD shim that fails calls of the core only.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyloop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TIMEOUT = 60.0


def constant(name: str) -> int:
    """Return a number that csrc/loop.h or csrc/pyloop.h defines."""
    for header in ("loop.h", "pyloop.h", "pyloop_datagram.h"):
        text = (ROOT / "csrc" / header).read_text()
        if match := re.search(rf"#define {name} \(?([\du *]+)\)?", text):
            value = 1
            for factor in match[1].replace("u", "").split("*"):
                value *= int(factor)
            return value
    raise LookupError(name)


# ---- in the test ----


def skip(why: str) -> NoReturn:
    """Skip the test; the servers, which import this module too, start sooner without pytest."""
    import pytest

    pytest.skip(why)


def asan() -> bool:
    """Is this a run under ASan? Its malloc stands before the shim's, and keeps freed memory."""
    return "asan" in os.environ.get("LD_PRELOAD", "")


def compile_c(target: Path, sources: list[Path], *flags: str) -> Path:
    """Compile C sources into `target`; skip the test where there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or not compiler:
        skip("needs Linux and a C compiler")
    command = [*compiler.split(), "-std=c11", "-D_GNU_SOURCE", "-O1", *flags, "-o", str(target)]
    subprocess.run([*command, *map(str, sources), "-ldl"], check=True)
    return target


def compile_shim(directory: Path) -> Path:
    """Compile the LD_PRELOAD shim."""
    source = HERE / "shim" / "faults.c"
    return compile_c(directory / "faults.so", [source], "-shared", "-fPIC", "-Wall", "-Wextra")


def compile_load(directory: Path) -> Path:
    """Compile the load generator of benchmarks/, whose clients are cheap."""
    sources = sorted((ROOT / "benchmarks").glob("load*.c"))
    if not sources:
        skip("needs benchmarks/load.c")
    return compile_c(directory / "load", sources)


class Child:
    """A Python script in a process of its own; `next` and `ask` read the JSON that it prints."""

    def __init__(
        self, script: str, *args: str, shim: Path | None = None, rules: str = "", **popen: Any
    ) -> None:
        env = dict(os.environ)
        paths = [str(ROOT), str(HERE), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        env.pop("PYLOOP_BACKEND", None)
        if shim is not None:
            preload = [env.get("LD_PRELOAD", ""), str(shim)]  # libasan, if any, must be first
            env.update(LD_PRELOAD=":".join(filter(None, preload)), FAULTS_LIB=str(shim))
            env["FAULTS"] = rules
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by __exit__
        self._peers: list[Peer] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=env,
            **popen,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def next(self) -> Any:
        """Return the next line that the child printed, parsed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended: {self.process.wait(TIMEOUT)}\n{self.errors()}"
        return json.loads(line)

    def peer(self, port: int) -> Peer:
        """Return a client that is closed, at the latest, with the child."""
        self._peers.append(Peer(port))
        return self._peers[-1]

    def ask(self, command: str) -> Any:
        """Ask the server's loop: "stats", "rules SPEC", "count CALL", "fds", "stop"."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.next()

    def errors(self) -> str:
        """Return what the child wrote to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def finish(self) -> int:
        """Wait for the end of the child and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(TIMEOUT)

    def stop(self) -> None:
        """Close the peers and stop the server in good order."""
        for peer in self._peers:
            peer.close()  # else each closing connection waits for them, `linger` long
        self.ask("stop")
        status = self.finish()
        assert status == 0, f"exit status {status}\n{self.errors()}"

    def rss(self) -> int:
        """Return the resident bytes of the child."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if kind is not None:
            print(self.errors()[-10000:])  # shown by pytest beside the failure
        for peer in self._peers:
            peer.close()
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            if file is not None:
                try:
                    file.close()
                except BrokenPipeError:
                    pass
        self.process.wait(TIMEOUT)


def still_serves(child: Child, port: int, count: int = 10) -> bool:
    """Do `count` new peers get their echoes?"""
    peers = [child.peer(port) for _ in range(count)]
    answers = [peer.echo(b"new %d" % number) for number, peer in enumerate(peers)]
    for peer in peers:
        peer.close()
    return all(answers)


def wait_until(child: Child, field: str, value: int) -> None:
    """Ask for the server's stats until `field` is at `value`."""
    while child.ask("stats")[field] != value:
        pass


class Peer:
    """A client on a blocking socket."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._file = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        """Return the next line; b"" at end of stream."""
        return self._file.readline()

    def echo(self, line: bytes) -> bool:
        """Does `line` come back?"""
        self.send(line + b"\n")
        return self.line() == line + b"\n"

    def close(self) -> None:
        self._file.close()
        self.sock.close()


# ---- in the child ----


def say(**answer: Any) -> None:
    """Print one line of JSON for the test, in one piece whoever else prints."""
    os.write(1, (json.dumps(answer) + "\n").encode())


def shim_library() -> Any:
    """Return the shim that is preloaded into this process."""
    return ctypes.CDLL(os.environ["FAULTS_LIB"])


def open_fds() -> list[int]:
    """Return the numbers of this process's open fds."""
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    return sorted(fd for fd in fds if os.path.lexists(f"/proc/self/fd/{fd}"))


class LogTimes(logging.Handler):
    """Remember what was logged, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.monotonic(), record.getMessage()))


class _Control:
    """Answers questions that come on stdin, in the server's own loop."""

    def __init__(self, server: pyloop.Server, log: LogTimes) -> None:
        self.server, self.log, self.rest = server, log, b""
        self.loop: Any = asyncio.get_running_loop()
        self.loop.add_reader(0, self.readable)

    def readable(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self.loop.remove_reader(0)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            name, _, argument = line.decode().partition(" ")
            say(**getattr(self, "do_" + name)(*filter(None, [argument])))

    def do_stats(self) -> dict[str, Any]:
        stats = dataclasses.asdict(self.server.stats())
        loop = dataclasses.asdict(self.loop.stats())
        bytes_moved = {name: stats[name] for name in ("bytes_in", "bytes_out")}
        return {**stats, **loop, **bytes_moved, "log": self.log.lines}

    def do_rules(self, spec: str = "") -> dict[str, Any]:
        return {"rules": shim_library().faults_set(spec.encode())}

    def do_count(self, call: str) -> dict[str, Any]:
        count = shim_library().faults_count
        return {what: count(call.encode(), what.encode()) for what in ("calls", "failed", "bad")}

    def do_fds(self) -> dict[str, Any]:
        return {"fds": open_fds()}

    def do_stop(self) -> dict[str, Any]:
        self.task = self.loop.create_task(self.server.stop())
        return {}


class _Supervision(_Control):
    """The same in the supervisor of workers, whose stdin nobody else reads."""

    def do_stop(self) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}


def echo(conn: Any, message: bytes) -> None:
    """Send each message back."""
    conn.send(message)


def serve(
    handler: Any,
    backend: str,
    *,
    framing: Any = None,
    on_start: Callable[[], Any] = lambda: None,
    **options: Any,
) -> None:
    """Run a server, say its port and pid, and answer questions until told to stop.

    With workers it is the supervisor that answers, and `on_start` is not called.
    """
    log = LogTimes()
    logging.getLogger("pyloop").addHandler(log)

    async def started(server: pyloop.Server) -> None:
        _Control(server, log)
        if asyncio.iscoroutine(result := on_start()):
            await result
        say(port=server.port, pid=os.getpid())

    ready = set()

    def worker_started(server: pyloop.Server, worker_id: int) -> None:
        if worker_id in ready:
            return  # a successor
        ready.add(worker_id)
        if len(ready) == options["workers"]:
            _Supervision(server, log)
            say(port=server.port, pid=os.getpid())

    options |= (
        {"on_worker_start": worker_started} if "workers" in options else {"on_start": started}
    )
    framing = pyloop.Lines() if framing is None else framing
    pyloop.run(pyloop.Server(handler, framing=framing, **options), backend=backend)


def limit_fds(count: int) -> None:
    """Let this process have no more than `count` fds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
