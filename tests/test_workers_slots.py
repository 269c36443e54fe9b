"""SIGHUP, SIGTTIN and SIGTTOU: workers are replaced, added and removed, and nobody is refused."""

from __future__ import annotations

import contextlib
import os
import re
import signal

import pytest
from workers import Load, Program, Talker, is_alive, rounds

STATS = """
    def handle(conn, line):
        if line == b"reloads":
            conn.send(str(server.stats().processes.reloads).encode())
        else:
            talk(conn, line)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    server = server_of(handle, path=path, drain_timeout=5)
    pyloop.run(server)
"""


@pytest.fixture(params=["tcp", "unix"])
def where(request, tmp_path):
    """The arguments of Program, and the path of the socket, None for TCP."""
    path = str(tmp_path / "socket") if request.param == "unix" else None
    return ([path] if path else []), path


# ---- reload ----


def test_hangups_during_a_reload_mean_one_reload_more(tmp_path):
    source = """
        async def hold(server):
            while os.path.exists(sys.argv[1]):
                await asyncio.sleep(0.01)
        server = server_of(on_start=hold)
        pyloop.run(server)
        say("reloads", server.stats().processes.reloads)
    """
    flag = tmp_path / "hold"
    with Program(source, "auto", str(flag)) as program:
        program.ready()
        flag.touch()
        program.signal(signal.SIGHUP)
        program.wait_log("reloading 2 workers")
        for _ in range(5):
            program.signal(signal.SIGHUP)
        os.kill(program.workers()[2], signal.SIGKILL)
        program.wait_log("ended with signal 9")  # so what came before that was heard
        flag.unlink()
        program.wait_log("reloaded 2 workers", 2)
        assert program.end(signal.SIGTERM)[1].endswith("reloads 2\n")
        assert program.log().count("reloading") == 2


def test_long_conversation_survives_a_reload_until_drain_timeout(where):
    args, path = where
    with Program(STATS.replace("drain_timeout=5", "drain_timeout=1"), "auto", *args) as program:
        port = program.ready()
        with Talker(port, path) as talker:
            pid = talker.pid()
            program.signal(signal.SIGHUP)
            program.wait_log("reloaded 2 workers")
            with Talker(port, path) as other:
                assert other.pid() != pid
                assert other.ask("reloads") == "1"
            assert talker.pid() == pid
            with pytest.raises(EOFError):
                talker.next()  # its time has come
        program.wait_log(rf"INFO worker \d \(pid {pid}\) ended with status 0")
        assert "ERROR" not in program.log()


def test_retired_coroutine_handler_has_drain_timeout_to_end(backend):
    source = """
        async def slow(conn):
            async for line in conn:
                conn.send(line)
            await asyncio.sleep(0.5)
            conn.send(b"the end")
        import pyloop.supervisor, pyloop.watchdog
        pyloop.supervisor.GRACE_SECONDS = 0.2
        pyloop.watchdog.Watchdog.interval = 0.05
        serve(slow, drain_timeout=1)
    """
    with Program(source, backend) as program, Talker(program.ready()) as talker:
        assert talker.ask("a") == "a"
        program.signal(signal.SIGHUP)
        assert talker.next() == "the end"
        with pytest.raises(EOFError):
            talker.next()
        talker.close()
        program.wait_log("reloaded 2 workers")
        assert program.end(signal.SIGTERM)[0] == 0
        assert "killed" not in program.log()


def test_reload_whose_successor_fails_keeps_the_old_workers(tmp_path):
    source = """
        def check(server):
            if os.path.exists(sys.argv[1]):
                raise LookupError("broken configuration")
        serve(on_start=check)
    """
    flag = tmp_path / "flag"
    with Program(source, "auto", str(flag)) as program:
        port = program.ready()
        workers = program.workers()
        flag.touch()
        for count in (1, 2):
            program.signal(signal.SIGHUP)
            program.wait_log("reload: worker 1 did not start; the old ones go on", count)
            assert program.log().count("LookupError: broken configuration") == count
        with Talker(port) as talker:
            assert talker.pid() in workers.values()
        flag.unlink()
        program.signal(signal.SIGHUP)
        program.wait_log("reloaded 2 workers")
        assert not set(workers.values()) & set(program.workers().values())


def test_worker_killed_during_a_reload_is_replaced():
    source = """
        async def slowly(server):
            if server.worker_id == 1: say("starting", os.getpid())
            await asyncio.sleep(0.2)
        serve(on_start=slowly)
    """
    with Program(source) as program:
        assert program.line().startswith("starting")
        program.ready()
        old = program.workers()
        program.signal(signal.SIGHUP)
        successor = int(program.line().split()[1])
        os.kill(old[1], signal.SIGKILL)
        os.kill(successor, signal.SIGKILL)
        program.wait_log("reload: worker 1 did not start")
        program.wait_log(r"worker 1 \(pid \d+\) is ready", 2)
        assert sorted(program.workers()) == [1, 2]
        program.signal(signal.SIGHUP)
        program.wait_log("reloaded 2 workers")


# ---- slots come and go ----


def is_among_the_first(most, pid, port, path):
    """Does a worker serve one of so many connections that are open together?"""
    with contextlib.ExitStack() as stack:
        talkers = (stack.enter_context(Talker(port, path)) for _ in range(most))
        return any(talker.pid() == pid for talker in talkers)


def add_and_remove_workers(backend, args=(), path=None, count=1, seconds=0.0, clients=4):
    """Add a worker, remove it again, under load: all conversations go well."""
    with Program(STATS, backend, *args) as program:
        port = program.ready()
        with Load(port, clients, path=path) as load:
            for number in rounds(count, seconds):
                program.signal(signal.SIGTTIN)
                program.ready(1)
                third = program.workers()[3]
                assert is_among_the_first(200, third, port, path)
                load.wait_more(20)
                program.signal(signal.SIGTTOU)
                program.wait_log("SIGTTOU: 2 workers", number + 1)
                assert not is_alive(third)
                load.wait_more(20)
        assert load.broken == []
        assert program.end(signal.SIGTERM)[0] == 0
        assert "ERROR" not in program.log()
        return load


def test_worker_more_serves_and_one_less_refuses_nobody(backend, where):
    add_and_remove_workers(backend, *where)


def test_last_worker_stays():
    with Program(STATS) as program:
        port = program.ready()
        program.signal(signal.SIGTTOU)
        program.wait_log("SIGTTOU: 1 workers")
        program.signal(signal.SIGTTOU)
        program.wait_log("SIGTTOU: one worker is the least there can be")
        with Talker(port) as talker:
            assert talker.pid() == program.workers()[1]
        program.signal(signal.SIGTTIN)
        assert program.ready(1) == port
        assert sorted(program.workers()) == [1, 2]
        assert program.end(signal.SIGTERM)[0] == 0


def test_worker_that_cannot_be_added_is_none_too_few(tmp_path):
    source = """
        import pyloop.slots
        add = pyloop.slots.Slots.add
        def failing(self):
            if os.path.exists(sys.argv[1]) and self.port == second.port:
                raise OSError(24, "no more of them")
            add(self)
        pyloop.slots.Slots.add = failing
        pyloop.slots.Slots.port = property(lambda self: self.first.port if len(self) else None)
        first, second = server_of(), server_of(on_worker_start=None)  # only the first is asked
        pyloop.run(first, second)
    """
    flag = tmp_path / "flag"
    with Program(source, "auto", str(flag)) as program:
        port = program.ready()
        flag.touch()
        program.signal(signal.SIGTTIN)
        program.wait_log("ERROR SIGTTIN: .*no more of them")
        flag.unlink()
        for _ in range(24):  # the first server has no socket that no worker serves
            with Talker(port) as talker:
                assert talker.pid() in program.workers().values()
        program.signal(signal.SIGTTIN)
        assert program.ready(1) == port
        assert sorted(program.workers()) == [1, 2, 3]
        assert re.findall("SIGTTIN: 3 workers", program.log())
        assert program.end(signal.SIGTERM)[0] == 0


def test_worker_that_never_starts_can_be_removed(tmp_path):
    source = """
        def fail(server):
            if server.worker_id == 3: raise LookupError("three is one too many")
        serve(on_start=fail, drain_timeout=1)
    """
    with Program(source) as program:
        program.ready()
        program.signal(signal.SIGTTIN)
        program.wait_log("worker 3 is started again")
        program.signal(signal.SIGTTOU)
        program.wait_log("SIGTTOU: 2 workers")
        assert program.end(signal.SIGTERM)[0] == 0
