"""The socket of an accepted connection, which is made when somebody asks for it."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from pathlib import Path

import pytest
from peers import until
from transports import Made, Recorder

from pyloop.transports import LOST


@contextlib.asynccontextmanager
async def accepted(loop, family=socket.AF_INET):
    """Yield (transport, protocol, the peer's socket)."""
    made = Made()
    where = "127.0.0.1" if family == socket.AF_INET else "::1"
    server = await loop.create_server(made.factory, where, 0)
    with socket.create_connection(server.sockets[0].getsockname()[:2]) as peer:
        await until(lambda: made)
        yield made[0].transport, made[0], peer
    await made.all_lost()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_accepted_transport_that_is_closed_knows_its_addresses(loop, run, family):
    async def main():
        async with accepted(loop, family) as (transport, protocol, peer):
            transport.close()
            await protocol.lost
            assert transport.get_extra_info("sockname") == peer.getpeername()
            assert transport.get_extra_info("peername") == peer.getsockname()
            sock = transport.get_extra_info("socket")
            assert (sock.fileno(), sock.family, sock.type) == (-1, family, socket.SOCK_STREAM)

    run(main())


def test_accepted_socket_that_was_asked_for_does_not_block_and_ends_with_its_transport(loop, run):
    async def main():
        async with accepted(loop) as (transport, protocol, peer):
            sock = transport.get_extra_info("socket")
            fd = sock.fileno()
            assert f" fd={fd} " in repr(transport) and sock.gettimeout() == 0
            assert not os.get_blocking(fd) and not os.get_inheritable(fd)
            assert transport.get_extra_info("socket").fileno() == fd
            assert sock.getsockname() == transport.get_extra_info("sockname") == peer.getpeername()
            peer.send(b"hello")
            await until(lambda: protocol.data == b"hello")
            transport.close()
            await protocol.lost
            assert sock.fileno() == -1

    run(main())


def test_accepted_fd_that_others_closed_has_no_socket_and_is_never_closed_again(loop, run, backend):
    async def main():
        async with accepted(loop) as (transport, protocol, _):
            fd = int(repr(transport).split(" fd=")[1].split()[0])
            os.close(fd)
            assert transport.get_extra_info("socket", "none") == "none"
            if backend == "epoll":  # which forgets a closed fd in silence
                transport.abort()
            await protocol.lost
            again = os.open("/dev/null", os.O_RDONLY)
            assert again == fd, "nobody else took the number"
            del transport
            protocol.transport = None
            gc.collect()
            os.close(again)  # raises if it was closed

    run(main())


class Unreadable(Recorder):
    @property
    def data_received(self):
        raise LookupError("no such method")


def forget_exception(report):
    del report["exception"]
    gc.collect()


def test_accepted_conn_without_a_transport_is_closed_once(loop, run):
    reports = []
    loop.set_exception_handler(lambda _, context: reports.append(context))

    async def main():
        server = await loop.create_server(Unreadable, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            await until(lambda: reports)
            peer.setblocking(False)
            with contextlib.suppress(ConnectionResetError):
                assert await loop.sock_recv(peer, 1) == b""
            one, two = os.pipe()  # one has the number that was the conn's
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                forget_exception(reports[0])
            os.close(one)
            os.close(two)
        server.close()
        await server.wait_closed()

    run(main())
    assert reports[0]["message"] == "Error on transport creation for incoming connection"


def test_bit_that_the_fast_path_knows_by_number_is_what_it_takes_it_for():
    text = (Path(__file__).parents[1] / "csrc/fastpath/life.c").read_text()
    assert f"#define GATE_LOST {LOST} " in text
