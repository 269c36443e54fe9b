"""The examples as their readers run them: processes, real clients, Ctrl-C. For the chat see
test_chat.py, for the select loop test_example_lowlevel.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyloop

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SECONDS = 60


class Example:
    """A running example: its process, the line it began with, the port in that line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        self.greeting = process.stdout.readline()
        found = re.search(r" on 127\.0\.0\.1:(\d+)", self.greeting)
        assert found, (self.greeting, process.stderr and process.stderr.read())
        self.port = int(found[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C: exit status, the rest of its output, its errors."""
        self.process.send_signal(signal.SIGINT)
        return self.finish()

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end; the same."""
        assert self.process.stdout
        assert self.process.stderr
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(SECONDS), out, err


def command(name: str, *args: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *args]


def environment(backend: str | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return env | ({"PYLOOP_BACKEND": backend} if backend else {})


@contextlib.contextmanager
def running(
    name: str,
    backend: str | None = None,
    stdin: Any = subprocess.DEVNULL,
    wrap: tuple[str, ...] = (),
    args: tuple[str, ...] = (),
) -> Iterator[Example]:
    """Run an example on a free port; `wrap` is a command that runs it."""
    with subprocess.Popen(
        [*wrap, *command(name, "--port", "0", *args)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(backend),
    ) as process:
        try:
            yield Example(process)
        finally:
            process.kill()


def talk(example: Example, sent: bytes) -> bytes:
    """Send all, then end of stream; return all that comes back."""
    with example.connect() as conn:
        conn.sendall(sent)
        conn.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: conn.recv(65536), b""))


def bind(port: int) -> None:
    """Take a port as a server does; fails while somebody listens on it."""
    socket.create_server(("127.0.0.1", port)).close()


# ---- all of them ----


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines < {"chat.py": 160, "chat_roll.py": 100}.get(path.name, 60)


@pytest.mark.parametrize(
    "name", ["echo.py", "chat.py", "rpc_server.py", "await_asyncio.py", "guess.py"]
)
def test_ctrl_c_ends_an_idle_example_and_frees_its_port(name: str, backend: str) -> None:
    with running(name, backend) as example:
        status, _, err = example.interrupt()
        assert (status, err) == (0, "")
        bind(example.port)


# ---- echo ----


def test_echo_returns_every_byte(backend: str) -> None:
    sent = bytes(range(256)) * 4096
    with running("echo.py", backend) as example:
        port = example.port
        assert example.greeting == (f"echo server on 127.0.0.1:{port}; try: nc 127.0.0.1 {port}\n")
        with example.connect() as conn:
            returned = bytearray()
            for start in range(0, len(sent), 65536):
                conn.sendall(sent[start : start + 65536])
                while len(returned) < start + 65536:
                    returned += conn.recv(65536)
        assert returned == sent
        assert talk(example, b"no newline, \r\n, \r\r\n") == b"no newline, \r\n, \r\r\n"
        assert example.interrupt() == (0, "", "")


# ---- rpc ----


def ask(conn: Any, *requests: Any) -> None:
    for request in requests:
        conn.send(json.dumps(request).encode())


def dial(example: Example) -> pyloop.BlockingConnection:
    framing = pyloop.LengthPrefixed()
    return pyloop.dial("127.0.0.1", example.port, framing=framing, timeout=SECONDS)


def test_rpc_client_gets_all_replies_in_both_versions(backend: str) -> None:
    with running("rpc_server.py", backend) as example:
        done = subprocess.run(
            command("rpc_client.py", "--port", str(example.port)),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(backend),
        )
        assert (done.returncode, done.stderr) == (0, "")
        *blocking, last = done.stdout.splitlines()[:3]
        assert sorted(blocking) == [
            '{"id": 1, "result": 5}',
            '{"id": 2, "error": "KeyError: \'no\'"}',
        ]
        assert last == '{"id": 0, "result": null}'  # it slept, and held up nobody
        assert done.stdout.splitlines()[3:] == [str(2 * n) for n in range(10)]
        assert example.interrupt() == (0, "", "")


def test_rpc_slow_call_is_overtaken(backend: str) -> None:
    with running("rpc_server.py", backend) as example, dial(example) as conn:
        ask(conn, {"id": "slow", "method": "sleep", "params": [0.3]})
        ask(conn, *({"id": n, "method": "add", "params": [n, 1]} for n in range(50)))
        conn.close_writing()
        replies = [json.loads(message) for message in conn]
        assert replies[:-1] == [{"id": n, "result": n + 1} for n in range(50)]
        assert replies[-1] == {"id": "slow", "result": None}


BAD_REQUESTS = {
    b"not json": (None, "JSONDecodeError: Expecting value"),
    b"[]": (None, "TypeError: list indices must be integers"),
    b'{"id": 1}': (1, "KeyError: 'method'"),
    b'{"id": 2, "method": "add", "params": [1]}': (2, "TypeError: "),
    b'{"id": 3, "method": "sleep", "params": ["x"]}': (3, "TypeError: '<' not supported"),
}


@pytest.mark.parametrize("request_bytes", BAD_REQUESTS, ids=bytes.decode)
def test_rpc_bad_request_is_answered_and_harms_nobody(request_bytes: bytes) -> None:
    number, error = BAD_REQUESTS[request_bytes]
    with running("rpc_server.py") as example:
        with dial(example) as conn:
            conn.send(request_bytes)
            reply = json.loads(conn.receive() or b"")
            assert reply["id"] == number
            assert reply["error"].startswith(error)
            ask(conn, {"id": 9, "method": "add", "params": [1, 1]})
            assert json.loads(conn.receive() or b"") == {"id": 9, "result": 2}
        assert example.interrupt() == (0, "", "")


def test_rpc_client_that_resets_leaves_no_error_behind() -> None:
    with running("rpc_server.py") as example:
        with dial(example) as conn:
            ask(conn, {"id": 0, "method": "sleep", "params": [10]})
            ask(conn, {"id": 1, "method": "add", "params": [1, 1]})
            assert json.loads(conn.receive() or b"") == {"id": 1, "result": 2}
            conn.abort()
        with dial(example) as other:
            ask(other, {"id": 2, "method": "add", "params": [2, 2]})
            assert json.loads(other.receive() or b"") == {"id": 2, "result": 4}
        assert example.interrupt() == (0, "", "")


def test_rpc_request_over_its_limit_ends_that_connection_only() -> None:
    with running("rpc_server.py") as example, dial(example) as good:
        with example.connect() as bad:
            bad.sendall((65537).to_bytes(4, "big"))
            assert bad.recv(1) == b""
        ask(good, {"id": 1, "method": "add", "params": [1, 1]})
        assert json.loads(good.receive() or b"") == {"id": 1, "result": 2}


# ---- asyncio beside pyloop ----


def test_await_asyncio_runs_a_thread_and_a_program(backend: str) -> None:
    digest = hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 100_000).hex().encode()
    with running("await_asyncio.py", backend) as example:
        assert talk(example, b"hash secret\nsort c  a b\r\nwhat\n") == (
            digest + b"\na b c\ncommands: hash, sort\n"
        )
        assert example.interrupt() == (0, "", "")


def test_await_asyncio_serves_others_while_one_waits() -> None:
    with running("await_asyncio.py") as example:
        conns = [example.connect() for _ in range(10)]
        for number, conn in enumerate(conns):
            conn.sendall(b"sort z %d\n" % number)
        for number, conn in enumerate(conns):
            with conn, conn.makefile("rb") as stream:
                assert stream.readline() == b"%d z\n" % number


# ---- a thread, a process for each client ----


def test_guess_is_found_by_halving_and_announced_to_the_others() -> None:
    with running("guess.py") as example:
        with example.connect() as player, example.connect() as other:
            with player.makefile("rb") as lines, other.makefile("rb") as others:
                assert lines.readline() == others.readline()  # both are asked
                player.sendall(b"what?\n")
                assert lines.readline() == b"* That is no number.\n"
                low, high, reply = 1, 100, b""
                while reply != b"* That is it!\n":
                    guess = (low + high) // 2
                    player.sendall(b"%d\n" % guess)
                    reply = lines.readline()
                    low = guess + 1 if b"greater" in reply else low
                    high = guess - 1 if b"less" in reply else high
                assert lines.readline().startswith(b"* Somebody has found it in ")
                assert lines.readline() == b""
                assert others.readline().startswith(b"* Somebody has found it in ")
        assert example.interrupt() == (0, "", "")


def test_sandbox_ends_who_asks_for_too_much_and_nobody_else() -> None:
    with running("sandbox.py") as example:
        with example.connect() as good:
            good.sendall(b"digits 1000\n")
            assert good.recv(100) == b"2568\n"
            assert talk(example, b"digits 2000000\n") == b""
            good.sendall(b"digits x\ndigits 10\n")
            with good.makefile("rb") as lines:
                assert (lines.readline(), lines.readline()) == (b"try: digits NUMBER\n", b"7\n")
        status, out, err = example.interrupt()
        assert (status, out, err) == (0, "2 clients, 1 of them ended by the kernel\n", "")


# ---- workers ----


def test_workers_say_who_answers_and_end_on_ctrl_c(backend: str) -> None:
    with running("workers.py", backend, args=("--workers", "2")) as example:
        example.line()  # the other one
        assert example.greeting.endswith(f"; the supervisor is {example.process.pid}\n")
        for number in range(1, 9):
            answer = talk(example, b"hello\n")
            assert re.fullmatch(
                rb"worker [12] \(pid \d+\), of 2: %d lines so far\n" % number, answer
            )
        status, _, err = example.interrupt()
        assert status == 0
        assert len(re.findall(r"worker \d \(pid \d+\) is ready", err)) == 2
        bind(example.port)


# ---- files ----


def get(conn: Any, name: str, *headers: str) -> tuple[int, bytes]:
    """Ask for a file on a buffered connection; return status and body."""
    lines = [f"GET /{name} HTTP/1.1", "Host: test", *headers, "", ""]
    conn.write("\r\n".join(lines).encode())
    conn.flush()
    status = int(conn.readline().split()[1])
    head = dict(line.split(": ", 1) for line in map(bytes.decode, iter(conn.readline, b"\r\n")))
    return status, conn.read(int(head["Content-Length"]))


def test_files_are_served_whole_and_in_parts(backend: str, tmp_path: Path) -> None:
    content = bytes(range(251)) * 9000
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "empty").touch()
    (tmp_path / "sub").mkdir()
    with running("files.py", backend, args=(str(tmp_path),)) as example:
        assert example.greeting == f"files of {tmp_path} on 127.0.0.1:{example.port}\n"
        with example.connect() as sock, sock.makefile("rwb") as conn:
            assert get(conn, "a.bin") == (200, content)
            assert get(conn, "a.bin", "Range: bytes=5000-6999") == (206, content[5000:7000])
            assert get(conn, "a.bin", "range: bytes=2258990-") == (206, content[2258990:])
            assert get(conn, "a.bin", "Range: bytes=9-99999999") == (206, content[9:])
            assert get(conn, "a.bin", f"Range: bytes={len(content)}-") == (416, b"")
            assert get(conn, "a.bin", "Range: bytes=5-4") == (416, b"")
            assert get(conn, "empty") == (200, b"")
            for name in ("none", "sub", "..", "", "sub/../a.bin"):
                assert get(conn, name) == (404, b"")
            assert get(conn, "a.bin", "Range: bytes=0-0") == (206, content[:1])
        assert example.interrupt()[::2] == (0, "")


# ---- memory that processes share ----


def test_counter_of_several_processes_is_exact() -> None:
    args = ("--processes", "3", "--times", "500")
    done = subprocess.run(
        command("counter.py", *args), capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.stdout, done.stderr) == ("3 processes counted to 1500\n", "")


# ---- channels ----


def test_consumer_gets_all_that_the_producer_puts() -> None:
    done = subprocess.run(
        command("producer.py", "3000"), capture_output=True, text=True, timeout=SECONDS
    )
    assert re.fullmatch(
        r"process \d+ puts 3000 messages\n"
        r"got 3000 messages, 70590 bytes; [\d,]+ messages a second\n",
        done.stdout,
    ), done.stderr


def test_consumer_ends_when_its_producer_is_killed() -> None:
    with subprocess.Popen(
        command("producer.py", "1000000000"), stdout=subprocess.PIPE, text=True
    ) as consumer:
        assert consumer.stdout
        os.kill(int(consumer.stdout.readline().split()[1]), signal.SIGKILL)
        assert re.match(r"got \d+ messages, ", consumer.stdout.readline())
        assert consumer.wait(SECONDS) == 0
