"""The load generator of the benchmarks counts right, and verifies what comes back."""

from __future__ import annotations

import functools
import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import TIMEOUT, Child, compile_load

ECHO = """if True:
    from faults import echo, serve
    serve(echo, "auto")
"""
# Parent accepts, a child computes, echoes and says what it used; the parent reaps it.
FORKING = """if True:
    import os, socket, sys, time
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        conn, _ = listener.accept()
        if pid := os.fork():
            conn.close()
            os.waitpid(pid, 0)
            continue
        while time.process_time() < 0.03:
            pass
        while data := conn.recv(4096):
            conn.sendall(data)
        os.write(1, b"%d\\n" % (time.process_time() * 1e6))
        os._exit(0)
"""
TICK_US = 20_000  # /proc/PID/stat has user and system time in steps of 10 ms each
CHURN = 12


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


def generate(load: Path, *args: object) -> dict[str, Any]:
    command = [str(load), "--json", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def forking_server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_children_that_came_and_went_are_counted(load: Path) -> None:
    with forking_server() as (process, port):
        churn = ("--port", port, "--churn", CHURN, "--connections", 4, "--pid", process.pid)
        alone = generate(load, *churn)["server_cpu_us"]
        assert process.stdout is not None
        for _ in range(CHURN):
            process.stdout.readline()
        family = generate(load, *churn, "--children")["server_cpu_us"]
        used = sum(int(process.stdout.readline()) for _ in range(CHURN))
    assert used >= CHURN * 30_000
    assert used - TICK_US <= family < used * 1.5
    assert alone < used / 2


def test_connections_take_the_ports_in_turn(load: Path) -> None:
    with Child(ECHO) as one, Child(ECHO) as other:
        ports = [child.next()["port"] for child in (one, other)]
        both = ("--framing", "lines", "--port", ports[0], "--port", ports[1])
        generate(load, *both, "--churn", 11)
        assert [child.ask("stats")["accepted"] for child in (one, other)] == [6, 5]


def test_more_ports_than_fit_are_an_error(load: Path) -> None:
    command = [str(load), *["--port", "1"] * 9]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (2, "load: at most 8 --port\n")


def test_slices_of_a_file_are_verified(load: Path, tmp_path: Path) -> None:
    script = """if True:
        import struct, sys, faults, pyloop
        def answer(conn, request):
            offset, length = struct.unpack("!II", request)
            conn.write(open(sys.argv[1], "rb").read()[offset:][:length])
        faults.serve(answer, "auto", framing=pyloop.FixedSize(8))
    """
    path = tmp_path / "ring"
    with Child(script, str(path)) as child:
        port = child.next()["port"]
        asked = ("--port", port, "--file", path, "--size", 1000, "--connections", 3)
        report = generate(load, *asked, "--inflight", 4, "--messages", 200)
        assert report["messages"] >= 200
        assert path.stat().st_size == 65 * 1000
        path.write_bytes(bytes(65_000))  # not what the next run is going to ask for
        with pytest.raises(AssertionError, match="an echo differs from what was sent"):
            generate(load, *asked, "--size", 999, "--file", tmp_path / "other", "--messages", 1)
    command = [str(load), "--port", "1", "--file", str(path), "--framing", "lines"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    said = "load: --file goes with --framing raw, and without --pieces\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_silent_churn_counts_connections_that_the_server_ends(load: Path) -> None:
    with Child(ECHO) as child:
        port = child.next()["port"]
        report = generate(load, "--port", port, "--churn", 11, "--silent", "--connections", 3)
        assert child.ask("stats")["accepted"] == 11
    assert (report["messages"], report["bytes"], report["errors"]) == (11, 0, 0)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--silent"], "--silent goes with --churn, and without --tls"),
        (["--tls", "x", "--file", "y"], "--tls goes without --udp and --file"),
        (["--tls", "x"], "built without OpenSSL, so there is no --tls"),
    ],
)
def test_what_does_not_go_together_is_said(load: Path, args: list[str], said: str) -> None:
    done = subprocess.run(
        [load, "--port", "1", *args], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stderr) == (2, f"load: {said}\n")


# ---- datagrams ----


class Datagrams:
    """A thread that answers datagrams as `answer(number, data, send)` does."""

    def __init__(self, answer: Callable[[int, bytes, Callable[[bytes], object]], None]) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self) -> int:
        self.thread.start()
        return self.sock.getsockname()[1]

    def __exit__(self, *exc: object) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.sendto(b"", self.sock.getsockname())
        self.thread.join(TIMEOUT)
        self.sock.close()

    def serve(self) -> None:
        for number in itertools.count(1):
            data, peer = self.sock.recvfrom(65536)
            if not data:
                return
            self.answer(number, data, lambda answer, to=peer: self.sock.sendto(answer, to))


def test_datagrams_that_are_lost_or_late_are_counted_and_replaced(load: Path) -> None:
    late: list[Callable[[], object]] = []

    def answer(number: int, data: bytes, send: Callable[[bytes], object]) -> None:
        if number % 7 == 0:
            return
        if number % 7 == 3:
            late.append(functools.partial(send, data))
            return
        send(data)
        while number % 7 == 6 and late:
            late.pop()()

    with Datagrams(answer) as port:
        asked = ("--udp", "--port", port, "--connections", 3, "--inflight", 4, "--size", 64)
        report = generate(load, *asked, "--messages", 500)
    assert report["messages"] >= 500
    assert report["verified_bytes"] >= 500 * 64
    assert report["datagrams_lost"] >= 500 / 7
    assert (report["errors"], report["lost"]) == (0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        lambda number, data, send: (send(data), send(data)),
        lambda number, data, send: send(data[:-1]),
        lambda number, data, send: send(data[:8] + data[:7:-1]),
        lambda number, data, send: send(bytes(8) + data[8:]),
    ],
    ids=["doubled", "cut off", "other bytes", "other number"],
)
def test_datagram_that_nobody_sent_is_an_error(load: Path, answer: Any) -> None:
    with Datagrams(answer) as port:
        asked = ("--udp", "--port", port, "--connections", 2, "--messages", 10)
        with pytest.raises(AssertionError, match="an echo differs from what was sent"):
            generate(load, *asked)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--churn", "1"],
            "--udp goes with --port, and without --framing, --pieces, --file, --hold and --churn",
        ),
        (["--size", "7"], "--size 7 does not fit a datagram: 8 to 65507 bytes"),
    ],
)
def test_what_datagrams_cannot_do_is_said(load: Path, args: list[str], said: str) -> None:
    command = [str(load), "--udp", "--port", "1", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (2, f"load: {said}\n")
