"""dial(): a blocking connection for scripts and threads, with the same framing."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

import pyloop

FRAMINGS = [
    (pyloop.Lines(), b"hello\n"),
    (pyloop.Delimited(b"--"), b"hello--"),
    (pyloop.LengthPrefixed(2), b"\0\5hello"),
    (pyloop.LengthPrefixed("varint"), b"\5hello"),
    (pyloop.FixedSize(5), b"hello"),
    (pyloop.Netstring(), b"5:hello,"),
    (pyloop.Raw(), b"hello"),
]


@contextlib.contextmanager
def dialled(**options):
    """A connection and the plain socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pyloop.dial(*listener.getsockname(), **options) as conn:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(30)
                yield conn, peer


@pytest.mark.parametrize(("framing", "wire"), FRAMINGS, ids=lambda value: repr(value)[:20])
def test_send_frames_and_receive_cuts(framing, wire):
    with dialled(framing=framing) as (conn, peer):
        assert conn.send(b"hello") is None
        assert peer.recv(100) == wire
        peer.sendall(wire)
        assert conn.receive() == b"hello"
        if framing != pyloop.Raw():
            peer.sendall(wire * 2)
            assert (conn.receive(), conn.receive()) == (b"hello", b"hello")


@pytest.mark.parametrize(("framing", "wire"), FRAMINGS[:-1], ids=lambda value: repr(value)[:20])
def test_message_in_single_bytes_arrives_once(framing, wire):
    with dialled(framing=framing) as (conn, peer):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trickle():
            for byte in wire * 3:
                peer.sendall(bytes([byte]))
            peer.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=trickle)
        thread.start()
        assert list(conn) == [b"hello"] * 3
        thread.join()


def test_iteration_and_receive_end_with_the_stream():
    with dialled(framing=pyloop.Lines()) as (conn, peer):
        peer.sendall(b"one\ntwo\nlast")
        peer.shutdown(socket.SHUT_WR)
        assert list(conn) == [b"one", b"two", b"last"]
        assert conn.receive() is None
        assert conn.receive() is None
        conn.send(b"the other way still goes")
        assert peer.recv(100) == b"the other way still goes\n"


@pytest.mark.parametrize(
    ("framing", "data", "text"),
    [
        (pyloop.Lines(4), b"12345", "message over max_size"),
        (pyloop.LengthPrefixed(max_size=4), b"\0\0\0\5", "message over max_size"),
        (pyloop.Netstring(), b"abc", "malformed message length"),
        (pyloop.FixedSize(9), b"abc", "incomplete message"),
    ],
)
def test_framing_error_is_raised_and_closes(framing, data, text):
    with dialled(framing=framing) as (conn, peer):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(pyloop.FramingError, match=text):
            conn.receive()
        with pytest.raises(pyloop.ConnectionClosed, match=r"receive: .* is closed"):
            conn.receive()
        assert peer.recv(100) == b""


def test_good_messages_before_a_bad_one_are_received():
    with dialled(framing=pyloop.Lines(4)) as (conn, peer):
        peer.sendall(b"one\ntwo\n12345\n")
        assert (conn.receive(), conn.receive()) == (b"one", b"two")
        with pytest.raises(pyloop.FramingError, match="message over max_size"):
            conn.receive()


def test_timeout_of_receive_and_then_the_message_whole():
    with dialled(framing=pyloop.Lines(), timeout=0.05) as (conn, peer):
        peer.sendall(b"first ha")
        with pytest.raises(TimeoutError):
            conn.receive()
        peer.sendall(b"lf\n")
        assert conn.receive() == b"first half"


def test_timeout_of_send_to_a_peer_that_does_not_read():
    with dialled(timeout=0.05) as (conn, _), pytest.raises(TimeoutError):
        conn.send(bytes(64 << 20))


def test_timeout_of_connecting_names_the_address():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        host, port = full.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        with pytest.raises(TimeoutError, match=rf"cannot connect to {host}:{port}: timed out"):
            pyloop.dial(host, port, timeout=0.05)


@pytest.mark.parametrize("timeout", [0, -1, "1", True])
def test_bad_timeout_is_refused(timeout):
    error = ValueError if timeout in (0, -1) and timeout is not True else TypeError
    with pytest.raises(error, match="timeout: expected a positive number of seconds or None"):
        pyloop.dial("127.0.0.1", 1, timeout=timeout)


@pytest.mark.parametrize("data", ["text", None, 5])
def test_what_is_not_bytes_like_is_a_type_error(data):
    with dialled() as (conn, _):
        for method in (conn.send, conn.write):
            with pytest.raises(TypeError, match=f"expected bytes-like, got {type(data).__name__}"):
                method(data)


def test_message_that_does_not_fit_is_a_value_error_and_nothing_is_sent():
    with dialled(framing=pyloop.Lines(8)) as (conn, peer):
        for message in (b"a\nb", b"123456789"):
            with pytest.raises(ValueError, match=r"Lines\(max_size=8\)"):
                conn.send(message)
        conn.write(memoryview(b"raw"))
        conn.send(bytearray(b"fits"))
        conn.close()
        with peer.makefile("rb") as stream:
            assert stream.read() == b"rawfits\n"


def test_closed_connection_raises_connection_closed():
    with dialled() as (conn, peer):
        conn.close()
        conn.close()
        conn.abort()
        for use in (lambda: conn.send(b"x"), lambda: conn.write(b"x"), conn.receive):
            with pytest.raises(pyloop.ConnectionClosed, match=r"the connection to .* is closed"):
                use()
        assert peer.recv(10) == b""
        assert "closed" in repr(conn)


def test_context_manager_closes():
    with dialled() as (conn, peer):
        with conn as entered:
            assert entered is conn
            conn.send(b"bye")
        assert peer.recv(10) == b"bye"
        assert peer.recv(10) == b""


def test_abort_resets():
    with dialled() as (conn, peer):
        conn.abort()
        with pytest.raises(ConnectionResetError):
            peer.recv(10)


def test_peers_reset_is_raised():
    with dialled() as (conn, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4))
        peer.close()
        with pytest.raises(ConnectionResetError):
            conn.receive()


def test_names_and_options():
    with dialled() as (conn, peer):
        assert conn.peername == peer.getsockname()
        assert conn.sockname == peer.getpeername()
        assert conn.buffered == 0 and conn.server is None and conn.state is None
        assert conn._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_path(tmp_path, monkeypatch, abstract):
    monkeypatch.chdir(tmp_path)
    name = f"@pyloop-{tmp_path.name}" if abstract else "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.listen()
        with pyloop.dial(path=name, framing=pyloop.Lines()) as conn:
            peer, _ = listener.accept()
            with peer:
                conn.send(b"hello")
                assert peer.recv(10) == b"hello\n"


def test_unknown_host_is_named_with_what_getaddrinfo_said(monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    text = r"cannot connect to no-such-host\.invalid:1: Name or service not known"
    with pytest.raises(socket.gaierror, match=text) as info:
        pyloop.dial("no-such-host.invalid", 1)
    assert info.value.errno == socket.EAI_NONAME


def test_failures_name_the_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=rf"cannot connect to 127\.0\.0\.1:{port}: "):
        pyloop.dial("127.0.0.1", port)
    with pytest.raises(FileNotFoundError, match="cannot connect to no/such/path: No such file"):
        pyloop.dial(path="no/such/path")
    with pytest.raises(OSError, match="cannot connect to no such host:80: "):
        pyloop.dial("no such host", 80)


def test_large_messages_both_ways():
    big = bytes(range(256)) * 40_000
    framing = pyloop.LengthPrefixed(max_size=len(big))
    with dialled(framing=framing) as (conn, peer):

        def mirror():
            left = len(big) + 4
            while left:
                piece = peer.recv(min(left, 1 << 16))
                peer.sendall(piece)
                left -= len(piece)

        thread = threading.Thread(target=mirror)
        received = []
        reader = threading.Thread(target=lambda: received.append(conn.receive()))
        thread.start()
        reader.start()
        conn.send(big)
        reader.join()
        thread.join()
        assert received == [big]
