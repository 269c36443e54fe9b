"""MappedViews sent without a loop: models thread and fork, and dial."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading

import pytest
import threads
from faults import Child
from peers import tls_contexts
from views import BYTES, SIZE, SMALL, TRUNCATED, big_file, mapped, small_file

import pyloop

__all__ = ["big_file", "mapped", "small_file"]


# ---- threads and forks ----


def test_a_thread_sends_a_view_and_others_queue_behind_it(backend, mapped):
    handler = threads.Conversations()
    framing = pyloop.Netstring(SIZE)
    with threads.Serving(handler, backend, framing=framing) as serving:
        sock = serving.client(4096)
        conn = handler.next()
        conn.send(mapped.view())  # another thread's: what the kernel does not take is queued
        assert conn.buffered > 0
        serving.server.broadcast(mapped.view(1, 3))
        conn.send(b"last")
        with pytest.raises(BufferError, match="2 views of it queued"):
            mapped.close()
        conn.close()
        expected = b"%d:%b,2:%b,4:last," % (SIZE, BYTES, BYTES[1:3])
        assert threads.read_all(sock) == expected
        threads.until(lambda: conn.state.over.is_set() and not conn.buffered)
        mapped.close()


def test_an_own_thread_waits_until_the_kernel_has_a_view(backend, mapped):
    told = queue.Queue()

    def handler(conn):
        conn.send(mapped.view())
        told.put(conn.buffered)
        conn.write(mapped.view(3, 5))

    with threads.Serving(handler, backend, framing=pyloop.Raw()) as serving:
        assert threads.read_all(serving.client(4096)) == BYTES + BYTES[3:5]
        assert told.get(timeout=threads.SECONDS) == 0


def test_a_truncated_file_is_an_error_in_the_thread_that_sends(backend, small_file):
    told = queue.Queue()
    mapped = pyloop.MappedFile(small_file)

    def handler(conn):
        view = mapped.view()
        conn.write(b"begin")
        told.get(timeout=threads.SECONDS)
        try:
            conn.send(view)
        except OSError as exc:
            told.put(exc)
            raise

    with threads.Serving(handler, backend, framing=pyloop.Raw()) as serving:
        sock = serving.client()
        assert sock.recv(100) == b"begin"
        os.truncate(small_file, 100)
        told.put("go")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        threads.until(lambda: not serving.server.connections)
        with pytest.raises(OSError, match=TRUNCATED):
            raise told.get(timeout=threads.SECONDS)
        mapped.close()


def test_a_forked_child_sends_a_view_of_its_parents_mapping(backend, small_file):
    script = """
import sys, faults, pyloop
mapped = pyloop.MappedFile(sys.argv[2])
def handler(conn):
    conn.send(mapped.view())
faults.serve(handler, sys.argv[1], model="fork", framing=pyloop.Raw())
"""
    with Child(script, backend, str(small_file)) as child:
        port = child.next()["port"]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            assert threads.read_all(sock) == BYTES[:SMALL]
        child.stop()


def test_a_served_tls_connection_copies_a_view(backend, mapped):
    handler = threads.Conversations()
    server_context, client_context = tls_contexts()
    options = {"framing": pyloop.Netstring(SIZE), "ssl": server_context}
    with threads.Serving(handler, backend, **options) as serving:
        with pyloop.dial(
            "127.0.0.1", serving.port, ssl=client_context, framing=options["framing"]
        ) as conn:
            ours = handler.next()
            ours.send(mapped.view(0, 1000))
            ours.write(mapped.view(0, 0))
            assert conn.receive() == BYTES[:1000]
            conn.send(mapped.view(5, 2000))
            threads.until(lambda: ours.state.got)
            assert ours.state.got == [BYTES[5:2000]]


# ---- dial ----


@pytest.fixture
def dialled():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        framing = pyloop.Netstring(SIZE)
        with pyloop.dial(*listener.getsockname(), framing=framing, timeout=30) as conn:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(30)
                yield conn, peer


def test_a_dialled_connection_sends_a_view(dialled, mapped):
    conn, peer = dialled
    got = []
    reader = threading.Thread(target=lambda: got.append(threads.read_all(peer)))
    reader.start()
    conn.send(mapped.view())
    conn.write(mapped.view(2, 4))
    mapped.close()
    conn.close_writing()
    reader.join()
    assert got == [b"%d:%b,%b" % (SIZE, BYTES, BYTES[2:4])]


@pytest.mark.parametrize("size", [SMALL - 1, 0])
def test_a_truncated_file_aborts_a_dialled_connection(dialled, small_file, size):
    conn, peer = dialled
    view = pyloop.MappedFile(small_file).view()
    os.truncate(small_file, size)
    with pytest.raises(OSError, match=f"cannot send {SMALL} bytes at offset 0: the file") as info:
        conn.send(view)
    assert (info.value.errno, info.value.filename) == (errno.EFAULT, str(small_file))
    with pytest.raises(ConnectionResetError):
        threads.read_all(peer)
    with pytest.raises(pyloop.ConnectionClosed, match=r"send: the connection to .* is closed"):
        conn.send(b"more")
