"""The acceptors of models thread and fork, on every backend: nothing leaks, and short fds pass."""

from __future__ import annotations

import select

import pytest
from faults import TIMEOUT, wait_until
from ways import serving

pytestmark = pytest.mark.parametrize("way", ["thread", "fork"])


def test_connections_by_the_hundred_leave_nothing_behind(way, backend):
    with serving(way, backend, max_connections=40) as server:
        assert server.new().echo(b"first")
        before = server.ask("fds")["fds"]
        rounds = 4 if backend == "epoll" else 1
        for done in range(rounds):
            socks = [server.connect() for _ in range(40)]
            for sock in socks:
                sock.sendall(b"hello\n")
            for sock in socks[:39]:  # with the first one that is all that may be in
                assert sock.recv(100) == b"hello\n"
            for sock in socks:
                sock.close()
            wait_until(server, "accepted", 1 + 40 * (done + 1))  # the last one had to wait
            wait_until(server, "open", 1)
        assert server.ask("fds")["fds"] == before
        assert len(server.children()) == (1 if way == "fork" else 0)
        assert "Z" not in server.children().values()


def test_short_fds_reset_nobody_and_the_waiting_are_served(way, backend):
    with serving(way, backend, fds=40) as server:
        waiting = {server.connect() for _ in range(50)}
        for sock in waiting:
            sock.sendall(b"hello\n")
        while server.stats()["accept_pauses"] == 0:
            pass
        assert server.stats()["open"] < 50
        while waiting:  # each that is served makes room for another one
            served, _, _ = select.select(waiting, [], [], TIMEOUT)
            assert served, f"{len(waiting)} are not served"
            for sock in served:
                assert sock.recv(100) == b"hello\n"
                sock.close()
                waiting.remove(sock)
        wait_until(server, "open", 0)
        stats = server.stats()
        assert (stats["accepted"], stats["refused"]) == (50, 0)
