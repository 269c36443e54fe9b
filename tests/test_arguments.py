"""Server(): bad arguments are refused by name, with what was passed and what is expected."""

from __future__ import annotations

import socket
import ssl

import pytest

import pyloop


def echo(conn, message):
    conn.send(message)


BAD = [
    ({"host": 7}, TypeError, "host: expected a str or a list of them, got 7"),
    ({"host": []}, ValueError, "host: expected at least one, got none"),
    ({"host": ["::1", 3]}, TypeError, "host: expected a str or a list of them"),
    ({"port": "80"}, TypeError, "port: expected an integer, got '80'"),
    ({"port": True}, TypeError, "port: expected an integer, got True"),
    ({"port": 65536}, ValueError, "port: expected 0 to 65535, got 65536"),
    ({"port": -1}, ValueError, "port: expected 0 to 65535, got -1"),
    ({"path": ""}, ValueError, "path: expected a path or an abstract name, got ''"),
    ({"path": 3}, TypeError, "path"),
    ({"sock": 3}, TypeError, "sock: expected a socket.socket, got int"),
    ({"framing": pyloop.Lines}, TypeError, "framing: expected .* got .*write Lines()"),
    ({"framing": "lines"}, TypeError, "framing: expected .*, got 'lines'"),
    ({"ssl": True}, TypeError, "ssl: expected an ssl.SSLContext or None, got True"),
    ({"backlog": 0}, ValueError, "backlog: expected 1 to 65535, got 0"),
    ({"max_connections": 0}, ValueError, "max_connections: expected 1 to .*, got 0"),
    ({"max_connections": 1.5}, TypeError, "max_connections: expected an integer, got 1.5"),
    ({"idle_timeout": 0}, ValueError, "idle_timeout: expected a positive .*, got 0"),
    ({"idle_timeout": "5"}, TypeError, "idle_timeout: expected a positive .*, got '5'"),
    ({"message_timeout": -1}, ValueError, "message_timeout: expected a positive .*, got -1"),
    ({"handshake_timeout": float("nan")}, ValueError, "handshake_timeout: .*got nan"),
    ({"drain_timeout": -0.5}, ValueError, "drain_timeout: expected .*, got -0.5"),
    ({"drain_timeout": None}, TypeError, "drain_timeout: expected .*, got None"),
    ({"linger": float("inf")}, ValueError, "linger: expected .*, got inf"),
    ({"write_limit": 0}, ValueError, "write_limit: expected 1 to .*, got 0"),
    ({"read_limit": None}, TypeError, "read_limit: expected an integer, got None"),
    ({"on_start": 1}, TypeError, "on_start: expected a callable or None, got 1"),
    ({"on_stop": "stop"}, TypeError, "on_stop: expected a callable or None, got 'stop'"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD)
def test_bad_argument_is_refused_by_name(arguments, error, text):
    with pytest.raises(error, match=text.replace("()", r"\(\)")):
        pyloop.Server(echo, **arguments)


def test_path_and_sock_together_are_refused():
    with socket.socket() as sock, pytest.raises(ValueError, match="path and sock: expected one"):
        pyloop.Server(echo, path="/tmp/x", sock=sock)


def test_sock_that_is_unbound_or_no_stream_or_closed_is_refused():
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        with socket.socket(family) as unbound:
            with pytest.raises(ValueError, match="sock: expected a bound socket, got <socket"):
                pyloop.Server(echo, sock=unbound)
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(ValueError, match="sock: expected a stream socket"):
            pyloop.Server(echo, sock=datagram)
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="sock: expected an open, bound socket"):
        pyloop.Server(echo, sock=closed)


def test_arguments_after_port_are_keyword_only_and_unknown_ones_refused():
    with pytest.raises(TypeError, match="positional argument"):
        pyloop.Server(echo, "127.0.0.1", 0, None)
    with pytest.raises(TypeError, match="no_such"):
        pyloop.Server(echo, no_such=1)


def test_ssl_context_is_taken():
    assert pyloop.Server(echo, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)).port is None
