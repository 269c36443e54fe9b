"""The same conversations in every way to serve: whoever runs the handler, the peer sees the same.

What is particular to a way is in test_thread_model.py, test_fork_model.py and test_workers*.py.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import selectors
import signal
import socket
import struct

import pytest
from faults import TIMEOUT, wait_until
from ways import WAYS, read_all, serving


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return request.param


@pytest.fixture(scope="module")
def plain(way):
    with serving(way) as server:
        yield server


@pytest.fixture(scope="module")
def encrypted(way):
    with serving(way, tls=True, framing="Lines(1000000)") as server:
        yield server


@pytest.fixture
def server(plain):
    """One server for many tests, which does not know of each other's clients."""
    yield plain
    plain.begin_anew()


@pytest.fixture
def tls_server(encrypted):
    """The same with TLS."""
    yield encrypted
    encrypted.begin_anew()


RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's value with which close() resets."""


def test_messages_come_back_whole_and_in_order(server):
    lines = [bytes([65 + n % 26]) * (n * 37 % 5000) for n in range(300)]
    stream = b"\n".join(lines) + b"\n"
    sock = server.connect()
    sock.sendall(stream[:7])
    sock.sendall(stream[7:])
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == stream
    sock.close()
    assert server.ended(sock) == (None, "")
    size = len(stream)
    assert server.counted(messages_in=300, messages_out=300, bytes_in=size, bytes_out=size)


def test_last_line_without_its_end_is_answered_after_a_half_close(server):
    sock = server.connect()
    sock.sendall(b"one\r\ntwo\nthree")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b"one\ntwo\nthree\n"
    assert server.ended(sock) == (None, "")


def test_message_over_its_limit_ends_that_connection_only(server):
    good, bad = server.new(), server.connect()
    assert good.echo(b"x" * 65536)
    bad.sendall(b"fits\n" + b"x" * 65537)
    assert read_all(bad) == b"fits\n"
    bad.close()
    assert server.ended(bad) == ("FramingError", "message over max_size")
    assert good.echo(b"still here")
    assert server.counted(framing_errors=1)


def test_reset_is_told(server):
    peer = server.new()
    assert peer.echo(b"hello")
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()
    assert server.ended(peer)[0] == "ConnectionResetError"


def test_handler_that_raises_costs_its_own_connection_only(server):
    good, bad = server.new(), server.new()
    assert good.echo(b"hello") and bad.echo(b"hello")
    bad.send(b"raise\n")
    with pytest.raises(ConnectionResetError):
        bad.line()
    assert good.echo(b"still here")
    wait_until(server, "open", 1)
    assert server.stats()["aborts"] == 1
    port = bad.sock.getsockname()[1]
    assert f"handler of 127.0.0.1:{port} raised; connection aborted" in server.errors()
    assert "LookupError: as ordered" in server.errors()


def test_close_drops_messages_behind_it_and_lets_all_arrive(server):
    sock = server.connect()
    sock.sendall(b"big 512000\nclose\n" + b"never read\n" * 20000)
    assert read_all(sock) == bytes(range(256)) * 2000


def test_abort_resets(server):
    sock = server.connect()
    sock.sendall(b"abort\n")
    with pytest.raises(ConnectionResetError):
        read_all(sock)
    wait_until(server, "open", 0)
    assert server.stats()["aborts"] == 1


def test_slow_reader_gets_all_and_others_do_not_wait(server):
    slow = server.connect()
    slow.sendall(b"big 4096000\n")
    others = [server.new() for _ in range(5)]
    assert all(peer.echo(b"quick") for peer in others)
    slow.shutdown(socket.SHUT_WR)
    assert read_all(slow) == bytes(range(256)) * 16000
    slow.close()
    assert server.ended(slow) == (None, "")


def test_many_clients_at_once_are_all_served(server):
    peers = [server.new() for _ in range(60)]
    for turn in range(3):
        for number, peer in enumerate(peers):
            peer.send(b"%d of %d\n" % (turn, number))
        for number, peer in enumerate(peers):
            assert peer.line() == b"%d of %d\n" % (turn, number)
    assert server.stats()["open"] == 60
    for peer in peers:
        peer.close()
    wait_until(server, "open", 0)
    stats = server.stats()
    assert (stats["accepted"], stats["messages_in"], stats["refused"]) == (60, 180, 0)


# ---- limits and other framings ----


def test_idle_peer_is_timed_out_in_spite_of_bytes_of_an_unfinished_message(way):
    with serving(way, idle_timeout=0.3) as server:
        peer = server.new()
        assert peer.echo(b"hello")
        peer.send(b"no end")
        assert peer.line() == b""
        peer.close()
        assert server.ended(peer) == ("TimeoutError", "idle_timeout passed")
        assert server.counted(timeouts=1)


def test_message_that_takes_too_long_is_timed_out(way):
    with serving(way, message_timeout=0.3) as server:
        idle, peer = server.new(), server.new()
        assert idle.echo(b"whole messages only")
        peer.send(b"no end")
        assert peer.line() == b""
        peer.close()
        assert server.ended(peer) == ("TimeoutError", "message_timeout passed")
        assert idle.echo(b"still here")


def test_max_connections_makes_others_wait_until_some_leave(way):
    most = 2 * WAYS[way].acceptors
    with serving(way, max_connections=2) as server:
        waiting = {peer.sock: peer for peer in (server.new() for _ in range(24))}
        for peer in waiting.values():
            peer.send(b"hello\n")
        wait_until(server, "open", most)
        while waiting:
            readable, _, _ = select.select(waiting, [], [], TIMEOUT)
            assert readable, f"{len(waiting)} are not served"
            assert server.stats()["open"] <= most
            peer = waiting.pop(readable[0])
            assert peer.line() == b"hello\n"
            peer.close()
        assert server.stats()["accepted"] == 24


def test_bad_framing_ends_its_own_connection_and_hostile_bytes_do_no_harm(way):
    noise = random.Random(7)
    with serving(way, framing="Netstring(100)") as server:
        good, unfinished = server.connect(), server.connect()
        for _ in range(20):
            with server.connect() as bad:
                bad.sendall(noise.randbytes(noise.randrange(1, 3000)))
                bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        unfinished.sendall(b"2:hi,5:hel")
        unfinished.shutdown(socket.SHUT_WR)
        assert read_all(unfinished) == b"2:hi,"
        unfinished.close()
        assert server.ended(unfinished) == ("FramingError", "incomplete message")
        good.sendall(b"5:hello,")
        good.shutdown(socket.SHUT_WR)
        assert read_all(good) == b"5:hello,"
        good.close()
        wait_until(server, "open", 0)


# ---- TLS ----


def test_tls_carries_messages_of_any_size_both_ways(tls_server):
    peer = tls_server.new()
    assert peer.sock.version() == "TLSv1.3"
    for size in (1, 100, 20_000, 900_000):
        assert peer.echo(b"x" * size)
    peer.sock = peer.sock.unwrap()
    peer.close()
    assert tls_server.ended(peer) == (None, "")
    assert tls_server.counted(messages_in=4)


def test_tls_peer_that_talks_no_tls_costs_nobody_else_anything(tls_server):
    good = tls_server.new()
    assert good.echo(b"hello")
    with socket.create_connection(("127.0.0.1", tls_server.port), TIMEOUT) as bad:
        bad.sendall(b"GET / HTTP/1.0\r\n\r\n")
        bad.shutdown(socket.SHUT_WR)
        read_all(bad)
    assert good.echo(b"still here")
    wait_until(tls_server, "open", 1)


def test_tls_handshake_has_a_time_out(way):
    with serving(way, tls=True, handshake_timeout=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as silent:
            with pytest.raises(ConnectionResetError):
                read_all(silent)
        assert server.new().echo(b"hello")


def test_tls_messages_before_a_stop_are_answered(way):
    with serving(way, tls=True) as server:
        peer = server.new()
        assert peer.echo(b"hello")
        peer.send(b"one\ntwo\nunfinished")
        assert (peer.line(), peer.line()) == (b"one\n", b"two\n")
        server.process.send_signal(signal.SIGTERM)
        assert peer.line() == b""  # close_notify: SSLSocket would raise without one
        peer.close()
        assert server.ended(peer) == (None, "")
        assert server.process.wait(TIMEOUT) == 0


# ---- stopping ----


class Pump:
    """A client that sends numbered lines without a pause, and keeps what comes back."""

    def __init__(self, server):
        self.sock = server.connect()
        self.sock.setblocking(False)
        self.numbers = itertools.count()
        self.unsent, self.got = b"", bytearray()

    def turn(self, mask):
        """Send and receive what the socket takes and gives; false at the end of stream."""
        if mask & selectors.EVENT_WRITE:
            self.unsent = self.unsent or b"".join(
                b"%099d\n" % number for number in itertools.islice(self.numbers, 50)
            )
            with contextlib.suppress(ConnectionError):  # it reads no more
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        if mask & selectors.EVENT_READ:
            piece = self.sock.recv(1 << 16)
            self.got += piece
            return bool(piece)
        return True

    def is_gapless(self):
        lines = self.got.split(b"\n")
        return lines.pop() == b"" and lines == [b"%099d" % n for n in range(len(lines))]


def test_sigterm_under_load_leaves_each_client_a_gapless_prefix(way):
    with serving(way) as server:
        pumps = [Pump(server) for _ in range(4)]
        with selectors.DefaultSelector() as selector:
            for pump in pumps:
                selector.register(pump.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, pump)
            terminated = False
            while selector.get_map():
                for key, mask in selector.select(TIMEOUT):
                    if not key.data.turn(mask):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
                if not terminated and all(len(pump.got) > 100_000 for pump in pumps):
                    server.process.send_signal(signal.SIGTERM)
                    terminated = True
        assert server.process.wait(TIMEOUT) == 0
        assert terminated and all(pump.is_gapless() for pump in pumps)


def test_stop_ends_idle_conversations_in_good_order_and_nobody_listens_after_it(way):
    with serving(way) as server:
        peer = server.new()
        assert peer.echo(b"hello")
        peer.send(b"unfinis")
        server.process.send_signal(signal.SIGTERM)
        assert peer.line() == b""
        peer.close()
        assert server.ended(peer) == (None, "")
        assert server.process.wait(TIMEOUT) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()
