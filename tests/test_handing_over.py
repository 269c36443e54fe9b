"""Sockets accepted for a group with PL_HAND_OVER: each reaches its owner, or is closed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyloop
from pyloop.address import decode_sockaddr
from pyloop.core import lib
from pyloop.options import Group
from pyloop.protocol import Owner


class Keeper(Owner):
    """Keeps what is handed over; `act` is called first, and may raise."""

    def __init__(self, loop: pyloop.Loop, most: int = 0) -> None:
        self.group = Group(
            pyloop.Raw(),
            idle_timeout=0,
            message_timeout=0,
            linger=0,
            write_limit=1,
            max_connections=most,
            hand_over=True,
        )
        super().__init__(loop, self.group.counters, pyloop.Raw(), 1, 1)
        self.kept: list[socket.socket] = []
        self.peers: list[object] = []
        self.act = lambda: None
        self.core = loop._core
        self.group.open(self.core.ptr)
        self.core.dispatch.owners[self.group.number] = self
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        lib.pl_listener_open(self.core.ptr, self.group.number, self.listener.fileno())

    def clients(self, count: int) -> list[socket.socket]:
        return [socket.create_connection(self.listener.getsockname(), 30) for _ in range(count)]

    def handed_over(self, fd: int, peer: bytes) -> None:
        self.kept.append(socket.socket(fileno=fd))
        self.peers.append(decode_sockaddr(peer))
        self.act()

    def give_up(self) -> None:
        """As a server that has stopped, and left its number in the batch."""
        self.core.dispatch.owners.pop(self.group.number)
        self.group.close()


@pytest.fixture
def keeper(loop: pyloop.Loop) -> Iterator[Keeper]:
    keeper = Keeper(loop)
    yield keeper
    for sock in (keeper.listener, *keeper.kept):
        sock.close()


def turn(loop: pyloop.Loop, until: object) -> None:
    """Let the loop turn until `until()` holds."""

    def look() -> None:
        loop.stop() if until() else loop.call_soon(look)  # type: ignore[operator]

    loop.call_soon(look)
    loop.run_forever()


def closed(clients: list[socket.socket]) -> bool:
    """Close them; have all seen the end of their streams?"""
    ends = [client.recv(1) for client in clients]
    for client in clients:
        client.close()
    return ends == [b""] * len(clients)


def test_socket_and_peer_are_handed_over(loop: pyloop.Loop, keeper: Keeper) -> None:
    clients = keeper.clients(3)
    turn(loop, lambda: len(keeper.kept) == 3)
    assert keeper.peers == [client.getsockname() for client in clients]
    for client, sock in zip(clients, keeper.kept, strict=True):
        client.sendall(b"hello")
        client.close()
        sock.setblocking(True)
        assert sock.recv(100, socket.MSG_WAITALL) == b"hello"
    assert (keeper.counters.accepted, keeper.counters.open) == (3, 3)


def test_walk_that_is_interrupted_goes_on_with_the_next_socket(
    loop: pyloop.Loop, keeper: Keeper
) -> None:
    def leave() -> None:
        if len(keeper.kept) == 1:
            raise SystemExit(3)

    clients = keeper.clients(4)
    keeper.act = leave
    with pytest.raises(SystemExit):
        turn(loop, lambda: False)
    assert len(keeper.kept) == 1
    turn(loop, lambda: len(keeper.kept) == 4)
    assert keeper.peers == [client.getsockname() for client in clients]
    for client in clients:
        client.close()


def test_loop_closed_with_sockets_not_walked_closes_them(loop: pyloop.Loop, keeper: Keeper) -> None:
    def leave() -> None:
        raise SystemExit(3)

    clients = keeper.clients(4)
    keeper.act = leave
    with pytest.raises(SystemExit):
        turn(loop, lambda: False)
    os.close(keeper.kept[0].detach())
    loop.close()
    assert closed(clients)


def test_sockets_for_an_owner_that_has_gone_are_closed_and_released(
    loop: pyloop.Loop, keeper: Keeper
) -> None:
    clients = keeper.clients(4)
    keeper.act = keeper.give_up
    turn(loop, lambda: keeper.kept)
    assert len(keeper.kept) == 1
    keeper.kept.pop().close()
    assert closed(clients)
    number = keeper.group.number
    assert lib.pl_group_release(loop._core.ptr, number) == 0  # the one that was kept
    assert lib.pl_group_release(loop._core.ptr, number) < 0
    other = Keeper(loop)
    assert other.group.number == number, "the number is free again"
    other.listener.close()


def test_child_closes_its_copies_of_sockets_not_walked(loop: pyloop.Loop, keeper: Keeper) -> None:
    pids = []

    def sockets() -> int:
        fds = Path("/proc/self/fd")
        names = [os.readlink(fd) for fd in fds.iterdir() if os.path.lexists(fd)]
        return sum(name.startswith("socket:") for name in names)

    def fork() -> None:
        if not pids:
            pids.append(os.fork())
            if not pids[0]:
                before = sockets()
                loop.close()
                os._exit(before - sockets())

    clients = keeper.clients(4)
    keeper.act = fork
    turn(loop, lambda: len(keeper.kept) == 4)
    status = os.waitpid(pids[0], 0)[1]
    assert os.waitstatus_to_exitcode(status) == 3 + 2, "three, and the pair for signals"
    keeper.kept[3].send(b"still")
    assert clients[3].recv(10) == b"still"
    for client in clients:
        client.close()


def test_accepting_rests_at_max_connections_until_one_is_released(loop: pyloop.Loop) -> None:
    keeper = Keeper(loop, 2)
    clients = keeper.clients(3)
    turn(loop, lambda: len(keeper.kept) == 2)
    for _ in range(3):
        loop.run_until_complete(nothing())
    assert len(keeper.kept) == 2
    keeper.kept[0].close()
    assert lib.pl_group_release(loop._core.ptr, keeper.group.number) == 0
    turn(loop, lambda: len(keeper.kept) == 3)
    assert keeper.counters.open == 2
    for sock in (*clients, *keeper.kept, keeper.listener):
        sock.close()


async def nothing() -> None:
    """Be one turn."""
