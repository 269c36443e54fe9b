"""The chat on two machines, with two workers on each, and one server of the bus between them."""

from __future__ import annotations

import contextlib

import pytest
from brokers import BROKERS
from namespaces import two_machines
from test_chat import END, Client, by_sender
from test_examples import running

CLIENTS = 8  # on each machine: of two workers, one without any is a matter of 1 in 128
SPOKEN = [b"line %d" % number for number in range(20)]
MISSED = b"* Missed here: some messages\n"


@pytest.fixture(scope="module")
def machines():
    with two_machines() as machines:
        yield machines


def check_that_each_line_reaches_everybody(clients):
    for line in SPOKEN:
        for client in clients:
            client.send(line)
    for client in clients:
        lines = [client.said() for _ in range((len(clients) - 1) * len(SPOKEN))]
        others = {other.nick: SPOKEN for other in clients if other is not client}
        assert by_sender(lines) == others


@pytest.mark.parametrize("kind", BROKERS, ids=lambda kind: kind.scheme)
def test_each_line_reaches_all_workers_of_both_machines_and_a_restart_is_told(
    kind, machines, tmp_path
):
    with contextlib.ExitStack() as stack:
        first = machines[0]
        server = stack.enter_context(kind(tmp_path, first.address, first.prefix))
        chats, clients = [], []
        for machine in machines:
            args = ("--workers", "2", "--bus", server.url)
            chats.append(stack.enter_context(running("chat.py", wrap=machine.prefix, args=args)))
            for number in range(CLIENTS):
                nick = f"{machine.name}-{number}".encode()
                clients.append(machine.do(lambda nick=nick: Client(chats[-1], nick)))
                stack.callback(clients[-1].close)
        check_that_each_line_reaches_everybody(clients)
        server.restart()
        for client in clients:
            while client.line() != MISSED:
                pass
        check_that_each_line_reaches_everybody(clients)
        for chat in chats:
            status, out, log = chat.interrupt()
            assert (status, out) == (0, END)
            assert log.count("connected again; messages may be missed") == 2  # each worker
