"""Model thread: a connection in its own thread, and what a stop leaves behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import queue
import socket
import threading

import pytest
from threads import SECONDS, Conversations, Serving, read_all, until

import pyloop


@pytest.fixture
def handler():
    return Conversations()


# ---- the connection's own thread ----


def test_receive_belongs_to_the_handlers_thread(handler):
    with Serving(handler) as serving:
        serving.client()
        conn = handler.next()
        with pytest.raises(RuntimeError, match="receive\\(\\) is for the thread that runs"):
            conn.receive()


def test_paused_connection_keeps_its_messages_until_another_thread_resumes_it():
    got = queue.Queue()

    def handler(conn, line):
        conn.pause_reading()
        got.put((conn, line))

    with Serving(handler) as serving:
        serving.client().sendall(b"one\ntwo\nthree\n")
        lines = []
        for _ in range(3):
            conn, line = got.get(timeout=SECONDS)
            lines.append(line)
            assert got.empty()
            conn.resume_reading()
        assert lines == [b"one", b"two", b"three"]
        with pytest.raises(RuntimeError, match="go to its handler"):
            conn.receive()


def test_protocol_hears_everything_once_in_order_in_one_thread():
    heard = queue.Queue()

    class Listener(pyloop.Protocol):
        def connection_made(self, conn):
            self.conn = conn
            self.tell("made")

        def message_received(self, message):
            self.tell(message)

        def eof_received(self):
            self.conn.send(b"so long")
            self.tell("eof")
            return True

        def connection_lost(self, exc):
            self.tell(("lost", exc))

        def tell(self, what):
            heard.put((what, threading.current_thread().name, self.conn))

    with Serving(Listener) as serving:
        sock = serving.client()
        sock.sendall(b"a\nb")
        sock.shutdown(socket.SHUT_WR)
        first = [heard.get(timeout=SECONDS) for _ in range(4)]
        assert [what for what, _, _ in first] == ["made", b"a", b"b", "eof"]
        names = {thread for _, thread, _ in first}
        assert names == {f"pyloop-127.0.0.1:{sock.getsockname()[1]}"}
        first[0][2].close()  # eof_received was true: until then the write side is open
        assert heard.get(timeout=SECONDS)[0] == ("lost", None)
        assert read_all(sock) == b"so long\n"


def test_each_connection_has_a_context_of_its_own():
    variable = contextvars.ContextVar("variable", default=b"unset")
    variable.set(b"before the start")

    def handler(conn, line):
        conn.send(variable.get())
        variable.set(line)

    with Serving(handler) as serving:
        for _ in range(2):
            sock = serving.client()
            sock.sendall(b"one\ntwo\n")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).splitlines()[1] == b"one"


def test_system_exit_of_a_handler_leaves_run():
    def handler(conn, line):
        raise SystemExit(3)

    with Serving(handler) as serving:
        serving.client().sendall(b"x\n")
        with pytest.raises(SystemExit) as info:
            serving.ended.result(SECONDS)
        assert info.value.code == 3
        serving.ended = concurrent.futures.Future()
        serving.ended.set_result(None)


# ---- starting and stopping ----


def test_thread_that_cannot_be_started_costs_that_connection_only(handler, monkeypatch, caplog):
    start = threading.Thread.start

    def fail(thread):
        if thread.name.startswith("pyloop-127"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Serving(handler) as serving:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    read_all(serving.client())
        serving.client()
        handler.next()
        stats = serving.server.stats()
        assert (stats.accepted, stats.refused, stats.open) == (1, 3, 1)
    texts = [record.getMessage() for record in caplog.records]
    assert 1 <= len(texts) <= 3
    assert "connection refused: no thread for 127.0.0.1" in texts[0]


@pytest.mark.parametrize("how", ["in time", "aborted"])
def test_threads_that_outlive_the_stop_are_named_and_run_returns(caplog, how):
    arrivals, go_on = queue.Queue(), threading.Event()

    def stubborn(conn):
        arrivals.put(threading.current_thread())
        go_on.wait(SECONDS)

    with Serving(stubborn, drain_timeout=0 if how == "in time" else 1000) as serving:
        sock = serving.client()
        thread = arrivals.get(timeout=SECONDS)
        assert thread.daemon
        stopping = asyncio.run_coroutine_threadsafe(serving.server.stop(), serving.loop)
        if how == "aborted":
            until(lambda: not serving.server.sockets)
            serving.loop.call_soon_threadsafe(serving.server.abort)  # as a second signal does
        stopping.result(SECONDS)
        serving.ended.result(SECONDS)
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        assert [r.getMessage() for r in caplog.records] == [
            f"threads that still run although their connections are gone: {thread.name}"
        ]
        assert serving.server.stats().open == 0
        go_on.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_server_can_be_run_again_and_goes_on_counting(handler):
    for turn in (1, 2):
        if turn == 1:
            serving = Serving(handler)
            server = serving.server
        else:
            serving._pool = concurrent.futures.ThreadPoolExecutor(1)
            serving._is_up.clear()
        with serving:
            sock = serving.client()
            sock.sendall(b"x\n")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        assert (server.stats().accepted, server.stats().messages_in) == (turn, turn)
        assert server.stats().open == 0


def test_pages_of_other_processes_see_the_counters_in_time(handler):
    """What threads have counted is added up by a timer, also if nobody asks."""
    with Serving(handler) as serving:
        serving.client().sendall(b"x\n")
        handler.next()
        until(lambda: serving.server._group.counters.messages_in == 1)
