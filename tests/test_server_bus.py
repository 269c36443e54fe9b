"""server.bus: it reaches all processes of a run, also those that come later, in every model."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from command import Command
from test_workers_leaks import fds_when_quiet, kinds, names_in_shared_memory, no_name_stays_but
from workers import Program, Talker, rounds

import pyloop

HANDLER = """
def heard(server):
    def say(topic, message):
        server.broadcast(b"%d heard %s" % (server.worker_id, message))
    server.bus.subscribe("say", say)

def publish(conn, line):
    if line == b"pid": return talk(conn, line)
    conn.server.bus.publish("say", line)
"""
SERVED = """
import os, pyloop

def heard(server):
    def say(topic, message):
        server.broadcast(b"%d heard %s" % (server.worker_id, message))
    server.bus.subscribe("say", say)

def publish(conn, line):
    if line == b"pid":
        conn.send(b"%d" % os.getpid())
    else:
        conn.server.bus.publish("say", line)

server = pyloop.Server(
    publish, framing=pyloop.Lines(), workers=2, on_start=heard, bus="shm://BUS", drain_timeout=0.1
)
"""


@contextlib.contextmanager
def clients_of(port, workers):
    """A client of each worker, by the worker's number; `workers` has the pids."""
    with contextlib.ExitStack() as stack:
        found = {}
        for _ in rounds(1000):
            talker = stack.enter_context(Talker(port))
            found[talker.pid()] = talker
            if set(workers.values()) <= set(found):
                break
        yield {number: found[pid] for number, pid in workers.items()}


def all_hear(port, workers):
    """What is said to each worker reaches the clients of all of them."""
    with clients_of(port, workers) as clients:
        for speaker in clients.values():
            speaker.send("hello")
            for number, client in clients.items():
                assert client.next() == f"{number} heard hello"


def test_all_workers_hear_and_so_do_their_successors(backend):
    names = names_in_shared_memory()
    source = HANDLER + 'serve(publish, on_start=heard, bus="shm://", drain_timeout=0.1)'
    with Program(source, backend) as program:
        port = program.ready()
        before = fds_when_quiet(program.pid)
        all_hear(port, program.workers())
        os.kill(program.workers()[2], signal.SIGKILL)
        program.ready(1)
        all_hear(port, program.workers())
        program.signal(signal.SIGHUP)
        program.ready(2)
        program.wait_log("reloaded 2 workers")
        all_hear(port, program.workers())
        assert kinds(fds_when_quiet(program.pid)) == kinds(before)
        assert program.end(signal.SIGTERM) == (0, "")
    no_name_stays_but(names)


def pids(command, number):
    """The pids of the two newest workers, by number."""
    command.wait_for(r"worker \d+ \(pid \d+\) is ready", number)
    found = [command.wait_for(r"worker (\d+) \(pid (\d+)\) is ready", n + 1) for n in range(number)]
    return {int(match[1]): int(match[2]) for match in found}


def test_interpreters_of_serve_hear_each_other(tmp_path):
    with Command(tmp_path, "app:server", app=SERVED.replace("BUS", "")) as command:
        all_hear(command.port, pids(command, 2))
        command.reload()
        command.wait_for("reloaded 2 workers")
        all_hear(command.port, pids(command, 4))
        command.write("app", SERVED.replace("BUS", "?capacity=8192"))
        command.reload()
        command.wait_for("reload: the old workers go on: another bus needs a restart")
        assert command.stop() == 0


def test_threads_of_all_workers_publish():
    source = HANDLER + 'serve(publish, on_start=heard, bus="shm://", model="thread")'
    with Program(source) as program:
        all_hear(program.ready(), program.workers())


def test_forks_publish_and_their_acceptor_hears():
    source = """
        def publish(conn):
            conn.server.bus.publish("from", conn.receive())
            try:
                conn.server.bus.subscribe()
            except RuntimeError as exc:
                conn.send(str(exc).encode())

        def start(server):
            say("ready", 0, server.port)
            server.bus.subscribe("from", lambda topic, message: say(message.decode()))

        pyloop.run(pyloop.Server(publish, framing=pyloop.Lines(), model="fork", bus="shm://",
                                 on_start=start))
    """
    with Program(source) as program, Talker(program.ready(1)) as talker:
        talker.send("hello")
        assert program.line() == "hello"
        assert talker.next() == "Bus.subscribe(): needs a running event loop, over shm://"


def test_servers_of_one_run_share_the_bus_of_one_url():
    source = """
        def start(server):
            buses.append(server.bus)
            if len(buses) == 3:
                say(buses[0] is buses[1], buses[0] is buses[2])
                os.kill(os.getpid(), signal.SIGTERM)
        buses = []
        urls = ("shm://", "shm://", "shm://?capacity=8192")
        pyloop.run(*(pyloop.Server(talk, on_start=start, bus=url) for url in urls))
        say(buses[0])
    """
    with Program(source) as program:
        assert program.line() == "True False"
        assert program.line() == "<pyloop.Bus shm:// closed>"
        assert program.end() == (0, "")


def test_server_that_is_started_has_a_bus_of_its_own_until_it_stops(run):
    async def main():
        server = pyloop.Server(print, bus="shm://?capacity=8192")
        with pytest.raises(RuntimeError, match=r"server\.bus: not started"):
            _ = server.bus
        for _ in range(2):
            async with server, server.bus.subscribe() as messages:
                bus = server.bus
                bus.publish("t", b"hello")
                assert await anext(messages) == ("t", b"hello")
            with pytest.raises(RuntimeError, match=r"Bus.publish\(\): the bus is closed"):
                bus.publish("t", b"")
            with pytest.raises(RuntimeError, match=r"server\.bus: not started"):
                _ = server.bus

    run(main())


def test_server_that_fails_to_start_leaves_no_bus(run):
    def fail(server):
        buses.append(server.bus)
        server.bus.subscribe("", print)
        raise ValueError("by the hook")

    async def main():
        server = pyloop.Server(lambda conn, line: None, port=0, bus="shm://", on_start=fail)
        with pytest.raises(ValueError, match="by the hook"):
            await server.start()
        with pytest.raises(RuntimeError, match=r"server\.bus: not started"):
            _ = server.bus
        with pytest.raises(RuntimeError, match="the bus is closed"):
            buses[0].publish("t", b"")

    buses = []
    run(main())


def test_server_without_one_says_why():
    with pytest.raises(RuntimeError, match="it has none, by bus=None"):
        _ = pyloop.Server(print, bus=None).bus
    with pytest.raises(ValueError, match="bus: expected a URL, shm://, redis://"):
        pyloop.Server(print, bus="tcp://x")
