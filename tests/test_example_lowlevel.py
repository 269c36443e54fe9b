"""examples/lowlevel_select.py as its reader runs it: a process, sockets, Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lowlevel_select.py"
Server = tuple[subprocess.Popen[str], tuple[str, int]]


@pytest.fixture
def server() -> Iterator[Server]:
    command = [sys.executable, str(EXAMPLE), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            words = process.stdout.readline().split()
            assert words[:2] == ["listening", "on"]
            host, port = words[2].split(":")
            yield process, (host, int(port))
        finally:
            process.kill()


def talk(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send the pieces and the end of stream; return all that comes back."""
    with socket.create_connection(address, timeout=30) as conn:
        for piece in pieces:
            conn.sendall(piece)
        conn.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: conn.recv(65536), b""))


def test_lines_come_back_and_ctrl_c_ends_with_status_0(server: Server) -> None:
    process, address = server
    assert talk(address, b"one\ntw", b"o\r\nlast") == b"one\ntwo\nlast\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_clients_are_served_side_by_side(server: Server) -> None:
    _, address = server
    conns = [socket.create_connection(address, timeout=30) for _ in range(20)]
    for number, conn in enumerate(conns):
        conn.sendall(b"client %d\n" % number)
    for number, conn in enumerate(conns):
        assert conn.makefile("rb").readline() == b"client %d\n" % number
        conn.close()


def test_too_long_a_line_ends_that_connection_only(server: Server) -> None:
    process, address = server
    with socket.create_connection(address, timeout=30) as good:
        with socket.create_connection(address, timeout=30) as bad:
            bad.sendall(b"x" * 65537)
            assert bad.recv(1) == b""
        good.sendall(b"still here\n")
        assert good.recv(100) == b"still here\n"
    assert process.poll() is None
