"""run(): signals, exit statuses, results, and which backend it takes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

import pyloop


def echo(conn, message):
    conn.send(message)


PRELUDE = """
import asyncio, os, signal, sys, pyloop
def tell(*words):
    print(*words, flush=True)
def port(server):
    tell(server.port)
"""


class Program:
    """A Python program that first prints the port it serves on, or any other word."""

    def __init__(self, source, backend="auto"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYLOOP_BACKEND": backend, "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()

    def line(self):
        return self.process.stdout.readline().decode().strip()

    def connect(self):
        return socket.create_connection(("127.0.0.1", int(self.line())), 30)

    def end(self, *signals):
        """Send signals, wait for the end; return exit status, output, errors."""
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.decode(), err.decode()


SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_drains_and_exits_with_status_0(backend, number):
    source = """
        def shout(conn, line):
            conn.send(line.upper())
        pyloop.run(pyloop.Server(shout, framing=pyloop.Lines(), on_start=port))
        tell("end")
    """
    with Program(source, backend) as program, program.connect() as peer:
        peer.sendall(b"a\n")
        assert peer.recv(10) == b"A\n"
        program.process.send_signal(number)
        assert peer.recv(10) == b""
        peer.close()
        assert program.end() == (0, "end\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_aborts(backend, number):
    source = """
        async def stuck(conn):
            conn.send(b"hi")
            async for _ in conn: pass
            tell("stopping")
            await asyncio.get_running_loop().create_future()
        pyloop.run(pyloop.Server(stuck, drain_timeout=1000, on_start=port))
        tell("end")
    """
    with Program(source, backend) as program, program.connect() as peer:
        assert peer.recv(10) == b"hi"
        program.process.send_signal(number)
        assert program.line() == "stopping"
        assert program.end(number) == (0, "end\n", "")
        with pytest.raises(ConnectionResetError):
            peer.recv(10)


def test_ctrl_c_on_an_idle_loop_ends_run_forever_at_once(backend):
    source = """
        loop = pyloop.Loop()
        loop.call_soon(tell, "idle")
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            tell("interrupted")
    """
    with Program(source, backend) as program:
        assert program.line() == "idle"
        assert program.end(signal.SIGINT) == (0, "interrupted\n", "")


def test_ctrl_c_on_a_loop_that_waits_for_a_timer_ends_it_at_once(backend):
    source = """
        async def main():
            tell("idle")
            await asyncio.sleep(3600)
        loop = pyloop.Loop()
        try:
            loop.run_until_complete(main())
        except KeyboardInterrupt:
            tell("interrupted")
            os._exit(0)
    """
    with Program(source, backend) as program:
        assert program.line() == "idle"
        assert program.end(signal.SIGINT) == (0, "interrupted\n", "")


# ---- a coroutine ----


def test_coroutine_gives_its_result(backend):
    async def main():
        assert isinstance(asyncio.get_running_loop(), pyloop.Loop)
        return 42

    assert pyloop.run(main(), backend=backend) == 42


def test_coroutine_that_raises_is_raised(backend):
    async def main():
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        pyloop.run(main(), backend=backend)


COROUTINE = """
    async def main():
        try:
            tell("idle")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            tell("cancelled")
            raise
        finally:
            tell("cleaned up")
    try:
        pyloop.run(main())
    except BaseException as exc:
        tell(repr(exc))
        raise
"""


def test_sigterm_cancels_the_coroutine_and_is_system_exit_143(backend):
    with Program(COROUTINE, backend) as program:
        assert program.line() == "idle"
        status, out, err = program.end(signal.SIGTERM)
        assert (status, out) == (143, "cancelled\ncleaned up\nSystemExit(143)\n")
        assert err == ""


def test_sigint_is_keyboard_interrupt_as_in_asyncio_run(backend):
    with Program(COROUTINE, backend) as program:
        assert program.line() == "idle"
        status, out, err = program.end(signal.SIGINT)
        assert (status, out) == (-signal.SIGINT, "cancelled\ncleaned up\nKeyboardInterrupt()\n")
        assert "KeyboardInterrupt" in err


def test_signal_handlers_are_as_before_afterwards(backend):
    before = [signal.getsignal(number) for number in SIGNALS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)

    async def main():
        pass

    pyloop.run(main(), backend=backend)

    async def on_start(server):
        asyncio.get_running_loop().call_soon(lambda: os.kill(os.getpid(), signal.SIGTERM))

    pyloop.run(pyloop.Server(echo, on_start=on_start), backend=backend)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == wakeup


def test_debug_is_handed_on(backend):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert pyloop.run(main(), backend=backend, debug=True) is True
    assert pyloop.run(main(), backend=backend, debug=False) is False


# ---- servers ----


def test_stop_from_a_handler_ends_run(backend):
    tasks = []

    def handler(conn, message):
        tasks.append(asyncio.get_running_loop().create_task(conn.server.stop()))

    with socket.socket() as peer:

        def on_start(server):
            peer.connect(("127.0.0.1", server.port))
            peer.send(b"stop")

        assert pyloop.run(pyloop.Server(handler, on_start=on_start), backend=backend) is None


def test_several_servers_run_until_a_signal(backend):
    source = """
        def echo(conn, message):
            conn.send(message)
        pyloop.run(*(pyloop.Server(echo, on_start=port, on_stop=lambda _: tell("stopped"))
                     for _ in range(3)))
    """
    with Program(source, backend) as program:
        peers = [program.connect() for _ in range(3)]
        for number, peer in enumerate(peers):
            with peer:
                peer.send(b"%d" % number)
                assert peer.recv(10) == b"%d" % number
        assert program.end(signal.SIGTERM) == (0, "stopped\n" * 3, "")


def test_all_servers_stop_when_one_cannot_start(backend):
    stopped = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good = pyloop.Server(echo, on_stop=stopped.append)
        bad = pyloop.Server(echo, port=port, on_stop=stopped.append)
        never = pyloop.Server(echo, on_start=stopped.append)
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            pyloop.run(good, bad, never, backend=backend)
    assert stopped == [good]
    assert good.sockets == bad.sockets == never.sockets == ()


def test_all_servers_stop_in_good_order_when_the_on_stop_of_one_raises(backend):
    stopped = []

    def on_stop(server):
        raise LookupError("no")

    async def slow_stop(server):
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        stopped.append(server)

    def on_start(server):
        asyncio.get_running_loop().call_soon(lambda: os.kill(os.getpid(), signal.SIGTERM))

    bad = pyloop.Server(echo, on_stop=on_stop)
    good = pyloop.Server(echo, on_stop=slow_stop, on_start=on_start)
    with pytest.raises(LookupError, match="no"):
        pyloop.run(bad, good, backend=backend)
    assert stopped == [good]


# ---- arguments ----


async def nothing():
    pass


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ([], TypeError, "expected Servers or one coroutine, got nothing"),
        ([echo], TypeError, "expected Servers or one coroutine, got <function echo"),
        ([nothing], TypeError, "expected Servers or one coroutine, got <function nothing"),
        ([pyloop.Server(echo), 3], TypeError, "expected Servers or one coroutine, got 3"),
        ([pyloop.Server(echo)] * 2, ValueError, "the same Server twice"),
    ],
)
def test_bad_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        pyloop.run(*arguments)


def test_two_coroutines_are_refused_and_closed():
    first, second = nothing(), nothing()
    with pytest.raises(TypeError, match="expected Servers or one coroutine, got <coroutine"):
        pyloop.run(first, second)
    assert first.cr_frame is None and second.cr_frame is None


@pytest.mark.parametrize("name", ["kqueue", "", "Select", "io_uring"])
def test_unknown_backend_is_refused_and_the_coroutine_closed(monkeypatch, name):
    monkeypatch.delenv("PYLOOP_BACKEND", raising=False)
    coroutine = nothing()
    text = "io_uring.*not in this build" if name == "io_uring" else f"backend={name!r}: expected"
    with pytest.raises(ValueError, match=text):
        pyloop.run(coroutine, backend=name)
    assert coroutine.cr_frame is None


def test_run_inside_a_running_loop_is_a_runtime_error(run):
    async def main():
        with pytest.raises(RuntimeError, match=r"running"):
            pyloop.run(pyloop.Server(echo))

    run(main())


def backend_in_use(**options):
    async def main():
        return asyncio.get_running_loop().backend

    return pyloop.run(main(), **options)


def test_pyloop_backend_replaces_only_auto(monkeypatch):
    monkeypatch.setenv("PYLOOP_BACKEND", "poll")
    assert backend_in_use() == "poll"
    assert backend_in_use(backend="auto") == "poll"
    assert backend_in_use(backend="select") == "select"


def test_unknown_pyloop_backend_names_the_variable(monkeypatch):
    for name, text in (("kqueue", "'kqueue': expected one of auto"), ("io_uring", "not in this")):
        monkeypatch.setenv("PYLOOP_BACKEND", name)
        with pytest.raises(ValueError, match=text) as info:
            pyloop.Loop()
        assert "PYLOOP_BACKEND" in str(info.value)
        pyloop.Loop(backend="select").close()
