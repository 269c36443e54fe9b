"""Model fork: a child's fate is its own client's only, and none is left behind."""

from __future__ import annotations

import json
import os
import signal

import pytest
from faults import TIMEOUT, Child, wait_until
from ways import Running, serving


def pid_of(peer) -> int:
    """Ask a client's server process for its pid."""
    peer.send(b"pid\n")
    return int(peer.line())


def processes(server, **expected):
    """Wait until the children's ends are counted so."""
    while True:
        counted = server.ask("stats")["processes"]
        if all(counted[name] == value for name, value in expected.items()):
            return


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_conversation_has_a_process_and_the_parent_has_none_of_its_sockets():
    with serving("fork") as server:
        before = server.ask("fds")["fds"]
        peers = [server.new() for _ in range(3)]
        pids = {pid_of(peer) for peer in peers}
        assert len(pids) == 3 and set(server.children()) == pids
        pidfds = [fd for fd in server.ask("fds")["fds"] if fd not in before]
        assert len(pidfds) == 3
        for fd in pidfds:
            assert "pidfd" in os.readlink(f"/proc/{server.pid}/fd/{fd}")


def test_child_has_nothing_of_its_parent_but_the_bus():
    with serving("fork") as server:
        server.new().echo(b"an older sibling")
        peer = server.new()
        peer.send(b"fds\n")
        fds = [fd for fd in json.loads(peer.line()) if fd > 2]
        names = [os.readlink(f"/proc/{pid_of(peer)}/fd/{fd}") for fd in fds]
        kinds = sorted(name.partition(":")[0] for name in names)
        assert kinds == ["/memfd", "anon_inode", "pipe", "pipe", "socket"]
        assert "anon_inode:[eventfd]" in names


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_death_of_a_child_harms_its_own_client_only(number):
    with serving("fork") as server:
        peers = [server.new() for _ in range(3)]
        pids = [pid_of(peer) for peer in peers]
        os.kill(pids[1], number)
        assert peers[1].line() == b""
        assert peers[0].echo(b"still here") and peers[2].echo(b"still here")
        assert server.new().echo(b"welcome")
        processes(server, started=4, killed=1)
        assert server.stats()["open"] == 3
        assert pids[1] not in server.children()


def test_exit_codes_are_counted():
    with serving("fork") as server:
        ends = (b"exit 0\n", b"exit 3\n", b"raise\n", b"close\n")
        for order in ends:
            peer = server.new()
            peer.send(order)
            peer.close()
        processes(server, started=4, exited=2, failed=2, killed=0)
        assert server.children() == {}


def test_what_children_count_outlives_them():
    with serving("fork") as server:
        for turn in range(5):
            peer = server.new()
            assert peer.echo(b"%d" % turn)
            peer.close()
            processes(server, exited=turn + 1)
        stats = server.stats()
        assert (stats["accepted"], stats["open"], stats["messages_in"]) == (5, 0, 5)
        assert len(stats["workers"]) == 1  # the acceptor: cells are free again


def test_children_ignore_the_terminals_sigint_and_obey_their_parent():
    with serving("fork") as server:
        peer = server.new()
        os.kill(pid_of(peer), signal.SIGINT)
        assert peer.echo(b"still here")
        peer.send(b"last\nunfinis")
        assert peer.line() == b"last\n"
        os.kill(pid_of_children(server), signal.SIGTERM)
        assert peer.line() == b""
        peer.close()
        processes(server, exited=1)
        assert server.new().echo(b"the parent serves on")


def pid_of_children(server) -> int:
    (pid,) = server.children()
    return pid


def test_stop_kills_who_does_not_end_in_time():
    with serving("fork", drain_timeout=0.2) as server:
        peer = server.new()
        peer.send(b"sleep 1000\n")
        assert peer.line() == b"sleeping\n"
        pid = pid_of_children(server)
        assert server.terminate() == 0
        assert peer.line() == b""
        assert not is_alive(pid)


def test_second_signal_does_not_wait():
    with serving("fork", drain_timeout=1000) as server:
        peer = server.new()
        peer.send(b"sleep 1000\n")
        assert peer.line() == b"sleeping\n"
        server.process.send_signal(signal.SIGINT)
        while server.stats()["workers"][0]["state"] != "leaving":
            pass
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(TIMEOUT) == 0


@pytest.mark.parametrize("order", [b"hello\n", b"sleep 1000\n"], ids=["idle", "busy"])
def test_children_leave_when_the_parent_is_killed(order):
    with Running("fork", "auto", {"drain_timeout": 0.5}) as server:
        peer = server.new()
        peer.send(order)
        assert peer.line()
        pid = pid_of_children(server)
        server.process.kill()
        server.process.wait(TIMEOUT)
        assert peer.line() == b""
        while is_alive(pid):
            pass


def test_handlers_see_only_their_own_connection():
    script = """if True:
    import os, pyloop
    from faults import serve

    def handle(conn):
        for line in conn:
            server = conn.server
            conn.send(b"%d %d" % (len(server.connections), conn in server.connections))
            server.broadcast(b"to all")
            conn.send(b"%d" % (conn.id > 0 and conn.peername == conn.peername))

    serve(handle, "auto", model="fork")
    """
    with Child(script) as child:
        port = child.next()["port"]
        one, two = child.peer(port), child.peer(port)
        for peer in (one, two):
            peer.send(b"x\n")
            assert [peer.line() for _ in range(3)] == [b"1 1\n", b"to all\n", b"1\n"]
        child.stop()


def test_children_of_the_users_own_are_not_reaped():
    script = """if True:
    import asyncio, subprocess, sys, pyloop
    from faults import say, serve

    def begin():
        program = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(7)"]
        asyncio.get_running_loop().child = subprocess.Popen(program, stdin=subprocess.PIPE)
        say(pid=asyncio.get_running_loop().child.pid)

    def stopping(server):
        child = asyncio.get_running_loop().child
        child.stdin.close()
        say(status=child.wait())

    serve(lambda conn, line: conn.send(line), "auto", model="fork",
          on_start=begin, on_stop=stopping)
    """
    with Child(script) as child:
        child.next()
        port = child.next()["port"]
        for _ in range(3):
            peer = child.peer(port)
            assert peer.echo(b"hello")
            peer.close()
        wait_until(child, "open", 0)
        child.ask("stop")
        assert child.next() == {"status": 7}
        assert child.finish() == 0


def test_failing_fork_costs_that_connection_only_and_accepting_goes_on():
    script = """if True:
    import errno, os, sys, pyloop
    from faults import serve
    from pyloop import fork_model

    fork, failures = fork_model.fork_child, [errno.EAGAIN, errno.ENOMEM]

    def fail(main):
        if failures:
            raise OSError(failures[0], os.strerror(failures.pop(0)))
        return fork(main)

    fork_model.fork_child = fail
    serve(lambda conn, line: conn.send(line), "auto", model="fork")
    """
    with Child(script) as child:
        port = child.next()["port"]
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                child.peer(port).line()
        assert child.peer(port).echo(b"third time")
        stats = child.ask("stats")
        assert (stats["accepted"], stats["refused"], stats["accept_pauses"]) == (1, 2, 2)
        assert stats["processes"]["started"] == 1
        text = "Resource temporarily unavailable"
        assert "no process for 127.0.0.1" in stats["log"][0][1] and text in stats["log"][0][1]
        child.stop()


@pytest.mark.parametrize("pidfds", [True, False])
def test_child_whose_status_is_taken_by_the_kernel_does_not_disturb_a_stop(pidfds):
    script = """if True:
    import os, signal, sys, time
    from faults import serve

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if sys.argv[1] == "False":
        del os.pidfd_open

    def kill_and_abort(number, frame):
        service = main_server._service
        first = next(iter(service._children))
        os.kill(first, signal.SIGKILL)
        while os.path.exists(f"/proc/{first}"):
            time.sleep(0.01)
        main_server.abort()

    def begin():
        global main_server
        import gc, pyloop
        (main_server,) = [o for o in gc.get_objects() if isinstance(o, pyloop.Server)]
        signal.signal(signal.SIGUSR1, kill_and_abort)

    serve(lambda conn, line: conn.send(line), "auto", model="fork", on_start=begin)
    """
    with Child(script, str(pidfds)) as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(3)]
        assert all(peer.echo(b"hello") for peer in peers)
        os.kill(child.pid, signal.SIGUSR1)
        assert [peer.line() for peer in peers] == [b"", b"", b""]
        assert child.peer(port).echo(b"served on")
        child.stop()


def test_reaping_needs_no_pidfd():
    script = """if True:
    import os
    from faults import serve

    del os.pidfd_open
    serve(lambda conn, line: conn.send(line), "auto", model="fork", max_connections=2)
    """
    with Child(script) as child:
        port = child.next()["port"]
        for _ in range(6):
            peer = child.peer(port)
            assert peer.echo(b"hello")
            peer.close()
        processes(child, started=6, exited=6)
        child.stop()
