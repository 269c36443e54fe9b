"""run() with workers: what is served, what is counted, and what is refused at once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading

import pytest
from workers import Program, Talker, eventually

import pyloop


def echo(conn, message):
    conn.send(message)


# ---- serving ----


def test_two_servers_share_workers_and_count_apart(backend):
    source = """
        def tell(conn, line):
            counted = first.stats(), second.stats()
            conn.send(" ".join(f"{s.accepted}/{s.messages_in}" for s in counted).encode())
        first = server_of()
        second = server_of(tell)
        pyloop.run(first, second)
        stats = first.stats()
        say("end", stats.messages_in, second.stats().messages_in, len(stats.workers))
    """
    with Program(source, backend) as program:
        lines = [program.line().split() for _ in range(4)]
        first, second = {(line[1], line[2]): int(line[2]) for line in lines[:2]}.values()
        pids = set()
        for _ in range(3):
            with Talker(first) as talker:
                pids.add(talker.pid())
                talker.ask("x")
        with Talker(second) as talker:
            assert talker.ask("x") == "3/6 1/1"
        assert pids <= set(program.workers().values())
        assert program.end(signal.SIGTERM) == (0, "end 6 1 0\n")


def test_stats_are_the_same_in_every_worker_and_survive_it():
    source = """
        def tell(conn, line):
            if line == b"stats":
                s = server.stats()
                numbers = sorted((w.worker_id, w.state) for w in s.workers)
                conn.send(f"{s.accepted} {s.open} {s.processes.killed} {numbers}".encode())
            else:
                talk(conn, line)
        server = server_of(tell)
        pyloop.run(server)
    """
    both = "[(1, 'ready'), (2, 'ready')]"
    with Program(source) as program:
        port = program.ready()
        talkers = {}
        while len(talkers) < 2:
            talker = Talker(port)
            talkers.setdefault(talker.pid(), []).append(talker)
        count = sum(map(len, talkers.values()))
        for members in talkers.values():
            assert members[0].ask("stats") == f"{count} {count} 0 {both}"
        victim, left = talkers
        os.kill(victim, signal.SIGKILL)
        program.ready(1)
        left_open = len(talkers[left])
        eventually(
            lambda: talkers[left][0].ask("stats") == f"{count} {left_open} 1 {both}",
            "what the dead one has counted is kept, but none of its connections is open",
        )
        for members in talkers.values():
            for talker in members:
                talker.close()


def test_auto_is_a_worker_for_each_usable_core():
    source = """
        os.sched_getaffinity = lambda pid: {0, 5, 7}
        server = server_of(workers="auto")
        pyloop.run(server)
    """
    with Program(source) as program:
        program.ready(3)
        assert sorted(program.workers()) == [1, 2, 3]
        assert program.end(signal.SIGTERM)[0] == 0
        assert "worker 4" not in program.log()


def test_one_worker_is_this_process_itself():
    source = """
        server = server_of(workers=1, on_start=lambda server: say("ready", 0, server.port))
        pyloop.run(server)
    """
    with Program(source) as program, Talker(program.ready(1)) as talker:
        assert talker.pid() == program.pid


def test_hosts_of_both_families_are_served_by_every_worker():
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    with Program('serve(host=["127.0.0.1", "::1"])') as program:
        port = program.ready()
        pids: dict[str, set[int]] = {"127.0.0.1": set(), "::1": set()}
        for host, found in pids.items():
            for _ in range(40):
                with socket.create_connection((host, port), 60) as sock:
                    sock.sendall(b"pid\n")
                    found.add(int(sock.recv(100)))
        assert pids["127.0.0.1"] == pids["::1"] == set(program.workers().values())


def test_tls_is_served_by_workers(tmp_path):
    import ssl

    import trustme

    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    source = """
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1])
        serve(ssl=context)
    """
    with Program(source, "auto", str(tmp_path / "pem")) as program:
        port = program.ready()
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", port), 60) as plain:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                    sock.sendall(b"pid\n")
                    assert int(sock.recv(100)) in program.workers().values()


# ---- arguments ----


@pytest.mark.parametrize(
    ("workers", "error"),
    [
        *[(value, ValueError) for value in (0, -1, 1025, "two", "")],
        *[(value, TypeError) for value in (True, 1.5, None, [])],
    ],
)
def test_workers_that_are_no_number_are_refused(workers, error):
    with pytest.raises(error) as caught:
        pyloop.Server(echo, workers=workers)
    expected = 'workers: expected 1 to 1024, or "auto" for one per core, got '
    assert str(caught.value) == expected + repr(workers)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("worker_timeout", 0, "worker_timeout: expected a positive number of seconds or None"),
        ("max_lifetime", -1, "max_lifetime: expected a positive number of seconds or None"),
        ("max_messages", 0, "max_messages: expected 1 to 4611686018427387904, got 0"),
        ("max_rss", 0, "max_rss: expected 1 to 4611686018427387904, got 0"),
    ],
)
def test_limits_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        pyloop.Server(echo, **{name: value})


@pytest.mark.parametrize("name", ["on_worker_start", "on_worker_stop"])
def test_hook_of_the_supervisor_that_is_no_plain_function_is_refused(name):
    async def hook(server, worker_id): ...

    with pytest.raises(TypeError, match=f"{name}: expected a plain function, got the coroutine"):
        pyloop.Server(echo, **{name: hook})
    with pytest.raises(TypeError, match=f"{name}: expected a callable or None, got 1"):
        pyloop.Server(echo, **{name: 1})


def test_servers_of_one_run_that_differ_in_workers_or_limits_are_refused():
    one, two = pyloop.Server(echo, workers=2), pyloop.Server(echo, workers=3)
    with pytest.raises(ValueError, match="differ in workers") as caught:
        pyloop.run(one, two)
    assert str(caught.value) == (
        "run() got servers that differ in workers, but all share the same workers: "
        "<pyloop.Server 127.0.0.1:0 stopped> has 2, <pyloop.Server 127.0.0.1:0 stopped> has 3"
    )
    three = pyloop.Server(echo, workers=2, max_messages=5)
    with pytest.raises(ValueError, match=r"differ in max_messages.* has 0, .* has 5"):
        pyloop.run(one, three)


def test_run_in_another_thread_is_refused():
    errors = []

    def work():
        try:
            pyloop.run(pyloop.Server(echo, workers=2))
        except RuntimeError as exc:
            errors.append(str(exc))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert errors == ["run() with workers=2 needs the main thread: its signals steer them"]


@pytest.mark.parametrize("call", ["start", "serve_forever", "__aenter__"])
def test_server_with_workers_is_started_by_run_only(run, call):
    server = pyloop.Server(echo, workers=2)
    with pytest.raises(RuntimeError) as caught:
        run(getattr(server, call)())
    assert str(caught.value) == (
        "Server.start(): a server with workers=2 is served by pyloop.run(server)"
    )
    assert server.sockets == ()


# ---- addresses that are taken ----


@pytest.mark.parametrize("reuse_port", [False, True])
def test_port_of_another_program_is_an_error_that_names_it(reuse_port):
    """True: of one that has set SO_REUSEPORT after its bind, as pyloop does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if reuse_port:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address") as caught:
            pyloop.run(pyloop.Server(echo, port=port, workers=2))
        assert caught.value.errno == errno.EADDRINUSE


def test_same_program_started_twice_is_an_error_and_the_first_one_serves_on(tmp_path):
    source = """
        where = dict(port=int(sys.argv[1])) if sys.argv[1].isdigit() else dict(path=sys.argv[1])
        try:
            serve(**where)
        except OSError as exc:
            say(exc)
    """
    path = str(tmp_path / "socket")
    with Program(source, "auto", "0") as tcp, Program(source, "auto", path) as unix:
        port, _ = tcp.ready(), unix.ready()
        for where, name in ((str(port), f"127.0.0.1:{port}"), (path, path)):
            with Program(source, "auto", where) as again:
                status, out = again.end()
                expected = f"[Errno 98] cannot listen on {name}: Address already in use\n"
                assert (status, out) == (0, expected)
        for talker, program in ((Talker(port), tcp), (Talker(0, path), unix)):
            with talker:
                assert talker.pid() in program.workers().values()


def test_address_that_is_free_within_a_moment_is_waited_for(monkeypatch):
    """As when the workers of a killed supervisor are about to leave."""
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    waits = []

    async def wait(seconds):
        waits.append(seconds)
        taken.close()

    monkeypatch.setattr("pyloop.slots.asyncio.sleep", wait)
    slots = pyloop.slots.Slots(pyloop.Server(echo, port=port)._place)
    asyncio.run(slots.open(2))
    slots.close()
    assert waits == [0.05]


def test_memory_that_cannot_be_had_is_an_error_that_says_for_what(monkeypatch):
    def fail(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.memfd_create", fail)
    with pytest.raises(OSError, match="cannot make a file for the stacks of workers: Too"):
        pyloop.run(pyloop.Server(echo, workers=2))
    monkeypatch.setattr("pyloop.page.check", fail)
    for workers in (1, 2):
        with pytest.raises(OSError, match=r"cannot make \d+ bytes of shared memory for the count"):
            pyloop.run(pyloop.Server(echo, workers=workers))
