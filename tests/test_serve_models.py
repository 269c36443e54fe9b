"""`python -m pyloop serve` with models thread and fork: reload, and an acceptor that is killed."""

from __future__ import annotations

import os
import re
import signal

import pytest
from command import Command, children, is_alive, until

import pyloop

SOURCE = """if True:
    import os, pyloop

    def answer(conn):
        for line in conn:
            conn.send(repr(eval(line)).encode())

    version = {version}
    server = pyloop.Server(answer, framing=pyloop.Lines(), {options})
"""


def source(version: int = 1, options: str = "model='fork'") -> str:
    return SOURCE.format(version=version, options=options)


def ask(conn: pyloop.BlockingConnection, question: bytes) -> bytes:
    conn.send(question)
    answer = conn.receive()
    assert answer is not None
    return answer


def workers_of(command: Command) -> list[int]:
    return [pid for pid, line in children(command.pid).items() if '"task": "work"' in line]


def test_fork_reload_serves_new_code_and_leaves_conversations_alone(tmp_path):
    with Command(tmp_path, "app:server", app=source()) as command:
        with command.ready().dial() as old:
            assert ask(old, b"version") == b"1"
            child = int(ask(old, b"os.getpid()"))
            assert child not in workers_of(command)
            command.write("app", source(2))
            command.reload()
            command.wait_for("reloaded 1 workers")
            assert command.ask(b"version") == b"2"
            assert ask(old, b"version, os.getpid()") == f"(1, {child})".encode()
            seen = eval(command.ask(b"conn.server.stats().open, conn.server.stats().accepted"))
            assert seen == (2, 3)
        until(lambda: not is_alive(child))
        command.wait_for(r"worker 1 \(pid \d+\) ended with status 0")
        until(lambda: command.ask(b"conn.server.stats().open") == b"1")
        assert command.stop() == 0
    assert not re.search("ERROR|Traceback", command.log())


def test_fork_reload_for_more_children_than_have_room_is_refused_in_a_line(tmp_path):
    options = "model='fork', max_connections="
    with Command(tmp_path, "app:server", app=source(1, options + "2")) as command:
        acceptor = workers_of(command.ready())
        command.write("app", source(2, options + "3"))
        command.reload()
        command.wait_for(
            "reload: the old workers go on: max_connections=3 of model fork, more than 2, needs a "
            "restart"
        )
        assert command.ask(b"version") == b"1"
        assert workers_of(command) == acceptor
        assert command.stop() == 0
    assert "Traceback" not in command.log()


def test_fork_acceptor_killed_at_its_limit_is_replaced_and_serves_again(tmp_path):
    options = "model='fork', max_connections=2, drain_timeout=30.0"
    with Command(tmp_path, "app:server", app=source(options=options)) as command:
        (acceptor,) = workers_of(command.ready())
        held = [command.dial(), command.dial()]
        pids = [int(ask(conn, b"os.getpid()")) for conn in held]
        os.kill(acceptor, signal.SIGKILL)
        command.ready(2)
        with command.dial() as one, command.dial() as other:
            for conn in (one, other):
                conn.send(b"version")
            for conn in held:  # whose processes have what the next two need
                conn.close()
            for conn in (one, other):
                assert conn.receive() == b"1"
        until(lambda: not any(map(is_alive, pids)))
        until(lambda: command.ask(b"conn.server.stats().open") == b"1")
        assert command.stop() == 0
    assert "Traceback" not in command.log()


def test_fork_stops_while_those_of_a_killed_acceptor_leave_no_room(tmp_path):
    options = "model='fork', max_connections=1"
    with Command(tmp_path, "app:server", app=source(options=options)) as command:
        (acceptor,) = workers_of(command.ready())
        with command.dial() as held:
            child = int(ask(held, b"os.getpid()"))
            os.kill(acceptor, signal.SIGSTOP)  # so that its child's end goes unnoticed
            os.kill(child, signal.SIGSTOP)
            os.kill(acceptor, signal.SIGKILL)
            command.ready(2)
            with command.dial() as waiting:
                waiting.send(b"version")
                assert command.stop() == 0
                with pytest.raises(ConnectionResetError):
                    waiting.receive()
            os.kill(child, signal.SIGCONT)
        until(lambda: not is_alive(child))
    assert "Traceback" not in command.log()


def test_fork_children_killed_with_their_acceptor_are_counted_no_more(tmp_path):
    with Command(tmp_path, "app:server", app=source()) as command:
        (acceptor,) = workers_of(command.ready())
        with command.dial() as conn:
            child = int(ask(conn, b"os.getpid()"))
            os.kill(acceptor, signal.SIGSTOP)
            os.kill(child, signal.SIGKILL)
            os.kill(acceptor, signal.SIGKILL)
        command.ready(2)
        stats = b"conn.server.stats().open, [w.pid for w in conn.server.stats().workers]"
        until(lambda: eval(command.ask(stats))[0] == 1)
        assert child not in eval(command.ask(stats))[1]
        assert command.stop() == 0


def test_threads_in_two_workers_outlive_reload_and_death(tmp_path):
    options = "model='thread', workers=2"
    with Command(tmp_path, "app:server", app=source(options=options)) as command:
        command.ready(2)
        with command.dial() as old:
            pid = int(ask(old, b"os.getpid()"))
            assert pid in workers_of(command)
            command.write("app", source(2, options))
            command.reload()
            command.wait_for("reloaded 2 workers")
            assert {command.ask(b"version") for _ in range(16)} == {b"2"}
            assert ask(old, b"version, os.getpid()") == f"(1, {pid})".encode()
            assert int(command.ask(b"conn.server.stats().open")) == 2
        until(lambda: not is_alive(pid))
        victim = int(command.ask(b"os.getpid()"))
        os.kill(victim, signal.SIGKILL)
        command.ready(5)
        assert {command.ask(b"conn.server.worker_id") for _ in range(64)} == {b"1", b"2"}
        until(lambda: command.ask(b"conn.server.stats().open") == b"1")
        assert command.stop() == 0
    assert "Traceback" not in command.log()
