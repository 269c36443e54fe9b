"""close() of a dialled connection: all that was sent arrives, then a clean end of stream."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading

import pytest
from peers import RESET, tls_contexts

import pyloop

HOST = "127.0.0.1"
SENT = bytes(range(256)) * 400  # more than the peer's receive buffer, less than the send buffer
ROOM = 1 << 18


class PeerThread:
    """The other end, in a thread: `serve(sock)` runs there, `result()` is what it returned."""

    def __init__(self, serve, tls=False):
        self._serve, self._tls = serve, tls
        self._result = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._listener = socket.create_server((HOST, 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._thread.join(60)
        self._listener.close()

    def _run(self):
        try:
            sock, _ = self._listener.accept()
            sock.settimeout(60)
            with sock:
                if self._tls:
                    sock = tls_contexts()[0].wrap_socket(
                        sock, server_side=True, suppress_ragged_eofs=False
                    )
                with sock:
                    self._result.append(self._serve(sock))
        except OSError as exc:
            self._result.append(exc)

    def dial(self, **options):
        if self._tls:
            options["ssl"] = tls_contexts()[1]
        conn = pyloop.dial(*self._listener.getsockname(), **options)
        conn._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        return conn

    def result(self):
        self._thread.join(60)
        assert self._result, "the peer hangs"
        return self._result[0]


def read_all(sock):
    """Return all up to end of stream; raise what a reset, or TLS without its end, raises."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("unread", [b"", b"a banner that nobody reads\n" * 10])
def test_all_that_was_sent_arrives_and_then_end_of_stream(tls, unread):
    closing = threading.Event()

    def serve(sock):
        sock.sendall(unread)
        assert closing.wait(60)
        return read_all(sock)

    with PeerThread(serve, tls) as peer:
        conn = peer.dial()
        if unread:
            assert select.select([conn._sock], [], [], 60)[0]
        conn.send(SENT)
        closing.set()
        conn.close()
        assert peer.result() == SENT


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_input_that_arrives_while_it_closes_destroys_nothing(tls):
    closing = threading.Event()

    def serve(sock):
        first = sock.recv(1)
        assert closing.wait(60)
        sock.sendall(b"an answer that comes too late" * 100)
        return first + read_all(sock)

    with PeerThread(serve, tls) as peer:
        conn = peer.dial()
        conn.send(SENT)
        closing.set()
        conn.close()
        assert peer.result() == SENT


def test_close_over_tls_sends_close_notify():
    with PeerThread(read_all, tls=True) as peer:
        conn = peer.dial(framing=pyloop.Lines())
        conn.send(b"hi")
        conn.close()
        assert peer.result() == b"hi\n", "no SSLEOFError"


def test_context_manager_sends_close_notify_too():
    with PeerThread(read_all, tls=True) as peer:
        with peer.dial() as conn:
            conn.send(b"hi")
        assert peer.result() == b"hi"


def test_close_after_the_peers_close_notify_is_clean():
    def serve(sock):
        sock.sendall(b"bye")
        sock.unwrap()

    with PeerThread(serve, tls=True) as peer:
        conn = peer.dial()
        assert conn.receive() == b"bye"
        assert conn.receive() is None
        conn.close()
        assert peer.result() is None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_close_returns_though_the_peer_never_closes(tls):
    done = threading.Event()

    def serve(sock):
        got = sock.recv(100)
        assert done.wait(60)
        return got + read_all(sock)

    with PeerThread(serve, tls) as peer:
        conn = peer.dial()
        conn.send(b"bye")
        conn.close()
        done.set()
        assert peer.result() == b"bye"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_close_returns_though_the_peer_sends_for_ever(tls):
    def serve(sock):
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(bytes(1 << 16))

    with PeerThread(serve, tls) as peer:
        conn = peer.dial()
        conn.receive()
        conn.close()
        assert peer.result() is None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_close_returns_though_the_peer_reads_nothing(tls):
    done = threading.Event()
    with PeerThread(lambda sock: done.wait(60), tls) as peer:
        conn = peer.dial(timeout=0.05)
        with pytest.raises(TimeoutError):
            conn.send(bytes(64 << 20))
        conn.close()
        conn.close()
        done.set()
        assert peer.result() is True
        with pytest.raises(pyloop.ConnectionClosed, match=r"send: the connection to .* is closed"):
            conn.send(b"x")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_abort_resets_and_sends_no_close_notify(tls):
    with PeerThread(read_all, tls) as peer:
        conn = peer.dial()
        conn.send(b"lost")
        conn.abort()
        conn.close()
        # Python < 3.13 takes a reset under TLS for an end without close_notify.
        assert isinstance(peer.result(), (ConnectionResetError, ssl.SSLEOFError))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_close_after_a_reset_is_quiet(tls):
    resetting = threading.Event()

    def reset(sock):
        assert resetting.wait(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with PeerThread(reset, tls) as peer:
        conn = peer.dial()
        resetting.set()
        with contextlib.suppress(OSError):
            list(conn)
        conn.close()
        assert peer.result() is None
