"""Workers whose loop does not turn are replaced, and only those."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
from workers import Program, Talker, connect, is_alive

from pyloop.page import Page
from pyloop.supervision import check_supervision
from pyloop.watchdog import Watchdog

SPIN = """
    def spin_here():
        while True: pass

    def handle(conn, line):
        if line == b"spin":
            say("spinning")
            spin_here()
        elif line == b"hung":
            conn.send(str(server.stats().processes.hung).encode())
        elif line.startswith(b"sleep"):
            time.sleep(float(line.split()[1]))
            conn.send(b"slept")
        else:
            talk(conn, line)

    server = server_of(handle, worker_timeout=1)
    pyloop.run(server)
"""


def test_hanging_worker_is_replaced_and_its_stack_logged(backend):
    with Program(SPIN, backend) as program:
        port = program.ready()
        with Talker(port) as stuck:
            pid = stuck.pid()
            stuck.send("spin")
            assert program.line() == "spinning"
            waiting = [Talker(port) for _ in range(24)]  # half of them in the queue of its slot
            for talker in waiting:
                talker.send("pid")
            program.ready(1)
            pids = {int(talker.next()) for talker in waiting}
        new = set(program.workers().values())
        assert pids <= new and pid not in new and len(pids) == 2  # the successor has its queue
        assert waiting[0].ask("hung") == "1"
        for talker in waiting:
            talker.close()
        assert program.end(signal.SIGTERM)[0] == 0
        log = program.log()
        assert re.search(rf"ERROR worker \d \(pid {pid}\) has not turned its loop for 1 s", log)
        assert "in spin_here" in log and "in handle" in log
        for frame in ("_run_child", "fork_child", "in _spawn", "in supervise"):
            assert frame not in log


def test_worker_that_sleeps_in_a_system_call_is_replaced_too():
    with Program(SPIN) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        talker.send("sleep 1000")
        program.wait_log(rf"\(pid {pid}\) ended with signal 9")
        assert "in handle" in program.log()
        program.ready(1)


def test_stopped_worker_is_replaced_though_it_tells_no_stack():
    source = """
        def handle(conn, line):
            os.kill(os.getpid(), signal.SIGSTOP)
        serve(handle, worker_timeout=1)
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        talker.send("x")
        program.ready(1)
        assert "it did not write its stack" in program.log()


def test_busy_worker_is_left_alone():
    with Program(SPIN) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        for _ in range(6):  # longer than worker_timeout, but no turn is
            assert talker.ask("sleep 0.25") == "slept"
        assert talker.pid() == pid
        assert talker.ask("hung") == "0"


def test_slow_start_is_left_alone_and_told():
    source = """
        def slowly(server):
            time.sleep(1.5)
        serve(on_start=slowly, worker_timeout=0.5)
    """
    with Program(source) as program:
        program.ready()
        log = program.log()
        assert len(re.findall(r"WARNING worker \d \(pid \d+\) is not ready yet: waiting", log)) == 2
        assert "ERROR" not in log


def test_group_that_was_stopped_and_continued_is_left_alone():
    with Program(SPIN) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        talker.send("sleep 0.5")
        time.sleep(0.1)  # in the middle of a turn, most likely
        os.killpg(program.pid, signal.SIGSTOP)
        time.sleep(2)
        os.killpg(program.pid, signal.SIGCONT)
        assert talker.next() == "slept"
        assert talker.pid() == pid
        assert talker.ask("hung") == "0"


def test_verdict_needs_many_looks_and_the_time(monkeypatch):
    """A process that stood still, and finds the clock far ahead, has looked too seldom."""
    page = Page(1, 1)
    watchdog = Watchdog(page, check_supervision(2, 10, None, None, None))
    clock = 1_000_000_000_000
    monkeypatch.setattr("pyloop.watchdog.time.monotonic_ns", lambda: clock)
    loop = page.cell(0).loop
    try:
        assert watchdog.interval == 1
        loop.running_since = clock
        clock += 3600 * 10**9
        assert [watchdog.hangs(7, 0) for _ in range(11)] == [False] * 10 + [True]
        watchdog.forget(7)
        assert [watchdog.hangs(7, 0) for _ in range(10)] == [False] * 10
        loop.running_since = clock  # another turn
        assert [watchdog.hangs(7, 0) for _ in range(20)] == [False] * 20  # for no time at all
        clock += 11 * 10**9
        assert watchdog.hangs(7, 0)
        loop.running_since = 0  # it waits
        assert not watchdog.hangs(7, 0)
    finally:
        watchdog.close()
        page.close_fd()


@pytest.mark.parametrize(("goes_on", "killed"), [(False, [signal.SIGKILL]), (True, [])])
def test_worker_that_goes_on_while_its_stack_is_asked_for_is_spared(goes_on, killed):
    page, kills = Page(1, 1), []
    loop = page.cell(0).loop
    process = SimpleNamespace(pid=7, cell=0, ended=False, names=(1, 7), kill=kills.append)

    async def main():
        watchdog = Watchdog(page, check_supervision(2, 10, None, None, None))
        loop.running_since = 1

        async def stack_of(process):
            loop.running_since = 0 if goes_on else 1
            return "a stack"

        watchdog._stack_of = stack_of
        await watchdog._end_hanging(process)
        watchdog.close()

    asyncio.run(main())
    page.close_fd()
    assert kills == killed
    assert page.header.hung == len(killed)


def test_worker_that_hangs_while_it_leaves_is_replaced_and_does_not_stop_a_reload():
    with Program(SPIN) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = talker.pid()
            program.signal(signal.SIGHUP)
            program.wait_log("reloaded 2 workers")
            assert is_alive(pid)
            talker.send("spin")
            program.wait_log(rf"\(pid {pid}\) ended with signal 9")
        with connect(port):
            assert program.end(signal.SIGTERM)[0] == 0


def test_idle_workers_are_no_hang():
    with Program(SPIN.replace("worker_timeout=1", "worker_timeout=0.2")) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = talker.pid()
            time.sleep(1)  # five times worker_timeout, in which nothing happens
            assert talker.pid() == pid
        assert "ERROR" not in program.log()
