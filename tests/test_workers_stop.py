"""SIGTERM and SIGINT with workers: who is told what, in which order, and that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from workers import Program, Talker, eventually, is_alive

COUNTED = """
    server = server_of(workers=2)
    pyloop.run(server)
    stats = server.stats()
    say("counted", stats.messages_in, stats.messages_out, stats.open, stats.accepted)
"""
WINDOW = 25


class Streams:
    """Clients in threads, each of whom sends numbered lines, and reads until the stream ends."""

    def __init__(self, port: int, clients: int) -> None:
        self.talkers = [Talker(port) for _ in range(clients)]
        self.replies = [0] * clients
        self.ends: list[object] = [None] * clients
        self._threads = [threading.Thread(target=self._run, args=[n]) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        talker = self.talkers[client]
        try:
            while True:
                first = self.replies[client]
                numbers = range(first, first + WINDOW)
                talker.send("\n".join(map(str, numbers)))
                for number in numbers:
                    reply = talker.next()
                    assert reply == str(number)
                    self.replies[client] += 1
        except EOFError as exc:
            self.ends[client] = exc.args
        except Exception as exc:
            self.ends[client] = exc
        finally:
            talker.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def stop_under_load(backend: str, stop, clients: int = 6, replies: int = 2000) -> int:
    """Stop workers that are asked all the time. Returns how many replies there were."""
    with Program(COUNTED, backend) as program:
        streams = Streams(program.ready(), clients)
        eventually(lambda: sum(streams.replies) > replies)
        assert streams.ends == [None] * clients
        stop(program)
        streams.join()
        assert streams.ends == [(b"",)] * clients  # end of stream, after a whole message
        status, out = program.end()
        assert status == 0, program.log()
        total = sum(streams.replies)
        assert out == f"counted {total} {total} 0 {clients}\n"
        assert "ERROR" not in program.log()
        return total


def test_sigterm_under_load_gives_each_client_a_gapless_prefix(backend):
    stop_under_load(backend, lambda program: program.signal(signal.SIGTERM))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_stops_as_one_to_the_supervisor(number):
    stop_under_load("auto", lambda program: os.killpg(program.pid, number))


def test_sigterm_to_the_whole_group_waits_for_handlers_until_drain_timeout():
    source = """
        async def slow(conn):
            async for line in conn:
                conn.send(b"begun")
                await asyncio.sleep(1)
                conn.send(b"done")
        serve(slow)
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        assert talker.ask("x") == "begun"
        os.killpg(program.pid, signal.SIGTERM)  # the worker hears it twice
        assert talker.next() == "done"
        talker.close()
        assert program.end()[0] == 0


def test_hangup_to_the_whole_group_only_reloads():
    with Program("serve()") as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        os.killpg(program.pid, signal.SIGHUP)
        program.wait_log("reloaded 2 workers")
        assert talker.pid() == pid
        talker.close()
        assert program.end(signal.SIGTERM)[0] == 0
        assert "ERROR" not in program.log()


STUCK = """
    async def stuck(conn):
        conn.send(b"hi")
        async for _ in conn: pass
        say("stopping")
        await asyncio.get_running_loop().create_future()
    serve(stuck, drain_timeout=1000)
    say("end")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_aborts(backend, number):
    with Program(STUCK, backend) as program, Talker(program.ready()) as talker:
        assert talker.next() == "hi"
        program.signal(number)
        assert program.line() == "stopping"
        assert program.end(number) == (0, "end\n")
        assert "killed" not in program.log()
        with pytest.raises((ConnectionResetError, EOFError)):
            talker.next()


def test_second_signal_ends_a_worker_that_hears_nothing():
    source = """
        import pyloop.supervisor
        pyloop.supervisor.GRACE_SECONDS = 0.5
        def spin(conn, line):
            conn.send(b"spinning"); say("spinning")
            while True: pass
        serve(spin, drain_timeout=1000)
        say("end")
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        talker.send("x")
        assert program.line() == "spinning"
        program.signal(signal.SIGTERM)
        program.wait_log("ended with status 0")  # the other one
        assert program.end(signal.SIGTERM) == (0, "end\n")
        assert "does not stop: killed" in program.log()


def test_worker_that_does_not_stop_is_killed_after_drain_timeout():
    source = """
        import pyloop.supervisor
        pyloop.supervisor.GRACE_SECONDS = 0.2
        def spin(conn, line):
            say("spinning")
            while True: pass
        serve(spin, drain_timeout=0.2)
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        talker.send("x")
        assert program.line() == "spinning"
        assert program.end(signal.SIGTERM)[0] == 0
        assert "does not stop: killed" in program.log()


def test_stop_during_a_reload_leaves_nobody_behind(tmp_path):
    source = """
        async def slowly(server):
            if os.path.exists(sys.argv[1]):
                say("starting", os.getpid())
                await asyncio.sleep(1000)
        serve(on_start=slowly)
    """
    flag = tmp_path / "flag"
    with Program(source, "auto", str(flag)) as program:
        program.ready()
        flag.touch()
        program.signal(signal.SIGHUP)
        successor = int(program.line().split()[1])
        processes = [successor, *program.workers().values()]
        assert all(map(is_alive, processes))
        assert program.end(signal.SIGTERM) == (0, "")
        assert not any(map(is_alive, processes))
        assert "killed" not in program.log()


def test_worker_that_somebody_else_stops_has_its_successor_while_it_drains(tmp_path):
    source = """
        async def hold(conn):
            conn.send(str(os.getpid()).encode())
            async for _ in conn: pass
            while os.path.exists(sys.argv[1]):
                await asyncio.sleep(0.01)
            conn.send(b"done")
        import pyloop.watchdog
        pyloop.watchdog.Watchdog.interval = 0.05
        serve(hold, drain_timeout=1000)
    """
    flag = tmp_path / "flag"
    flag.touch()
    with Program(source, "auto", str(flag)) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = int(talker.next())
            os.kill(pid, signal.SIGTERM)
            assert program.ready(1) == port
            assert is_alive(pid)
            flag.unlink()
            assert talker.next() == "done"
        program.wait_log(rf"INFO worker \d \(pid {pid}\) ended with status 0")
        assert "it was told to stop, not by its supervisor" in program.log()
        assert program.end(signal.SIGTERM)[0] == 0


def test_order_to_stop_while_a_worker_starts_is_obeyed():
    source = """
        async def slowly(server):
            say("starting")
            await asyncio.sleep(1000)
        serve(on_start=slowly)
        say("end")
    """
    with Program(source) as program:
        assert [program.line(), program.line()] == ["starting", "starting"]
        assert program.end(signal.SIGTERM) == (0, "end\n")
        assert "Traceback" not in program.log()


def test_exception_of_on_stop_in_a_worker_is_logged_by_the_supervisor():
    source = """
        def fail(server):
            raise ValueError("no way to stop")
        serve(on_stop=fail)
        say("end")
    """
    with Program(source) as program:
        program.ready()
        assert program.end(signal.SIGTERM) == (0, "end\n")
        assert program.log().count("ValueError: no way to stop") == 1


def test_worker_that_stops_its_server_is_replaced():
    source = """
        def stop(conn, line):
            if line == b"stop":
                asyncio.ensure_future(server.stop())
            else:
                talk(conn, line)
        server = server_of(stop)
        pyloop.run(server)
    """
    with Program(source) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = talker.pid()
            talker.send("stop")
        program.wait_log(rf"\(pid {pid}\) ended with status 0")
        assert program.ready(1) == port
        assert program.end(signal.SIGTERM)[0] == 0


def test_interrupt_that_only_a_worker_hears_means_nothing():
    with Program("serve()") as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
            assert talker.pid() == pid
        talker.close()
        assert program.end(signal.SIGTERM)[0] == 0
        assert "Traceback" not in program.log()


def test_signal_that_the_program_handles_is_handled_in_workers_too():
    source = """
        signal.signal(signal.SIGUSR1, lambda number, frame: say("heard", os.getpid()))
        serve()
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        os.kill(pid, signal.SIGUSR1)
        talker.pid()  # its loop turns
        assert program.line() == f"heard {pid}"
        assert talker.pid() == pid
