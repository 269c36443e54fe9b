"""examples/chat.py with several workers: names, the roll call, and workers that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from test_chat import Client, joined, workers_of
from test_examples import Example, running
from workers import stopped


@contextlib.contextmanager
def ana_on_both(example: Example) -> Iterator[tuple[Client, Client]]:
    """Two clients of the name ana: of worker 1, and of worker 2."""
    with contextlib.ExitStack() as stack:
        (first,) = stack.enter_context(joined(example, b"ana"))
        while True:  # until a connection comes to the other worker
            conn = stack.enter_context(example.connect())
            stream = stack.enter_context(conn.makefile("rb"))
            stream.readline()
            conn.sendall(b"ana\n")
            if b"taken" not in stream.readline():
                break
            conn.close()
        other = Client.__new__(Client)
        other.conn, other.stream, other.nick = conn, stream, b"ana"
        heard = b""
        while not heard.startswith(b"ana#"):  # once their workers know of each other
            other.send(b"which am I?")
            heard = first.said()
        yield (first, other) if heard.startswith(b"ana#2") else (other, first)


def lines_until_count(example: Example) -> list[str]:
    """What /who prints."""
    lines = [example.line()]
    while not lines[-1].startswith("clients: "):
        lines.append(example.line())
    return lines


def test_name_of_two_workers_has_their_numbers() -> None:
    ours, theirs = os.pipe()
    with running("chat.py", stdin=ours) as example, ana_on_both(example) as (one, two):
        one.send(b"hello")
        assert two.said() == b"ana#1: hello\n"
        two.send(b"hello")
        assert one.said() == b"ana#2: hello\n"
        os.write(theirs, b"/who\n")
        where = ["{} {}".format(*client.conn.getsockname()) for client in (one, two)]
        assert lines_until_count(example) == [
            f"ana#1 {where[0]}\n",
            f"ana#2 {where[1]}\n",
            "clients: 2\n",
        ]
        two.close()
        assert one.line() == b"* ana#2 has left\n"
        with joined(example, b"bo") as (bo,):
            one.send(b"alone again")
            assert bo.said() == b"ana: alone again\n"
    os.close(ours)
    os.close(theirs)


def test_worker_that_does_not_answer_is_named_and_comes_back() -> None:
    ours, theirs = os.pipe()
    with running("chat.py", stdin=ours) as example, ana_on_both(example) as (one, two):
        where = "{} {}".format(*one.conn.getsockname())
        with stopped(workers_of(example)[1]):
            os.write(theirs, b"/who\n")
            assert lines_until_count(example) == [
                f"ana {where}\n",
                "worker 2 did not answer\n",
                "clients: 1\n",
            ]
        two.send(b"here")
        assert one.said() == b"ana#2: here\n"
        os.write(theirs, b"/who\n")
        names = [line.split()[0] for line in lines_until_count(example)]
        assert names == ["ana#1", "ana#2", "clients:"]
    os.close(ours)
    os.close(theirs)


def test_clients_of_a_killed_worker_reconnect_and_the_others_go_on() -> None:
    with running("chat.py") as example, ana_on_both(example) as (one, two):
        os.kill(workers_of(example)[1], signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            two.stream.read()
        with joined(example, b"bo") as (bo,):
            assert one.line() == b"* bo has joined\n"
            one.send(b"yes")
            assert bo.said() in (b"ana: yes\n", b"ana#1: yes\n")  # the dead is forgotten soon


def test_successor_of_a_killed_worker_has_its_console() -> None:
    ours, theirs = os.pipe()
    with running("chat.py", stdin=ours) as example, ana_on_both(example) as (one, two):
        os.kill(workers_of(example)[0], signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            one.stream.read()
        os.write(theirs, b"typed\n")  # there may be nobody yet who reads it
        assert two.said() == b"[operator] typed\n"
        assert example.line() == example.greeting
    os.close(ours)
    os.close(theirs)


def test_clients_are_told_when_their_worker_missed_something() -> None:
    args = ("--bus", "shm://?capacity=4096")
    with running("chat.py", args=args) as example, ana_on_both(example) as (one, two):
        with stopped(workers_of(example)[1]):
            one.send(*[b"x" * 500] * 20)
            one.conn.shutdown(socket.SHUT_WR)
            one.stream.read()  # so all has gone over the bus
        lines = [two.line() for _ in range(3)]
        assert lines[0].startswith(b"* Missed here: ")
        assert lines[1:] == [b"ana#1: " + b"x" * 500 + b"\n"] * 2
