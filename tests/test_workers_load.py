"""Workers under load: what dies, is replaced, comes or goes harms nobody whom it does not serve.

Each promise is a function with a length, so that `make soak` can keep it for minutes.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time

from workers import Load, Program, eventually, rounds

GENTLE = (ConnectionResetError, BrokenPipeError, EOFError)


def kill_workers(backend: str, kills: int, seconds: float = 0.0, pause: float = 0.0) -> Load:
    """Kill -9 a random worker again and again, `pause` seconds apart."""
    with Program("serve(workers=3)", backend) as program:
        port = program.ready(3)
        deaths: list[tuple[float, float]] = []  # before the kill, and after it
        killed: set[int] = set()
        with Load(port) as load:
            for _ in rounds(kills, seconds):
                load.wait_more(20)
                workers = eventually(lambda: len(w := program.workers()) == 3 and w, "three")
                victim = random.choice(list(workers.values()))
                killed.add(victim)
                before = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                deaths.append((before, time.monotonic()))
                time.sleep(pause)
            eventually(lambda: len(program.workers()) == 3, "all are back")
            load.wait_more(20)
        for broken in load.broken:
            assert isinstance(broken.cause, GENTLE), broken
            during = any(broken.since <= end and start <= broken.until for start, end in deaths)
            assert during and (broken.pid in killed or not broken.pid), broken
        assert len(killed) == len(deaths) >= kills
        assert program.end(signal.SIGTERM)[0] == 0
        assert len(re.findall("ended with signal 9", program.log())) == len(deaths)
        return load


def test_killed_workers_harm_only_their_own_clients_and_come_back(backend):
    kill_workers(backend, kills=5)


def reload_workers(backend: str, reloads: int, seconds: float = 0.0) -> Load:
    """Reload again and again under short conversations: all of them go well."""
    with Program("serve()", backend) as program:
        port = program.ready()
        with Load(port) as load:
            for number in rounds(reloads, seconds):
                program.signal(signal.SIGHUP)
                program.wait_log("reloaded 2 workers", number + 1)
                load.wait_more(8)  # each client's second is with the new ones
        assert load.broken == []
        assert len(load.served) >= 1 + reloads
        assert program.end(signal.SIGTERM)[0] == 0
        assert "ERROR" not in program.log()
        return load


def test_reload_ten_times_refuses_and_breaks_nothing(backend):
    reload_workers(backend, reloads=10)
