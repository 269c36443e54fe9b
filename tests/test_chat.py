"""examples/chat.py, the promise of `make run`: a hundred clients, an operator, Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from test_examples import SECONDS, Example, bind, command, environment, running
from workers import children_of, fds_of

CLIENTS = 100
END = "console closed (end of input); the server goes on\n"


class Client:
    """What somebody with nc is: a socket, read line by line."""

    def __init__(self, example: Example, nick: bytes) -> None:
        self.nick = nick
        self.conn = example.connect()
        self.stream = self.conn.makefile("rb")
        assert self.line() == b"* What is your nickname?\n"
        self.send(nick)
        self.welcome = self.line()
        assert self.welcome.startswith(b"* Welcome, %s. Others here: " % nick)

    def send(self, *lines: bytes) -> None:
        self.conn.sendall(b"".join(line + b"\n" for line in lines))

    def line(self) -> bytes:
        return self.stream.readline()

    def said(self) -> bytes:
        """The next line that is no notice."""
        while (line := self.line()).startswith(b"* "):
            pass
        return line

    def close(self) -> None:
        self.stream.close()
        self.conn.close()


@contextlib.contextmanager
def joined(example: Example, *nicks: bytes) -> Iterator[list[Client]]:
    """Clients that have joined in this order."""
    with contextlib.ExitStack() as stack:
        clients = []
        for nick in nicks:
            clients.append(Client(example, nick))
            stack.callback(clients[-1].close)
        yield clients


def nicks(count: int) -> list[bytes]:
    return [b"c%d" % number for number in range(count)]


def by_sender(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    senders: dict[bytes, list[bytes]] = {}
    for line in lines:
        nick, _, text = line.rstrip(b"\n").partition(b": ")
        senders.setdefault(nick, []).append(text)
    return senders


def workers_of(example: Example) -> list[int]:
    """The pids of worker 1 and worker 2, as they were started."""
    return sorted(children_of(example.process.pid))


def sockets_of(pid: int) -> int:
    return sum(fd.startswith("socket") for fd in fds_of(pid))


def is_nonblocking(pid: int, fd: int) -> bool:
    """Look at the flags of another process's fd."""
    found = re.search(r"^flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text(), re.M)
    assert found
    return bool(int(found[1], 8) & os.O_NONBLOCK)


# ---- clients ----


def test_line_from_each_of_100_reaches_99_others_once_and_in_order(backend: str) -> None:
    spoken = [b"line %d" % number for number in range(10)]
    with running("chat.py", backend) as example, joined(example, *nicks(CLIENTS)) as clients:
        assert min(sockets_of(pid) for pid in workers_of(example)) > CLIENTS // 10
        together = threading.Barrier(CLIENTS)

        def chat(client: Client) -> dict[bytes, list[bytes]]:
            together.wait(SECONDS)
            for line in spoken:
                client.send(line)
            return by_sender([client.said() for _ in range((CLIENTS - 1) * len(spoken))])

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
            heard = list(threads.map(chat, clients))
        for client, senders in zip(clients, heard, strict=True):
            assert senders == {other.nick: spoken for other in clients if other is not client}
        assert clients[-1].welcome == b"* Welcome, c99. Others here: 99\n"
        assert example.interrupt() == (0, END, "")


def test_nickname_is_asked_for_until_it_is_good() -> None:
    refusal = b"* It is taken, or not of 1 to 32 bytes. Another one?\n"
    alone = ("--workers", "1")
    with running("chat.py", args=alone) as example, joined(example, b"ana") as (ana,):
        with example.connect() as conn, conn.makefile("rb") as stream:
            assert stream.readline() == b"* What is your nickname?\n"
            for bad in (b"", b"   ", b"ana", b"\x1bana ", b"x" * 33):
                conn.sendall(bad + b"\n")
                assert stream.readline() == refusal
            ana.send(b"who is there?")  # nobody who hears it
            conn.sendall(b" bo\r\n")
            assert stream.readline() == b"* Welcome, bo. Others here: 1\n"
            assert ana.line() == b"* bo has joined\n"
            ana.send(b"hello")
            assert stream.readline() == b"ana: hello\n"
        assert ana.line() == b"* bo has left\n"


def test_control_characters_do_not_reach_other_terminals() -> None:
    with running("chat.py") as example, joined(example, b"ana", b"bo") as (ana, bo):
        ana.send(b"\x1b[2Jred\x07\talert\r\r", "schön".encode(), b"")
        assert bo.said() == b"ana: [2Jred\talert\n"
        assert bo.said() == "ana: schön\n".encode()
        assert bo.said() == b"ana: \n"


def test_line_over_the_limit_ends_its_sender_only() -> None:
    with running("chat.py") as example, joined(example, b"ana", b"bo") as (ana, bo):
        ana.send(b"x" * 65536)
        assert bo.said() == b"ana: " + b"x" * (65536 - 5) + b"\n"
        ana.send(b"x" * 65537)
        assert bo.line() == b"* ana has left\n"
        assert ana.said() == b""
        bo.conn.shutdown(socket.SHUT_WR)
        assert bo.said() == b""


def test_port_that_is_taken_is_named() -> None:
    with running("chat.py") as example:
        port = str(example.port)
        second = subprocess.run(
            command("chat.py", "--port", port), capture_output=True, text=True, timeout=SECONDS
        )
    assert second.returncode == 1
    assert second.stderr == (
        f"chat.py: [Errno 98] cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


# ---- Ctrl-C ----


def rest_of(client: Client) -> list[bytes]:
    """Read to the end of the stream; a reset would raise."""
    lines = client.stream.readlines()
    assert all(line.endswith(b"\n") for line in lines)
    return lines


def test_ctrl_c_lets_each_client_read_all_then_end_of_stream(backend: str) -> None:
    spoken = [b"%05d " % number + b"x" * 1000 for number in range(2000)]  # 2 MB to each of 20
    with running("chat.py", backend) as example, joined(example, *nicks(20)) as clients:
        speaker, listener, *others = clients
        sender = threading.Thread(target=speaker.send, args=spoken)
        sender.start()
        assert [listener.said() for _ in spoken] == [b"c0: %s\n" % line for line in spoken]
        sender.join(SECONDS)
        for other in others:
            other.send(b"unread when the server closes")
        example.process.send_signal(signal.SIGINT)
        for other in others:
            assert by_sender(rest_of(other))[b"c0"] == spoken
        for client in (speaker, listener):
            rest_of(client)
        assert example.finish() == (0, END, "")
        bind(example.port)


def test_ctrl_c_with_100_idle_clients_ends_each_stream() -> None:
    with running("chat.py") as example, joined(example, *nicks(CLIENTS)) as clients:
        example.process.send_signal(signal.SIGINT)
        for number, client in enumerate(clients):
            assert rest_of(client) == [
                b"* c%d has joined\n" % later for later in range(number + 1, CLIENTS)
            ]
        assert example.finish() == (0, END, "")
        bind(example.port)


# ---- the operator's console ----


def operate(example: Example, clients: list[Client], type_in: Any) -> None:
    """Type as an operator does, and see what becomes of it."""
    ana, bo = clients
    type_in(b"hello all\n")
    for client in clients:
        assert client.said() == b"[operator] hello all\n"
    type_in(b"/who\n")
    for client in clients:
        host, port = client.conn.getsockname()
        assert example.line() == f"{client.nick.decode()} {host} {port}\n"
    assert example.line() == "clients: 2\n"
    assert not any(is_nonblocking(example.process.pid, fd) for fd in range(3))
    ana.send(b"heard you")
    assert bo.said() == b"ana: heard you\n"


def still_serving(clients: list[Client]) -> None:
    ana, bo = clients
    ana.send(b"still here?")
    assert bo.said() == b"ana: still here?\n"
    bo.send(b"yes")
    assert ana.said() == b"bo: yes\n"


def serves_and_ends(example: Example) -> None:
    """Clients may join, talk and leave, and Ctrl-C ends it without another word."""
    with joined(example, b"ana", b"bo") as clients:
        still_serving(clients)
    assert not is_nonblocking(example.process.pid, 1)
    assert example.interrupt() == (0, "", "")
    bind(example.port)


def test_operator_on_a_pipe(backend: str) -> None:
    ours, theirs = os.pipe()
    flags = fcntl.fcntl(ours, fcntl.F_GETFL)
    with running("chat.py", backend, ours) as example:
        with joined(example, b"ana", b"bo") as clients:
            operate(example, clients, lambda data: os.write(theirs, data))
            os.write(theirs, b"cut ")
            os.write(theirs, b"in two\nand no newline")
            os.close(theirs)
            assert example.line() == END
            for client in clients:
                assert client.said() == b"[operator] cut in two\n"
                assert client.said() == b"[operator] and no newline\n"
            still_serving(clients)
        assert example.interrupt() == (0, "", "")
    assert fcntl.fcntl(ours, fcntl.F_GETFL) == flags
    assert not flags & os.O_NONBLOCK
    os.close(ours)


def test_operator_on_a_terminal(backend: str) -> None:
    ours, theirs = os.openpty()
    flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
    with running("chat.py", backend, theirs) as example:
        with joined(example, b"ana", b"bo") as clients:
            operate(example, clients, lambda data: os.write(ours, data))
            os.write(ours, b"\x04")  # Ctrl-D
            assert example.line() == END
            still_serving(clients)
        assert example.interrupt() == (0, "", "")
    assert fcntl.fcntl(theirs, fcntl.F_GETFL) == flags
    assert not flags & os.O_NONBLOCK
    os.close(ours)
    os.close(theirs)


def test_operator_in_a_file_is_read_to_its_end(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "typed"
    path.write_bytes(b"".join(b"early %d\n" % number for number in range(20000)) + b"/who")
    with path.open("rb") as typed:
        flags = fcntl.fcntl(typed, fcntl.F_GETFL)
        with running("chat.py", backend, typed) as example:
            assert sorted([example.line(), example.line()]) == ["clients: 0\n", END]
            assert not is_nonblocking(example.process.pid, 0)
            serves_and_ends(example)
        assert fcntl.fcntl(typed, fcntl.F_GETFL) == flags


def test_operator_at_dev_null_ends_at_once(backend: str) -> None:
    with running("chat.py", backend) as example:
        assert example.line() == END
        serves_and_ends(example)


def test_without_standard_input_the_server_serves(backend: str) -> None:
    closed = ("sh", "-c", 'exec "$@" <&-', "sh")
    with running("chat.py", backend, wrap=closed) as example:
        serves_and_ends(example)


def test_console_that_cannot_be_read_is_closed(backend: str, tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as unreadable:
        with running("chat.py", backend, unreadable) as example:
            assert example.line() == (
                "console closed ([Errno 9] Bad file descriptor); the server goes on\n"
            )
            serves_and_ends(example)


def test_operator_line_over_the_limit_closes_the_console(tmp_path: Path) -> None:
    (tmp_path / "typed").write_bytes(b"x" * 70000)
    with (tmp_path / "typed").open("rb") as typed, running("chat.py", stdin=typed) as example:
        assert example.line() == ("console closed (message over max_size); the server goes on\n")
        assert example.interrupt() == (0, "", "")


def test_ctrl_c_typed_at_the_terminal_ends_it(backend: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command("chat.py", "--port", "0"), environment(backend))
    with open(terminal, "rb+", buffering=0) as keyboard:
        seen = b""
        while b"\n" not in seen:
            seen += keyboard.read(1000)
        assert re.search(rb"chat server on 127\.0\.0\.1:\d+; to join: nc 127\.0\.0\.1 \d+", seen)
        assert not is_nonblocking(pid, 0)
        keyboard.write(b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_server_in_the_background_of_a_terminal_is_not_stopped_by_typing(backend: str) -> None:
    job = ("sh", "-c", 'set -m; "$@" & echo "job $!."; wait $!; echo "status $?."', "sh")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("sh", [*job, *command("chat.py", "--port", "0")], environment(backend))
    with open(terminal, "rb+", buffering=0) as keyboard:
        seen = b""

        def wait_for(pattern: bytes) -> bytes:
            nonlocal seen
            while not (found := re.search(pattern, seen)):
                seen += keyboard.read(1000)
            return found[1]

        wait_for(rb"(chat server on)")
        keyboard.write(b"meant for the shell\n")
        wait_for(rb"(console closed \(\[Errno 5\] Input/output error\); the server goes on)")
        os.kill(int(wait_for(rb"job (\d+)\.")), signal.SIGINT)
        assert wait_for(rb"status (\d+)\.") == b"0"
        os.waitpid(pid, 0)
