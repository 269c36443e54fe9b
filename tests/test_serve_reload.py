"""`python -m pyloop serve`: SIGHUP and --reload serve new code, and refuse nobody."""

from __future__ import annotations

import os
import re
import resource
import signal
import threading

from command import IN_A_WORKER, SLOW, Command, app, children, importing, is_alive, until

CONVERSATION = 5


def versioned(number: int, options: str = "") -> str:
    return f"version = {number}\n" + app(options) + "    server.version = version\n"


def version_of(command: Command) -> bytes:
    return command.ask(b"conn.server.version")


class Clients(threading.Thread):
    """Clients that converse, one after the other, until told to stop; each answer is kept."""

    def __init__(self, command: Command) -> None:
        super().__init__(daemon=True)
        self.command, self.answers, self.failure = command, [], None
        self._enough = threading.Event()

    def run(self) -> None:
        try:
            while not self._enough.is_set():
                with self.command.dial() as conn:
                    for _ in range(CONVERSATION):
                        conn.send(b"conn.server.version")
                        self.answers.append(conn.receive())
        except BaseException as exc:
            self.failure = exc

    def __enter__(self) -> Clients:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._enough.set()
        self.join(60)
        assert not self.is_alive()


def test_reload_serves_new_code_and_refuses_nobody(tmp_path):
    with Command(tmp_path, "app:server", app=versioned(1, "workers=2")) as command:
        old = command.ready(2).dial()
        old.send(b"conn.server.version")
        assert old.receive() == b"1"
        with Clients(command) as first, Clients(command) as second:
            until(lambda: first.answers and second.answers)
            command.write("app", versioned(2, "workers=2"))
            command.reload()
            command.wait_for("reloaded 2 workers")
            seen = [len(clients.answers) for clients in (first, second)]
            until(lambda: len(first.answers) > seen[0] + 20)
        for clients, count in zip((first, second), seen, strict=True):
            assert clients.failure is None
            assert set(clients.answers[:count]) == {b"1", b"2"}
            # The conversation of then may have gone on with the old worker.
            assert set(clients.answers[count + CONVERSATION :]) <= {b"2"}
        old.send(b"conn.server.version")  # it stays with the worker that has it
        assert old.receive() == b"1"
        old.close()
        assert command.stop() == 0
    assert not re.search("ERROR|Traceback", command.log())


def test_broken_reload_keeps_the_old_workers_and_a_mended_one_replaces_them(tmp_path):
    with Command(tmp_path, "app:server", app=versioned(1)) as command:
        pid = command.ready().ask(b"pid")
        command.write("app", "nonsense\n")
        command.reload()
        command.wait_for("NameError: name 'nonsense' is not defined")
        log = command.log()
        assert re.search(
            "ERROR .* reload: the old workers go on: cannot serve app:server: its code raised an "
            r'exception\nTraceback \(most recent call last\):\n  File "\S+app.py", line 1, in',
            log,
        )
        assert log.count("Traceback") == 1
        assert command.ask(b"pid") == pid
        command.write("app", versioned(2))
        command.reload()
        command.wait_for("reloaded 1 workers")
        assert version_of(command) == b"2"
        assert command.stop() == 0


def test_reload_without_a_free_fd_keeps_the_old_workers(tmp_path):
    with Command(tmp_path, "app:server", app=versioned(1)) as command:
        pid = command.ready().ask(b"pid")
        before = len(os.listdir(f"/proc/{command.pid}/fd"))
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (3, 64))
        command.reload()
        command.wait_for(r"reload: the old workers go on: \[Errno 24\] Too many open files")
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (64, 64))
        assert len(os.listdir(f"/proc/{command.pid}/fd")) == before
        assert command.ask(b"pid") == pid
        command.reload()
        command.wait_for("reloaded 1 workers")
        assert command.stop() == 0
    assert "Traceback" not in command.log()


def test_reload_with_changed_settings_applies_limits_and_names_what_needs_a_restart(tmp_path):
    source = versioned(1) + "servers = [server]\n"
    with Command(tmp_path, "app:servers", app=source) as command:
        port = command.ready().port
        changed = versioned(2, "port=1, backlog=7, workers=2, max_messages=10")
        command.write("app", changed + "servers = [server]\n")
        command.reload()
        command.wait_for("reloaded 1 workers")
        log = command.log()
        assert (
            "reload: to listen on 127.0.0.1:1 (backlog 7) needs a restart: "
            "it is still 127.0.0.1:0 (1024)\n"
        ) in log
        assert "reload: workers=2 instead of 1 needs a restart\n" in log
        with command.dial() as conn:
            for _ in range(12):
                conn.send(b"conn.server.port, conn.server.version")
                assert conn.receive() == b"(%d, 2)" % port
        command.wait_for(r"is replaced: .*\(max_messages\)")
        command.ready(3)
        command.write("app", source.replace("[server]", "[server, server]"))
        command.reload()
        command.wait_for("the same Server is there twice")
        more = "servers.append(pyloop.Server(answer))\n"
        command.write("app", source + "import pyloop\n" + more.replace("answer", "lambda c, m: 0"))
        command.reload()
        command.wait_for("reload: the old workers go on: 2 servers instead of 1 need a restart")
        assert command.stop() == 0


def test_worker_that_fails_in_a_reload_leaves_the_old_one(tmp_path):
    with Command(tmp_path, "app:server", app=versioned(1)) as command:
        pid = command.ready().ask(b"pid")
        fails = IN_A_WORKER + "    raise LookupError('there')\n"
        command.write("app", fails + versioned(2))
        command.reload()
        command.wait_for("reload: worker 1 did not start; the old ones go on")
        assert command.log().count("LookupError: there") == 1
        assert command.ask(b"pid") == pid
        assert command.stop() == 0


def test_import_that_does_not_end_is_given_up_when_the_next_reload_is_asked_for(tmp_path):
    with Command(tmp_path, "app:server", app=app()) as command:
        command.ready().write("app", SLOW + app())
        command.reload()
        until(lambda: importing(command))
        (stuck,) = importing(command)
        command.write("app", app())
        command.reload()
        command.wait_for("reloaded 1 workers")
        assert not is_alive(stuck)
        command.write("app", SLOW + app())
        command.reload()
        until(lambda: len(importing(command)) == 2)
        assert command.stop() == 0
        assert not is_alive(importing(command)[1])
    assert "signal" not in command.log()


def test_reload_option_follows_the_files_also_over_broken_ones(tmp_path):
    with Command(tmp_path, "app:server", "--reload", app="nonsense\n") as command:
        command.wait_for("NameError: name 'nonsense' is not defined")
        command.wait_for("waiting for a change")
        command.wait_for("watching the Python files in")
        command.write("app", versioned(1))
        command.wait_for("app.py changed: reloading")
        assert command.ready().ask(b"conn.server.version") == b"1"
        command.write("app", "nonsense again\n")
        command.wait_for("reload: the old workers go on: .*\n.*\n.*\n.*\n.*SyntaxError|SyntaxError")
        assert version_of(command) == b"1"
        (tmp_path / "notes.txt").write_text("no reason to reload\n")
        command.write("app", versioned(3))
        until(lambda: version_of(command) == b"3")
        assert "notes.txt" not in command.log()
        pids = children(command.pid)
        assert len(pids) == 2 or len(pids) == 3  # the old worker may be on its way out
        os.killpg(command.pid, signal.SIGINT)
        assert command.finish() == 0
    assert not any(is_alive(pid) for pid in pids)
    assert "KeyboardInterrupt" not in command.log()


def test_start_that_hangs_does_not_keep_the_next_reload_waiting(tmp_path):
    stuck = (
        versioned(2) + "    import asyncio\n    server._on_start = lambda s: asyncio.sleep(3600)\n"
    )
    args = ["app:server", "--worker-timeout", "0.5"]
    with Command(tmp_path, *args, app=versioned(1)) as command:
        old = command.ready().ask(b"pid")
        command.write("app", stuck)
        command.reload()
        command.wait_for(rf"\(pid (?!{old.decode()}\))\d+\) is not ready yet: waiting")
        assert command.ask(b"pid") == old
        command.write("app", versioned(3))
        command.reload()
        command.wait_for(r"worker 1 \(pid \d+\) does not become ready: it is told to stop")
        command.wait_for("reloaded 1 workers")
        assert version_of(command) == b"3"
        assert command.stop() == 0
    assert "Traceback" not in command.log()
