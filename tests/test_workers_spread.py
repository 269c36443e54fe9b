"""Connections are spread evenly over workers: by the kernel, or by the share rule of accept.c."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter

import pytest
from workers import Program, Talker, connect

WORKERS = 4

SERVE = """
    def handle(conn, line):
        if line == b"spin":
            say("spinning")
            while True: pass
        talk(conn, line)
    serve(handle, workers=int(sys.argv[1]), path=sys.argv[2] if len(sys.argv) > 2 else None)
"""


@pytest.fixture(params=["tcp", "unix"])
def path(request, tmp_path):
    return str(tmp_path / "socket") if request.param == "unix" else None


def start(backend, path):
    return Program(SERVE, backend, str(WORKERS), *([path] if path else []))


def assert_even(counts, total, path):
    """Who is woken last on a shared listener gets what the others leave, each at its share."""
    mean = total / WORKERS
    bound = 4 * math.sqrt(mean)
    left = (WORKERS - 1) * (mean / 8 + 3) if path else 0  # a share is 9/8 of the mean and two
    assert sum(counts) == total
    assert all(mean - max(bound, left) <= count <= mean + bound for count in counts), counts


@pytest.mark.parametrize("at_once", [1, 50])
def test_connections_are_spread_evenly(backend, path, at_once):
    total = 400
    with start(backend, path) as program:
        port = program.ready(WORKERS)
        talkers = []
        served = Counter()
        for _ in range(total // at_once):  # one after the other, and in bursts
            burst = [Talker(port, path) for _ in range(at_once)]
            for talker in burst:
                talker.send("pid")
            for talker in burst:
                served[int(talker.next())] += 1
            talkers += burst
        workers = program.workers()
        assert set(served) <= set(workers.values())
        assert_even([served[pid] for pid in workers.values()], total, path)
        for talker in talkers:
            talker.close()


def test_successor_of_a_dead_worker_gets_its_share_again(backend, tmp_path):
    """On a shared listener; of a SO_REUSEPORT group each has its share at any time."""
    path = str(tmp_path / "socket")
    with start(backend, path) as program:
        program.ready(WORKERS)
        talkers = [Talker(0, path) for _ in range(200)]
        pids = Counter(talker.pid() for talker in talkers)
        victim = program.workers()[1]
        os.kill(victim, signal.SIGKILL)
        program.ready(1)
        talkers += [Talker(0, path) for _ in range(pids[victim] + 200)]
        later = Counter(talker.pid() for talker in talkers[200:])
        counts = [
            pids[pid] + later[pid] if pid in pids else later[pid]
            for pid in program.workers().values()
        ]
        assert_even(counts, 400, path)
        for talker in talkers:
            talker.close()


def test_stuck_worker_on_a_shared_listener_keeps_nobody_waiting(backend, tmp_path):
    path = str(tmp_path / "socket")
    with start(backend, path) as program:
        program.ready(WORKERS)
        with Talker(0, path) as stuck:
            pid = stuck.pid()
            stuck.send("spin")
            assert program.line() == "spinning"
            talkers = [Talker(0, path) for _ in range(300)]
            served = {talker.pid() for talker in talkers}
            assert pid not in served and len(served) == WORKERS - 1
            for talker in talkers:
                talker.close()


def test_idle_queue_of_a_shared_listener_is_taken_after_a_stop(tmp_path):
    """A wake-up that went to a worker which died before it accepted is not lost."""
    path = str(tmp_path / "socket")
    with start("epoll", path) as program:
        program.ready(WORKERS)
        for pid in program.workers().values():
            os.kill(pid, signal.SIGSTOP)
        waiting = [connect(0, path) for _ in range(20)]
        victim, *others = program.workers().values()
        os.kill(victim, signal.SIGKILL)
        for pid in others:
            os.kill(pid, signal.SIGCONT)
        for sock in waiting:
            sock.sendall(b"pid\n")
            assert int(sock.recv(100)) != victim
            sock.close()
