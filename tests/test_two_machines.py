"""One program on two machines, with two workers on each and one server of the bus between them."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from brokers import BROKERS
from namespaces import two_machines
from workers import Program, Talker

PROGRAM = """
from pyloop.nats_broker import NatsBroker
from pyloop.redis_broker import RedisBroker

broker = (RedisBroker if sys.argv[1].startswith("redis") else NatsBroker)(sys.argv[1])

def cast(line):
    for conn in server.connections:
        conn.send(line)

async def start(started):
    global server
    server = started
    broker.open(lambda topic, line: cast(line), lambda count: cast(b"* missed %r" % count))
    broker.listen(frozenset(["line"]))
    await broker.ready()

async def stop(server):
    await broker.close()

def say_it(conn, line):
    if line == b"pid":
        conn.send(b"%d" % os.getpid())
    else:
        broker.publish("line", line)

serve(say_it, on_start=start, on_stop=stop)
"""
LINES = 30


@pytest.fixture(scope="module")
def machines():
    with two_machines() as machines:
        yield machines


def client_of_each_worker(machine, port):
    """Return one client for each of two workers, and close what was too many."""
    clients = {}
    for _ in range(100):
        client = machine.do(lambda: Talker(port))
        if clients.setdefault(client.pid(), client) is not client:
            client.close()
        if len(clients) == 2:
            return list(clients.values())
    raise AssertionError(f"all connections to one worker: {clients}")


def check_that_each_line_reaches_everybody(clients, word):
    for number in range(LINES):
        for client, talker in enumerate(clients):
            talker.send(f"{client} {word} {number}")
    expected = {
        str(client): [f"{word} {n}" for n in range(LINES)] for client in range(len(clients))
    }
    for talker in clients:
        heard = sorted((talker.next() for _ in range(LINES * len(clients))), key=sender)
        by_sender = itertools.groupby(heard, key=sender)  # sorted is stable: the order is kept
        assert {
            who: [line.partition(" ")[2] for line in said] for who, said in by_sender
        } == expected


def sender(line):
    return line.partition(" ")[0]


@pytest.mark.parametrize("kind", BROKERS, ids=lambda kind: kind.scheme)
def test_each_line_reaches_all_workers_of_both_machines_and_a_restart_is_told(
    kind, machines, tmp_path
):
    with contextlib.ExitStack() as stack:
        first = machines[0]
        server = stack.enter_context(kind(tmp_path, first.address, first.prefix))
        programs = [
            stack.enter_context(Program(PROGRAM, "auto", server.url, prefix=machine.prefix))
            for machine in machines
        ]
        ports = [program.ready() for program in programs]
        clients = []
        for machine, port in zip(machines, ports, strict=True):
            clients += client_of_each_worker(machine, port)
        for client in clients:
            stack.callback(client.close)
        check_that_each_line_reaches_everybody(clients, "before")
        server.restart()
        assert [client.next() for client in clients] == ["* missed None"] * 4
        check_that_each_line_reaches_everybody(clients, "after")
        for program in programs:
            program.wait_log("connected again; messages may be missed", 2)
            assert program.end(15)[0] == 0
