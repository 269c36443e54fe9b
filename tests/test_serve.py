"""`python -m pyloop serve`: what it serves, its options, its processes, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest
from command import (
    IN_A_WORKER,
    SLOW,
    Command,
    app,
    children,
    importing,
    inodes,
    is_alive,
    listeners,
    until,
)

import pyloop

NOTE = "import os; open('importers', 'a').write('%d\\n' % os.getpid()); print('{\"failed\": 1}')\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two workers, shared by tests that only look."""
    source = NOTE + app("workers=2")
    with Command(tmp_path_factory.mktemp("pair"), "app:server", app=source) as command:
        yield command.ready(2)
        assert command.stop() == 0


def workers_of(command):
    return [pid for pid, line in children(command.pid).items() if '"task": "work"' in line]


# ---- one server, looked at ----


def test_start_tells_where_it_listens_and_how_to_stop(pair):
    lines = pair.log().splitlines()
    assert all(re.match(rf"[\d-]+ [\d:,]+ INFO \[{pair.pid}\] ", line) for line in lines)
    texts = [line.partition("] ")[2] for line in lines[:3]]
    assert texts == [
        "loading app:server",
        f"listening on 127.0.0.1:{pair.port}, with 2 workers",
        f"Ctrl-C or SIGTERM to {pair.pid} stops, SIGHUP reloads, SIGTTIN adds a worker, "
        "SIGTTOU removes one",
    ]


def test_workers_serve_with_numbers_and_stats_of_all(pair):
    before = int(pair.ask(b"conn.server.stats().accepted"))
    assert {pair.ask(b"worker") for _ in range(64)} == {b"1", b"2"}
    pids = pair.ask(b"sorted(w.pid for w in conn.server.stats().workers)")
    assert pids == repr(sorted(workers_of(pair))).encode()
    assert int(pair.ask(b"conn.server.stats().accepted")) == before + 66


def test_supervisor_never_imports_the_module_and_has_one_thread(pair):
    importers = {int(line) for line in (pair.directory / "importers").read_text().split()}
    assert len(importers) == 3  # the one that described it, and two workers
    assert set(workers_of(pair)) < importers
    assert pair.pid not in importers
    assert len(os.listdir(f"/proc/{pair.pid}/task")) == 1


def test_worker_has_the_fds_of_its_post_and_no_other_of_the_supervisor(pair):
    stdio = {os.readlink(f"/proc/{pair.pid}/fd/{fd}") for fd in range(3)}
    memory = {f"/memfd:pyloop-{name} (deleted)" for name in ("stats", "stack", "bus")}
    of_slots = listeners(pair.port)
    assert len(of_slots) == 2
    taken = set()
    for pid in workers_of(pair):
        common = inodes(pid) & inodes(pair.pid)
        (own,) = common & of_slots
        assert common == stdio | memory | {own}
        assert len(os.listdir(f"/proc/{pid}/fd")) <= 12  # with the orders, the bell, and its loop's
        taken.add(own)
    assert taken == of_slots


def test_fds_of_a_worker_are_not_inherited_by_its_children(pair):
    left = b"__import__('subprocess').check_output(['ls', '/proc/self/fd']).decode().split()"
    assert pair.ask(left) == repr(["0", "1", "2", "3"]).encode()  # 3 is of ls itself


# ---- options ----


def test_options_replace_what_the_module_says(tmp_path):
    source = app("port=1, workers=3, max_rss=1, drain_timeout=5.0")
    options = "--port 0 --host localhost --workers 1 --backend poll --drain-timeout 0.5"
    limits = "--max-rss 2G --max-lifetime 0 --max-messages 1000 --worker-timeout 9.5"
    args = ["app:server", *options.split(), *limits.split()]
    with Command(tmp_path, *args, app=source) as command:
        command.ready()
        settings = b"conn.server._supervision, conn.server._drain_timeout, conn._owner.loop.backend"
        said = eval(command.ask(settings), {"Supervision": dict})
        expected = {"workers": 1, "worker_timeout": 9.5, "max_rss": 2 << 30}
        expected |= {"max_lifetime": 0.0, "max_messages": 1000}
        assert said == (expected, 0.5, "poll")
        assert command.stop() == 0


def test_unix_socket_and_pid_file_are_there_while_it_serves(tmp_path):
    args = ["app:server", "--path", "sock", "--pid-file", "pid", "--max-messages", "3"]
    with Command(tmp_path, *args, app=app()) as command:
        command.ready().wait_for("listening on sock, with 1 workers")
        assert (tmp_path / "pid").read_text() == f"{command.pid}\n"
        with pyloop.dial(path=tmp_path / "sock", framing=pyloop.Lines(), timeout=60) as conn:
            for _ in range(5):
                conn.send(b"worker")
                assert conn.receive() == b"1"
        command.wait_for(r"worker 1 \(pid \d+\) is replaced: .*\(max_messages\)")
        command.ready(2)
        assert command.stop() == 0
    assert not (tmp_path / "sock").exists()
    assert not (tmp_path / "pid").exists()


def test_factory_in_a_class_of_a_package_under_app_dir_is_called(tmp_path):
    package = tmp_path / "src" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    body = app().replace("server = ", "class Shop:\n        open = lambda: [").rstrip() + "]\n"
    (package / "main.py").write_text(body)
    with Command(tmp_path, "shop.main:Shop.open", "--factory", "--app-dir", "src") as command:
        assert command.ready().ask(b"worker") == b"1"
        assert command.stop() == 0


def test_several_servers_share_workers(tmp_path):
    source = app() + "other = pyloop.Server(answer, framing=pyloop.Lines())\nboth = server, other\n"
    with Command(tmp_path, "app:both", app=source) as command:
        found = command.ready().wait_for(r"listening on 127\.0\.0\.1:(\d+), 127\.0\.0\.1:(\d+),")
        for port in found.groups():
            with pyloop.dial("127.0.0.1", int(port), framing=pyloop.Lines(), timeout=60) as conn:
                conn.send(b"conn.server.port")
                assert conn.receive() == port.encode()
        assert command.stop() == 0


def test_hooks_of_the_supervisor_are_named_in_a_warning(tmp_path):
    source = app("on_worker_stop=print, on_start=lambda s: print('started', flush=True)")
    with Command(tmp_path, "app:server", "--log-level", "warning", app=source) as command:
        command.wait_for("WARNING .* on_worker_stop: not called, since this process does not")
        until(lambda: (tmp_path / "stdout").read_text() == "started\n")
        assert command.stop() == 0
    assert len(command.log().splitlines()) == 1


def test_program_that_sets_up_logging_keeps_it_in_its_workers(tmp_path):
    source = "import logging; logging.basicConfig(format='mine: %(message)s')\n" + app()
    with Command(tmp_path, "app:server", app=source) as command:
        with pytest.raises(ConnectionResetError):
            command.ready().ask(b"1/0")
        command.wait_for(r"mine: .*127\.0\.0\.1")
        assert command.log().count("ZeroDivisionError") == 1
        assert command.stop() == 0


# ---- processes and their end ----


def test_ctrl_c_of_the_terminal_stops_all_without_a_traceback(tmp_path):
    with Command(tmp_path, "app:server", "--workers", "2", app=app()) as command:
        with command.ready(2).dial() as conn:
            conn.send(b"pid")
            assert conn.receive()
            pids = children(command.pid)
            os.killpg(command.pid, signal.SIGINT)
            assert conn.receive() is None
        assert command.finish() == 0
    log = command.log()
    assert "stopping; asked again, connections are aborted" in log
    assert "stopped" in log.splitlines()[-1]
    assert not re.search("Traceback|KeyboardInterrupt|ERROR|signal", log)
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_before_the_module_is_loaded_is_a_clean_one(tmp_path, number):
    with Command(tmp_path, "app:server", app=SLOW + app()) as command:
        until(lambda: importing(command))
        os.killpg(command.pid, signal.SIGINT) if number == signal.SIGINT else command.signal(number)
        assert command.finish() == 0
    assert [line.partition("] ")[2] for line in command.log().splitlines()] == [
        "loading app:server",
        "stopped",
    ]
    assert not any(is_alive(pid) for pid in importing(command))


def test_signals_of_a_terminal_in_the_middle_of_an_import_do_nothing_to_it(tmp_path):
    with Command(tmp_path, "app:server", app=SLOW + app()) as command:
        until(lambda: importing(command))
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(importing(command)[0], number)
        (tmp_path / "go").touch()
        assert command.ready().ask(b"worker") == b"1"
        assert len(importing(command)) == 2
        assert command.stop() == 0
    assert "KeyboardInterrupt" not in command.log()


def test_supervisor_killed_takes_workers_and_watcher_with_it(tmp_path):
    args = ["app:server", "--workers", "2", "--reload"]
    with Command(tmp_path, *args, app=app()) as command:
        command.ready(2).wait_for("watching the Python files in")
        port, pids = command.port, children(command.pid)
        assert len(pids) == 3
        assert len(os.listdir(f"/proc/{command.pid}/task")) == 1
        command.process.kill()
        until(lambda: not any(is_alive(pid) for pid in pids))
        assert command.finish() == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_supervisor_killed_during_an_import_takes_the_interpreter_with_it(tmp_path):
    slow = IN_A_WORKER + SLOW.partition("\n")[2]
    with Command(tmp_path, "app:server", "--workers", "2", app=slow + app()) as command:
        until(lambda: len(importing(command)) == 2)
        command.process.kill()
        until(lambda: not any(is_alive(pid) for pid in importing(command)))
        command.finish()
    (tmp_path / "importing").unlink()
    with Command(tmp_path, "app:server", app=SLOW + app()) as command:
        until(lambda: importing(command))
        command.process.kill()
        until(lambda: not is_alive(importing(command)[0]))


def test_signals_add_and_remove_a_worker(tmp_path):
    with Command(tmp_path, "app:server", app=app()) as command:
        command.ready().signal(signal.SIGTTIN)
        command.ready(2).wait_for("SIGTTIN: 2 workers")
        assert {command.ask(b"worker") for _ in range(64)} == {b"1", b"2"}
        command.signal(signal.SIGTTOU)
        command.wait_for("SIGTTOU: 1 workers")
        assert {command.ask(b"worker") for _ in range(8)} == {b"1"}
        assert command.stop() == 0
