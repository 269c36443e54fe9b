"""Workers under load: what dies, is replaced, comes or goes harms nobody whom it does not serve.

Each promise is a function with a length, so that `make soak` can keep it for minutes.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time

from workers import Load, Program, eventually

GENTLE = (ConnectionResetError, BrokenPipeError, EOFError)


def kill_workers(backend: str, kills: int, pause: float = 0.0) -> int:
    """Kill -9 a random worker again and again. Returns how many conversations went well."""
    with Program("serve(workers=3)", backend) as program:
        port = program.ready(3)
        deaths: list[tuple[int, float]] = []
        with Load(port) as load:
            for _ in range(kills):
                load.wait_more(20)
                workers = eventually(lambda: len(w := program.workers()) == 3 and w, "three")
                victim = random.choice(list(workers.values()))
                deaths.append((victim, time.monotonic()))
                os.kill(victim, signal.SIGKILL)
                time.sleep(pause)
            eventually(lambda: len(program.workers()) == 3, "all are back")
            load.wait_more(20)
        killed = {pid for pid, _ in deaths}
        for broken in load.broken:
            assert isinstance(broken.cause, GENTLE), broken
            during = any(broken.since <= when + 1 for _, when in deaths)
            assert broken.pid in killed or (broken.pid == 0 and during), broken
        assert len(killed) == kills
        assert program.end(signal.SIGTERM)[0] == 0
        assert len(re.findall("ended with signal 9", program.log())) == kills
        return load.done


def test_killed_workers_harm_only_their_own_clients_and_come_back(backend):
    assert kill_workers(backend, kills=5) > 100


def reload_workers(backend: str, reloads: int) -> int:
    """Reload again and again under short conversations. Returns how many went well: all."""
    with Program("serve()", backend) as program:
        port = program.ready()
        with Load(port) as load:
            for number in range(reloads):
                program.signal(signal.SIGHUP)
                program.wait_log("reloaded 2 workers", number + 1)
            load.wait_more(20)
        assert load.broken == []
        assert len(load.served) >= 2 + reloads  # not the first ones all the time
        assert program.end(signal.SIGTERM)[0] == 0
        assert "ERROR" not in program.log()
        return load.done


def test_reload_ten_times_refuses_and_breaks_nothing(backend):
    assert reload_workers(backend, reloads=10) > 20
