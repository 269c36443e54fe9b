"""Standard input of a server with workers: worker 1 has it, and its successors after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from command import TIMEOUT
from workers import PRELUDE, Program, eventually

import pyloop

READER = """
def read(server):
    data = os.read(0, 100)
    if data:
        say(server.worker_id, data.decode().strip(), os.getpid())
    else:
        logging.info("worker %d read the end", server.worker_id)
        asyncio.get_running_loop().remove_reader(0)

def start(server):
    asyncio.get_running_loop().add_reader(0, read, server)

"""


@pytest.fixture
def typed():
    """Both ends of a pipe: what reads, and what types."""
    theirs, ours = os.pipe()
    with open(theirs, "rb") as reader, open(ours, "wb", buffering=0) as writer:
        yield reader, writer


def test_only_worker_1_has_it_and_so_has_its_successor(backend, typed):
    reader, keyboard = typed
    source = READER + "serve(on_start=start)"
    with Program(source, backend, stdin=reader) as program:
        program.ready()
        program.wait_log("worker 2 read the end")
        for line in (b"one", b"two"):
            pid = program.workers()[1]
            keyboard.write(line + b"\n")
            assert program.line() == f"1 {line.decode()} {pid}"
            os.kill(pid, signal.SIGKILL)
            program.ready(1)
        assert "worker 1 read the end" not in program.log()


def test_worker_that_retires_leaves_it_to_its_successor(backend, typed):
    reader, keyboard = typed
    source = READER + "serve(on_start=start, drain_timeout=60)"
    with Program(source, backend, stdin=reader) as program, contextlib.ExitStack() as stack:
        port = program.ready()
        old = program.workers()[1]
        for _ in range(64):  # so that the old ones stay
            stack.enter_context(pyloop.dial("127.0.0.1", port))
        program.signal(signal.SIGHUP)
        program.ready()
        program.wait_log("reloaded 2 workers")
        new = program.workers()[1]
        for number in range(20):
            keyboard.write(b"%d\n" % number)
            assert program.line() == f"1 {number} {new}"
        assert os.readlink(f"/proc/{old}/fd/0") == os.devnull
        assert "worker 1 read the end" not in program.log()


@contextlib.contextmanager
def printing(command, **popen):
    """A process, and the lines that it prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **popen) as process:
        try:
            yield process, process.stdout
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


def test_without_one_fd_0_is_left_alone():
    source = """
def tell(server):
    say("fd 0:", os.path.exists("/proc/self/fd/0") and os.readlink("/proc/self/fd/0"))
serve(on_start=tell)
"""
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", PRELUDE + source]
    with printing(command, stderr=subprocess.DEVNULL) as (_, lines):
        said = [line for line in (lines.readline() for _ in range(4)) if b"fd 0:" in line]
        assert len(said) == 2
        assert b"fd 0: /dev/null\n" not in said  # it may be a socket by now


SERVED = """
import asyncio, os, pyloop

def read(server):
    data = os.read(0, 100)
    os.write(1, b"%d %s\\n" % (server.worker_id, data.strip() or b"end"))
    if not data:
        asyncio.get_running_loop().remove_reader(0)

def start(server):
    asyncio.get_running_loop().add_reader(0, read, server)

if '"describe"' in os.sys.orig_argv[-1]:
    assert os.read(0, 1) == b""
server = pyloop.Server(print, workers=2, on_start=start)
"""


def test_interpreters_of_serve_have_it_alike(tmp_path, typed):
    reader, keyboard = typed
    (tmp_path / "app.py").write_text(SERVED)
    keyboard.write(b"early\n")  # for worker 1, and not for who describes
    path = tmp_path / "log"
    command = [sys.executable, "-m", "pyloop", "serve", "app:server"]
    with (
        path.open("w") as log,
        printing(command, cwd=tmp_path, stdin=reader, stderr=log) as (process, lines),
    ):
        assert sorted(lines.readline() for _ in range(2)) == [b"1 early\n", b"2 end\n"]
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "reloaded 2 workers" in path.read_text())
        assert lines.readline() == b"2 end\n"
        keyboard.write(b"later\n")
        assert lines.readline() == b"1 later\n"
