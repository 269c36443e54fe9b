"""Server(metrics=...) end to end: every way to serve answers /metrics with what it has counted."""

from __future__ import annotations

import signal
import sys
import urllib.request

import pytest
from command import Command
from prometheus_client.parser import text_string_to_metric_families as parse_text
from workers import Program, eventually

import pyloop
from pyloop.application import Application, describe

CLIENTS = 3

SOURCE = """
def converse(conn):
    for line in conn:
        talk(conn, line)

def started(server):
    say("ready", server.worker_id, server.port)

serve({handler}, metrics=0, workers={workers}, model="{model}", on_start=started,
      on_worker_start=None)
"""

SERVED = """if True:
    import pyloop

    def talk(conn, line):
        conn.send(line)

    def converse(conn):
        for line in conn:
            talk(conn, line)

    server = pyloop.Server({handler}, framing=pyloop.Lines(), model="{model}")
"""

WAYS = {
    "loop": ("talk", "loop", 1),
    "thread": ("converse", "thread", 1),
    "fork": ("converse", "fork", 1),
    "workers": ("talk", "loop", 2),
    "workers of threads": ("converse", "thread", 2),
}


def samples(url: str) -> dict[str, float]:
    """Ask for /metrics; return the sum over all labels of each sample."""
    with urllib.request.urlopen(url + "metrics", timeout=60) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def converse_and_check(url: str, port: int, workers: int) -> None:
    """Have conversations of one line each, and see them in the metrics, open and ended."""
    for _ in range(CLIENTS):
        with pyloop.dial("127.0.0.1", port, framing=pyloop.Lines(), timeout=60) as conn:
            conn.send(b"hello")
            assert conn.receive() == b"hello"
            assert samples(url)["pyloop_connections_open"] >= 1
    eventually(lambda: samples(url)["pyloop_connections_open"] == 0, "all conversations ended")
    counted = samples(url)
    assert counted["pyloop_connections_accepted_total"] == CLIENTS
    assert counted["pyloop_messages_received_total"] == CLIENTS
    assert counted["pyloop_messages_sent_total"] == CLIENTS
    assert counted["pyloop_worker_up"] >= workers
    assert counted["pyloop_loop_turns_total"] > 0
    assert counted["pyloop_worker_resident_memory_bytes"] > 0


@pytest.mark.parametrize("way", WAYS)
def test_metrics_of_a_server_that_runs_tell_what_it_counted(way):
    handler, model, workers = WAYS[way]
    source = SOURCE.format(handler=handler, model=model, workers=workers)
    with Program(source) as program:
        port = program.ready(workers)
        (url,) = program.wait_log(r"metrics on (http://\S+)")
        if workers > 1:
            program.wait_log("is ready", workers)
        converse_and_check(url, port, workers)
        assert program.end(signal.SIGTERM) == (0, "")
        assert "Traceback" not in program.log()


@pytest.mark.parametrize(
    ("handler", "model", "workers"), WAYS.values(), ids=[way.replace(" ", "-") for way in WAYS]
)
def test_metrics_of_the_command_tell_what_its_workers_counted(tmp_path, handler, model, workers):
    source = SERVED.format(handler=handler, model=model)
    args = ["app:server", "--metrics", "127.0.0.1:0", "--workers", str(workers)]
    with Command(tmp_path, *args, app=source) as command:
        url = command.ready(workers).wait_for(r"metrics on (http://\S+)")[1]
        converse_and_check(url, command.port, workers)
        assert command.stop() == 0
        assert "Traceback" not in command.log()


def test_metrics_of_the_command_replace_those_of_every_server(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = "pyloop.Server(lambda conn, message: None, metrics=9091)"
    (tmp_path / "served_twice.py").write_text(f"import pyloop\nboth = [{made}, {made}]\n")
    try:
        told = describe(Application("served_twice:both", app_dir=str(tmp_path), metrics=":9090"))
    finally:
        del sys.modules["served_twice"]
    assert told.metrics == (("127.0.0.1", 9090),)
