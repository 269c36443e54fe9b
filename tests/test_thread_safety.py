"""Every method of a connection of model thread, called from other threads than its own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import queue
import socket
import threading

import pytest
from peers import RESET, tls_contexts
from threads import BIG, SECONDS, Conversations, Serving, read_all, until

import pyloop


@pytest.fixture
def handler():
    return Conversations()


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


def test_broadcast_does_not_wait_for_the_handlers_own_peer_either():
    done = threading.Event()

    def handler(conn, line):
        conn.server.broadcast(BIG)
        done.set()

    with Serving(handler, framing=pyloop.Raw()) as serving:
        sock = serving.client(4096)
        sock.sendall(b"x")
        assert done.wait(SECONDS)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == BIG


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


def test_connection_that_comes_at_any_point_of_a_walk_does_not_disturb_it():
    """Finalizers run at allocations, and what they call lets other threads run."""
    server = pyloop.Server(Conversations(), model="thread")
    members, busy = set(range(50)), True

    class Arrival:
        def __init__(self):
            self.itself = self

        def __del__(self):
            members.add(object())
            if busy:
                Arrival()

    view, before = type(server.connections)(members), gc.get_threshold()
    try:
        for threshold, allocations in itertools.product(range(1, 9), range(8)):
            Arrival()
            gc.set_threshold(threshold)
            kept = [[] for _ in range(allocations)]
            assert len([None for _ in view]) >= 50
            gc.set_threshold(*before)
            del kept
            gc.collect()
    finally:
        busy = False
        gc.set_threshold(*before)
        gc.collect()
    assert len(members) > 50


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
            with contextlib.suppress(OSError):  # it may have been aborted already
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
        # All of them: when the last peer has left, many are still in the backlog.
        until(lambda: serving.server.stats().accepted == 100)
        until(lambda: serving.server.stats().open == 0)
