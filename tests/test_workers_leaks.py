"""No zombie, no fd, no name is left behind by deaths, reloads, and a killed supervisor."""

from __future__ import annotations

import os
import re
import signal

import pytest
from workers import Program, Talker, children_of, connect, eventually, fds_of, is_alive

SERVE = """
    path = sys.argv[1] if len(sys.argv) > 1 else None
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    serve(path=path or None, port=port, drain_timeout=5)
"""


def names_in_shared_memory():
    """All but those that say that another test made them."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("pyloop-test")}


def no_name_stays_but(names):
    """New ones may be those of other tests, which run at the same time: these go by themselves."""
    left = names_in_shared_memory() - names
    eventually(lambda: not left & names_in_shared_memory(), f"{left} go")


def fds_when_quiet(pid):
    """The fds of a supervisor once it has closed those of processes that ended."""
    seen = []

    def is_quiet():
        seen.append(fds_of(pid))
        return len(seen) > 3 and len(set(map(tuple, seen[-3:]))) == 1

    eventually(is_quiet)
    return seen[-1]


def kinds(fds):
    """fds without their inode numbers."""
    return sorted(fd.split("[")[0] for fd in fds)


def die_and_reload(program, deaths, reloads):
    """Kill workers one after the other, then reload."""
    for number in range(deaths):
        os.kill(program.workers()[1 + number % 2], signal.SIGKILL)
        program.ready(1)
    for _ in range(reloads):
        program.signal(signal.SIGHUP)
        program.ready()


def test_deaths_and_reloads_leave_no_fd_and_no_zombie(backend):
    names = names_in_shared_memory()
    source = """
        import pyloop.supervisor
        pyloop.supervisor.SETTLED_SECONDS = 0
        serve()
    """
    with Program(source, backend) as program:
        program.ready()
        before = fds_when_quiet(program.pid)
        die_and_reload(program, deaths=20, reloads=3)
        eventually(lambda: len(children_of(program.pid)) == 2)
        assert "Z" not in children_of(program.pid).values()
        assert kinds(fds_when_quiet(program.pid)) == kinds(before)
        assert program.end(signal.SIGTERM)[0] == 0
    no_name_stays_but(names)


def test_worker_has_no_fd_of_the_others(backend):
    source = """
        first, second = server_of(workers=3), server_of(workers=3, on_worker_start=None)
        pyloop.run(first, second)
    """
    with Program(source, backend) as program:
        program.ready(3)
        os.kill(program.workers()[2], signal.SIGKILL)  # its successor inherits most
        program.ready(1)
        supervisor = fds_when_quiet(program.pid)
        theirs = {number: fds_of(pid) for number, pid in program.workers().items()}
        for number, fds in theirs.items():
            sockets = {fd for fd in fds if fd.startswith("socket")}
            assert len(sockets & set(supervisor)) == 2, fds  # its two listeners, and no pipe
            for other, others in theirs.items():
                assert other == number or not sockets & set(others)
        assert kinds(theirs[1]) == kinds(theirs[2]) == kinds(theirs[3])


def test_signal_of_a_worker_is_not_heard_by_the_supervisor():
    with Program(SERVE) as program:
        port = program.ready()
        with Talker(port) as talker:
            pid = talker.pid()
            for number in (signal.SIGTTIN, signal.SIGHUP, signal.SIGCHLD, signal.SIGCONT):
                os.kill(pid, number)
            assert talker.pid() == pid
        assert sorted(program.workers()) == [1, 2]
        assert re.findall("reloading|SIGTTIN", program.log()) == []


# ---- the supervisor is killed ----


@pytest.fixture(params=["tcp", "unix"])
def path(request, tmp_path):
    return str(tmp_path / "socket") if request.param == "unix" else ""


def test_workers_of_a_killed_supervisor_leave_and_the_next_start_works(backend, path):
    names = names_in_shared_memory()
    with Program(SERVE, backend, path) as program:
        port = program.ready()
        workers = program.workers().values()
        idle = connect(port, path or None)
        os.kill(program.pid, signal.SIGKILL)  # and at once again, as who supervises it would
        with Program(SERVE, backend, path, str(port)) as successor:
            assert successor.ready() == port
            with Talker(port, path or None) as talker:
                assert talker.pid() in successor.workers().values()
            eventually(lambda: not any(map(is_alive, workers)), "the workers leave")
            assert idle.recv(1) == b""  # in good order
            idle.close()
            with Talker(port, path or None) as talker:  # nobody took the new socket file away
                assert talker.pid() in successor.workers().values()
            assert successor.end(signal.SIGTERM)[0] == 0
        assert f"the supervisor of worker process {min(workers)} is gone: stopping" in program.log()
    no_name_stays_but(names)
    assert not path or not os.path.exists(path)


def test_draining_workers_of_a_killed_supervisor_finish_and_leave(backend):
    source = """
        async def slow(conn):
            async for line in conn:
                conn.send(b"begun " + str(os.getpid()).encode())
                await asyncio.sleep(1)
                conn.send(b"done")
        serve(slow)
    """
    with Program(source, backend) as program, Talker(program.ready()) as talker:
        pid = int(talker.ask("x").split()[1])
        program.signal(signal.SIGTERM)
        program.wait_log("ended with status 0")  # the other one: so it is told to stop
        os.kill(program.pid, signal.SIGKILL)
        assert talker.next() == "done"
        with pytest.raises(EOFError):
            talker.next()
        talker.close()
        eventually(lambda: not is_alive(pid))


def test_retiring_worker_of_a_killed_supervisor_leaves():
    with Program(SERVE) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        program.signal(signal.SIGHUP)
        program.wait_log("reloaded 2 workers")
        os.kill(program.pid, signal.SIGKILL)
        with pytest.raises(EOFError):
            talker.next()
        talker.close()
        eventually(lambda: not is_alive(pid))


@pytest.mark.parametrize("hang", ["while True: pass", "time.sleep(1000)"])
def test_hanging_worker_of_a_killed_supervisor_ends_too(hang):
    source = f"""
        import pyloop.worker
        pyloop.worker.ORPHAN_SECONDS = 0.2
        def handle(conn, line):
            if line == b"pid": return talk(conn, line)
            say("hanging")
            {hang}
        serve(handle, drain_timeout=0.2)
    """
    with Program(source) as program, Talker(program.ready()) as talker:
        pid = talker.pid()
        talker.send("hang")
        assert program.line() == "hanging"
        os.kill(program.pid, signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionResetError)):
            talker.next()
        eventually(lambda: not is_alive(pid))


def test_stale_socket_file_of_a_killed_group_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    with Program(SERVE, "auto", path) as program:
        program.ready()
        os.killpg(program.pid, signal.SIGKILL)
        program.process.wait()
    assert os.path.exists(path)
    with Program(SERVE, "auto", path) as program:
        program.ready()
        with Talker(0, path) as talker:
            assert talker.pid() in program.workers().values()
        assert program.end(signal.SIGTERM)[0] == 0
    assert not os.path.exists(path)


def test_socket_that_was_handed_in_is_shared_and_closed():
    source = """
        sock = socket.create_server(("127.0.0.1", 0))
        server = server_of(sock=sock)
        pyloop.run(server)
        say("closed", sock.fileno(), server.port, server.sockets)
    """
    with Program(source) as program:
        with Talker(program.ready()) as talker:
            assert talker.pid() in program.workers().values()
        assert program.end(signal.SIGTERM) == (0, "closed -1 None ()\n")


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def deaths_cost_no_memory(backend, deaths, bound):
    """Let workers die, some with tracebacks that differ; return how much the supervisor grew."""
    source = """
        def fail(conn, line):
            if line == b"die": os._exit(1)
            talk(conn, line)
        def start(server):
            if os.getpid() % 4 == 0: raise LookupError(f"{os.getpid()} " * 1000)
        import pyloop.supervisor
        pyloop.supervisor.BACKOFF_MOST = 0.1
        pyloop.supervisor.GIVE_UP_AFTER = 1000
        serve(fail, on_start=start)
    """
    with Program(source, backend) as program:
        port = program.ready()
        warm_up = max(10, deaths // 5)
        for number in range(deaths):
            if number == warm_up:
                before = resident(program.pid)
            with Talker(port) as talker:
                talker.send("die")
                with pytest.raises((EOFError, ConnectionResetError)):
                    talker.next()
            assert program.ready(1) == port
        grown = resident(program.pid) - before
        assert grown < bound, f"{grown} bytes in {deaths - warm_up} deaths"
        return grown


def test_deaths_cost_the_supervisor_no_memory():
    deaths_cost_no_memory("auto", deaths=30, bound=1 << 20)
