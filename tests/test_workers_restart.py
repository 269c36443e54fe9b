"""Workers that die, cannot start, cannot even be forked, or have grown old; and the hooks."""

from __future__ import annotations

import os
import re
import resource
import signal

import pytest
from workers import Load, Program, Talker, eventually, fds_of

from pyloop.watchdog import _jittered

# ---- dying ----


def test_worker_that_cannot_start_ends_the_program_with_one_traceback():
    source = """
        def fail(server):
            raise LookupError("no such table")
        serve(on_start=fail)
    """
    with Program(source) as program:
        assert program.end() == (3, "")
        log = program.log()
        assert log.count("Traceback") == 1 and log.count("LookupError: no such table") == 1
        assert log.count("ended with status 1") in (9, 10)  # the other's fifth may be on its way
        for worker in (1, 2):
            waits = re.findall(rf"worker {worker} is started again in (\S+) s", log)
            assert waits[:4] == ["0.1", "0.2", "0.4", "0.8"]
        assert "CRITICAL no worker became ready in 5 attempts of each: giving up" in log


def test_backoff_has_a_longest_wait():
    source = """
        import pyloop.supervisor
        pyloop.supervisor.BACKOFF_MOST = 0.2
        pyloop.supervisor.GIVE_UP_AFTER = 6
        def fail(server):
            raise SystemExit(7)
        serve(on_start=fail)
    """
    with Program(source) as program:
        assert program.end() == (3, "")
        log = program.log()
        waits = re.findall(r"worker 1 is started again in (\S+) s", log)
        assert waits == ["0.1", "0.2", "0.2", "0.2", "0.2", "0.2"][: len(waits)]
        assert "ended with status 7" in log


def test_worker_that_never_starts_leaves_the_others_alone():
    source = """
        import pyloop.supervisor
        pyloop.supervisor.GIVE_UP_AFTER = 2
        def fail(server):
            if server.worker_id == 2: raise LookupError("not yet")
        serve(on_start=fail, workers=3)
    """
    with Program(source) as program:
        program.ready(2)
        program.wait_log("worker 2 is started again", 4)  # more often than all may fail
        assert sorted(program.workers()) == [1, 3]
        assert program.log().count("LookupError") == 1
        assert program.end(signal.SIGTERM)[0] == 0


def test_settled_worker_is_restarted_at_once_and_an_unsettled_one_later():
    source = """
        import pyloop.supervisor
        pyloop.supervisor.SETTLED_SECONDS = float(sys.argv[1])
        serve()
    """
    for settled, waits in (("0", False), ("1000", True)):
        with Program(source, "auto", settled) as program:
            port = program.ready()
            os.kill(program.workers()[1], signal.SIGKILL)
            assert program.ready(1) == port
            assert ("worker 1 is started again in 0.1 s" in program.log()) is waits
            assert "worker 2 is started again" not in program.log()


def test_worker_that_exits_is_replaced(backend):
    source = """
        def leave(conn, line):
            raise SystemExit(5)
        serve(leave)
    """
    with Program(source, backend) as program:
        port = program.ready()
        with Talker(port) as talker:
            with pytest.raises((EOFError, ConnectionResetError)):
                talker.ask("x")
        program.wait_log("ended with status 5")
        program.ready(1)


def test_worker_whose_own_child_lives_on_is_replaced_all_the_same():
    """The child holds the worker's end of the pipe: there is no end of stream to wait for."""
    source = """
        def fork(conn, line):
            if line == b"fork" and os.fork() == 0:
                time.sleep(1000)
            talk(conn, line)
        serve(fork)
    """
    with Program(source) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = talker.pid()
            assert talker.ask("fork") == "fork"
            os.kill(pid, signal.SIGKILL)
            assert program.ready(1) == port
        assert pid not in program.workers().values()
        assert program.end(signal.SIGTERM, wait_output=False)[0] == 0


# ---- what cannot be started at all ----

RESTLESS = """
    fork = os.fork
    def failing_fork():
        if os.path.exists(sys.argv[1]):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = failing_fork
    import pyloop.supervisor
    pyloop.supervisor.GIVE_UP_AFTER = 2
    server = server_of()
    pyloop.run(server)
    processes = server.stats().processes
    say("processes", processes.started, processes.killed)
"""


def test_fork_that_fails_is_tried_again_and_leaks_nothing(tmp_path):
    flag = tmp_path / "flag"
    with Program(RESTLESS, "auto", str(flag)) as program:
        port = program.ready()
        before = fds_of(program.pid)
        flag.touch()
        for pid in program.workers().values():
            os.kill(pid, signal.SIGKILL)
        failed = r"ERROR worker (\d) cannot be started: .*Resource temporarily unavailable"
        assert set(program.wait_log(failed, 6)) == {"1", "2"}  # more often than GIVE_UP_AFTER
        flag.unlink()
        assert program.ready() == port
        with Talker(port) as talker:
            assert talker.pid() in program.workers().values()
        assert len(fds_of(program.pid)) == len(before)
        assert program.end(signal.SIGTERM) == (0, "processes 4 2\n")


def allow_fds(pid: int, count: int) -> tuple[int, int]:
    """Limit the fds of a process to those below `count`. Returns the limits before."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, limits[1]))
    return limits


def test_supervisor_without_a_free_fd_starts_workers_once_there_is_one():
    with Program("serve()") as program:
        port = program.ready()
        before = fds_of(program.pid)
        limits = allow_fds(program.pid, len(before))
        os.kill(program.workers()[1], signal.SIGKILL)
        program.wait_log("worker 1 cannot be started: .*Too many open files", 2)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
        assert program.ready(1) == port
        assert len(fds_of(program.pid)) == len(before)
        assert program.end(signal.SIGTERM)[0] == 0


def test_reload_without_a_free_fd_keeps_the_old_workers():
    with Program("serve()") as program:
        port = program.ready()
        workers = program.workers()
        limits = allow_fds(program.pid, len(fds_of(program.pid)))
        program.signal(signal.SIGHUP)
        program.wait_log("reload: worker 1 did not start; the old ones go on")
        assert program.workers() == workers
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
        program.signal(signal.SIGHUP)
        program.wait_log("reloaded 2 workers")
        with Talker(port) as talker:
            assert talker.pid() not in workers.values()


@pytest.mark.parametrize("stdout", ["None", "open('/dev/full', 'w')"])
def test_stdout_that_takes_nothing_hinders_no_worker(stdout):
    source = f"""
        sys.stdout = {stdout}
        print("this cannot be written")
        serve()
    """
    with Program(source) as program:
        program.wait_log(r"worker \d \(pid \d+\) is ready", 2)
        assert program.end(signal.SIGTERM)[0] in (0, 120)  # 120: Python itself, of its last flush


# ---- growing old ----

OLD = """
    import pyloop.watchdog
    pyloop.watchdog.Watchdog.interval = 0.05
    random.uniform = lambda low, high: 1.0
    held = []
    def handle(conn, line):
        if line == b"grow":
            held.append(b"x" * (128 << 20))
            conn.send(b"grown")
        else:
            talk(conn, line)
    server = server_of(handle, **{sys.argv[1]: eval(sys.argv[2])})
    pyloop.run(server)
    stats = server.stats()
    say("recycled", stats.processes.recycled, stats.messages_in == stats.messages_out)
"""


@pytest.mark.parametrize("limit", [("max_messages", "200"), ("max_lifetime", "0.3")])
def test_old_workers_are_recycled_and_no_conversation_breaks(backend, limit):
    with Program(OLD, backend, *limit) as program:
        with Load(program.ready(), clients=3) as load:
            found = program.wait_log(rf"worker (\d) \(pid \d+\) is replaced: .*\({limit[0]}\)", 6)
            load.wait_more(10)
        assert set(found) == {"1", "2"}
        assert load.broken == []
        status, out = program.end(signal.SIGTERM)
        assert status == 0
        recycled = re.search(r"recycled (\d+) True", out)
        assert recycled and int(recycled[1]) >= 4  # two successors may be starting
        assert "ERROR" not in program.log()


def test_worker_over_max_rss_is_recycled():
    with Program(OLD, "auto", "max_rss", "100 << 20") as program:
        with Talker(program.ready()) as talker:
            pid = talker.pid()
            assert talker.ask("grow") == "grown"
            program.ready(1)
            assert pid not in program.workers().values()
            assert talker.pid() == pid  # the conversation goes on
        program.wait_log(rf"\(pid {pid}\) is replaced: it holds \d+ bytes \(max_rss\)")
        assert "recycled 1 True" in program.end(signal.SIGTERM)[1]


def test_limits_are_spread_by_a_tenth():
    limits = {_jittered(1000) for _ in range(1000)}
    assert 900 <= min(limits) < 920 and 1080 < max(limits) <= 1100
    assert _jittered(0) == 0


# ---- hooks ----


def test_hooks_run_in_the_supervisor_with_server_and_number():
    source = """
        def started(server, worker_id):
            say("started", os.getpid(), server.port, worker_id, server.worker_id)
        def ended(server, worker_id):
            say("ended", os.getpid(), server.port, worker_id)
        def numbers(conn, line):
            conn.send(str(server.worker_id).encode())
        server = server_of(numbers, on_worker_start=started, on_worker_stop=ended)
        pyloop.run(server)
    """
    with Program(source) as program:
        first, second = program.line().split(), program.line().split()
        port = first[2]
        here = ["started", str(program.pid), port]
        assert sorted([first, second]) == [[*here, "1", "0"], [*here, "2", "0"]]
        with Talker(int(port)) as talker:
            assert talker.ask("x") in ("1", "2")
        os.kill(program.workers()[2], signal.SIGKILL)
        assert program.line() == f"ended {program.pid} {port} 2"
        assert program.line() == f"started {program.pid} {port} 2 0"
        status, out = program.end(signal.SIGTERM)
        assert status == 0
        ends = [f"ended {program.pid} None {number}" for number in (1, 2)]  # it listens no more
        assert sorted(out.splitlines()) == ends


def test_exceptions_of_hooks_are_logged_and_harm_nobody():
    source = """
        def fail(server, worker_id):
            raise ValueError(f"hook of {worker_id}")
        second = server_of()
        first = server_of(on_worker_start=fail, on_worker_stop=fail)
        pyloop.run(first, second)
    """
    with Program(source) as program:
        with Talker(program.ready()) as talker:  # the second server's hook was called
            assert talker.pid() in program.workers().values()
        os.kill(program.workers()[1], signal.SIGKILL)
        program.ready(1)
        assert program.end(signal.SIGTERM)[0] == 0
        log = program.log()
        # started: 1, 2, 1 again; ended: 1, 1 again, 2
        assert len(re.findall(r"^ValueError: hook of 1$", log, re.MULTILINE)) == 4
        assert len(re.findall(r"^ValueError: hook of 2$", log, re.MULTILINE)) == 2
        assert re.search(r"<function fail at .*> raised for worker 1 of <pyloop.Server ", log)


def test_hook_that_takes_the_status_of_every_child_loses_no_worker():
    source = """
        def greedy(server, worker_id):
            say("ready", worker_id, server.port)
            time.sleep(0.3)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError: pass
        serve(on_worker_start=greedy, on_start=lambda server: None)
    """
    with Program(source) as program:
        port = program.ready(2)
        workers = program.workers()
        os.kill(workers[1], signal.SIGKILL)
        os.kill(workers[2], signal.SIGKILL)
        assert program.ready(2) == port
        eventually(lambda: len(program.workers()) == 2)
        assert program.end(signal.SIGTERM)[0] == 0
