"""Model thread: what threads may do to each other's connections, and what a stop leaves behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import queue
import socket
import threading

import pytest
from peers import RESET, tls_contexts

import pyloop

SECONDS = 60
BIG = bytes(range(256)) * 40_000  # more than a loopback connection buffers


class Serving:
    """A server of model thread, run in a thread of the test's process."""

    def __init__(self, handler, backend="auto", **options):
        options = {"framing": pyloop.Lines(), "model": "thread", **options}
        self.server = pyloop.Server(handler, on_start=self._started, **options)
        self._backend = backend
        self._is_up = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self.sockets = []

    def _started(self, server):
        self.loop = asyncio.get_running_loop()
        self.port = server.port
        self._is_up.set()

    def __enter__(self):
        self.ended = self._pool.submit(pyloop.run, self.server, backend=self._backend)
        self.ended.add_done_callback(lambda _: self._is_up.set())
        assert self._is_up.wait(SECONDS)
        return self

    def __exit__(self, *exc_info):
        for sock in self.sockets:
            sock.close()
        self._pool.shutdown(wait=False)
        if not self.ended.done():
            self.stop()
        if exc_info[0] is None:
            self.ended.result(SECONDS)

    def in_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS)

    def stop(self):
        with contextlib.suppress(concurrent.futures.CancelledError):
            self.in_loop(self.server.stop())

    def client(self, receive_buffer=0):
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(SECONDS)
        sock.connect(("127.0.0.1", self.port))
        self.sockets.append(sock)
        return sock


class Conversations:
    """A handler that hands its connections to the test, and stays until it is told to go."""

    def __init__(self):
        self.arrivals = queue.Queue()

    def __call__(self, conn):
        conn.state = Visit()
        self.arrivals.put(conn)
        try:
            while (line := conn.receive()) is not None:
                conn.state.got.append(line)
                if line == b"big":
                    conn.write(BIG)
        except BaseException as exc:
            conn.state.raised = exc
            raise
        finally:
            conn.state.over.set()

    def next(self):
        return self.arrivals.get(timeout=SECONDS)


class Visit:
    def __init__(self):
        self.got, self.raised, self.over = [], None, threading.Event()


@pytest.fixture
def handler():
    return Conversations()


def read_all(sock):
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def until(condition):
    """Wait for a state that no event tells of."""
    for _ in range(SECONDS * 200):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came about")


# ---- sending from other threads ----


def test_many_threads_send_and_every_message_arrives_whole_and_in_order(handler):
    with Serving(handler, write_limit=1 << 30) as serving:
        clients = [serving.client() for _ in range(4)]
        conns = [handler.next() for _ in clients]

        def shout(name):
            for number in range(500):
                serving.server.broadcast(b"%d %d " % (name, number) + b"x" * (number % 300))
                conns[number % 4].send(b"direct")

        threads = [threading.Thread(target=shout, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sock in clients:
            sock.shutdown(socket.SHUT_WR)
            lines = [line.split() for line in read_all(sock).splitlines()]
            for name in range(4):
                numbers = [int(words[1]) for words in lines if words[0] == b"%d" % name]
                assert numbers == list(range(500))
            assert len(lines) == 4 * 500 + 500
        assert serving.server.stats().messages_out == 4 * 4 * 500 + 4 * 500


def test_send_to_a_deaf_peer_from_another_thread_never_blocks_and_arrives_when_it_reads(handler):
    with Serving(handler) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        conn.write(BIG)  # from this thread
        assert conn.buffered > 0
        conn.send(b"behind it")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == BIG + b"behind it\n"
        assert conn.state.over.wait(SECONDS) and conn.state.raised is None


def test_write_limit_aborts_who_does_not_read(handler):
    with Serving(handler, write_limit=100_000) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        conn.write(BIG)  # one message of any size may go
        conn.send(b"one too many")
        assert conn.is_closing
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        assert conn.state.over.wait(SECONDS)
        assert type(conn.state.raised) is pyloop.WriteLimitError
        assert "more than write_limit=100000 bytes are queued" in str(conn.state.raised)
        conn.send(b"dropped")
        stats = serving.server.stats()
        assert (stats.write_limit_aborts, stats.aborts, stats.dropped) == (1, 1, 1)


def test_send_in_its_own_thread_gives_up_on_a_peer_that_takes_nothing(handler):
    with Serving(handler, idle_timeout=0.3) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        sock.sendall(b"big\n")
        assert conn.state.over.wait(SECONDS)
        assert type(conn.state.raised) is TimeoutError
        assert "took nothing for 0.3 seconds" in str(conn.state.raised)
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        assert serving.server.stats().timeouts == 1


def test_broadcast_leaves_out_whom_it_is_told_to(handler):
    with Serving(handler) as serving:
        socks = [serving.client() for _ in range(3)]
        conns = {handler.next() for _ in socks}
        assert set(serving.server.connections) == conns
        one, *others = conns
        serving.server.broadcast(b"to two", exclude=one)
        serving.server.broadcast(b"to one", exclude=others)
        for conn in conns:
            conn.close()
        expected = [b"to one\n", b"to two\n", b"to two\n"]
        assert sorted(read_all(sock) for sock in socks) == expected


def test_tls_records_of_many_threads_do_not_mix(handler):
    server_context, client_context = tls_contexts()
    with Serving(handler, ssl=server_context) as serving:
        sock = client_context.wrap_socket(serving.client(), server_hostname="127.0.0.1")
        serving.sockets.append(sock)
        conn = handler.next()
        threads = [
            threading.Thread(target=lambda: [conn.send(b"y" * 3000) for _ in range(100)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        sock.sendall(b"big\n")
        with sock.makefile("rb") as stream:
            received = stream.read(len(BIG) + 300 * 3001)
        for thread in threads:
            thread.join()
        assert received.count(b"y" * 3000 + b"\n") == 300
        assert received.replace(b"y" * 3000 + b"\n", b"") == BIG


# ---- ending from other threads ----


def test_close_from_another_thread_flushes_and_ends_the_receive(handler):
    with Serving(handler) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        conn.write(BIG)
        conn.close()
        assert conn.is_closing and conn.state.over.wait(SECONDS)
        assert type(conn.state.raised) is pyloop.ConnectionClosed
        assert f"127.0.0.1:{sock.getsockname()[1]} is closed" in str(conn.state.raised)
        assert read_all(sock) == BIG


def test_abort_from_another_thread_ends_a_send_that_blocks(handler, caplog):
    with Serving(handler) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        sock.sendall(b"big\n")
        until(lambda: conn.buffered)
        conn.abort()
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        assert conn.state.over.wait(SECONDS)
        assert type(conn.state.raised) is pyloop.ConnectionClosed
        assert isinstance(conn.state.raised.__cause__, ConnectionAbortedError)
        assert caplog.records == []  # a handler that ends so has done nothing wrong


def test_reset_reaches_the_peer_although_the_handler_goes_on():
    arrivals, go_on = queue.Queue(), threading.Event()

    def busy(conn):
        arrivals.put(conn)
        go_on.wait(SECONDS)

    with Serving(busy) as serving:
        sock = serving.client()
        arrivals.get(timeout=SECONDS).abort()
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        go_on.set()


def test_half_close_from_another_thread_waits_for_what_is_queued(handler):
    with Serving(handler) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        conn.write(BIG)
        conn.close_writing()
        with pytest.raises(pyloop.ConnectionClosed, match="close_writing: the connection to"):
            conn.close_writing()
        conn.send(b"dropped")
        assert read_all(sock) == BIG
        sock.sendall(b"still received\n")
        sock.shutdown(socket.SHUT_WR)
        assert conn.state.over.wait(SECONDS)
        assert (conn.state.got, conn.state.raised) == ([b"still received"], None)
        assert serving.server.stats().dropped == 1


def test_after_the_end_everything_is_refused_quietly(handler):
    with Serving(handler) as serving:
        serving.client().close()
        conn = handler.next()
        assert conn.state.over.wait(SECONDS)
        until(lambda: conn not in serving.server.connections)
        for method in (conn.close, conn.abort, conn.pause_reading, conn.resume_reading):
            method()
        conn.send(b"x")
        assert serving.server.stats().dropped == 1
        assert (conn.sockname, conn.buffered, conn.is_closing) == (None, 0, True)
        assert conn.server is serving.server and repr(conn).endswith("closing>")


def test_everything_at_once_from_everywhere_harms_nobody(handler):
    with Serving(handler, write_limit=1 << 30) as serving:
        stop = threading.Event()

        def meddle(seed):
            while not stop.is_set():
                for number, conn in enumerate(serving.server.connections):
                    conn.send(b"x" * 2000)
                    method = (conn.close, conn.abort, conn.pause_reading, conn.resume_reading)
                    method[(number + seed) % 4]()
                serving.server.broadcast(b"all")
                serving.server.stats()

        meddlers = [threading.Thread(target=meddle, args=(seed,)) for seed in range(3)]
        for thread in meddlers:
            thread.start()
        for number in range(100):
            sock = serving.client(4096 if number % 2 else 0)
            sock.sendall(b"one\n" * 50)
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
        stop.set()
        for thread in meddlers:
            thread.join()
        for sock in serving.sockets:
            sock.close()
        for conn in serving.server.connections:
            conn.resume_reading()
        until(lambda: serving.server.stats().open == 0)
        assert serving.server.stats().accepted == 100


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


def test_threads_that_outlive_the_stop_are_named_and_run_returns(caplog):
    arrivals, go_on = queue.Queue(), threading.Event()

    def stubborn(conn):
        arrivals.put(threading.current_thread())
        go_on.wait(SECONDS)

    with Serving(stubborn, drain_timeout=0) as serving:
        sock = serving.client()
        thread = arrivals.get(timeout=SECONDS)
        assert thread.daemon
        serving.stop()
        serving.ended.result(SECONDS)
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        assert [r.getMessage() for r in caplog.records] == [
            f"threads that still run after drain_timeout: {thread.name}"
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
