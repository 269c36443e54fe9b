"""asyncio's stream transports: what pyloop's promise beyond asyncio's own."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import os
import socket
import ssl
import weakref

import pytest
from peers import Serving, peer_of, until
from transports import Contextual, Recorder, Refills, attached, receive, turns, var

from pyloop.core import lib


def test_transport_and_protocol_are_freed_after_the_loss(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            refs = weakref.ref(transport), weakref.ref(protocol)
        del transport
        protocol.transport = None
        lost, protocol = protocol.lost, None
        await turns()
        assert lost.done() and [ref() for ref in refs] == [None, None]

    gc.collect()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize("tls", [False, True])
def test_socket_that_cannot_be_watched_ends_the_attempt_to_connect(loop, run, tls):
    reports = []
    loop.set_exception_handler(lambda _, context: reports.append(context))

    async def main():
        mine, peer = socket.socketpair()
        arguments = {"ssl": ssl.create_default_context(), "server_hostname": "name"} if tls else {}
        with peer:
            attempt = loop.create_task(loop.create_connection(Recorder, sock=mine, **arguments))
            await asyncio.sleep(0)
            mine.close()  # before the transport begins
            async with asyncio.timeout(20):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await attempt

    run(main())
    gc.collect()
    assert reports == []


def test_client_protocol_is_called_in_its_creators_context(run):
    async def main():
        values = []
        var.set("creator")
        async with attached(Contextual(values)) as (transport, peer):
            var.set("later")
            peer.send(b"data")
            await until(lambda: ("data", "creator") in values)
            transport.get_protocol().calls.clear()
            contextvars.copy_context().run(transport.write, bytes(3 << 20))
            await receive(peer, 3 << 20)
            await until(lambda: "resume" in dict(values))
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: "lost" in dict(values))
        told = dict(values)
        del told["pause"]  # in that of the writer
        assert told == dict.fromkeys(["made", "data", "resume", "eof", "lost"], "creator")

    run(main())


# ---- repr ----


def test_repr_says_what_state_it_is_in(loop, run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            fd = transport.get_extra_info("socket").fileno()

            def shown():
                return repr(transport).removeprefix("<StreamTransport ").removesuffix(">")

            assert shown() == f"open fd={fd} write=<bufsize=0>"
            transport.pause_reading()
            assert shown() == f"paused fd={fd} write=<bufsize=0>"
            transport.resume_reading()
            transport.write(bytes(3 << 20))
            size = transport.get_write_buffer_size()
            assert size > 0 and shown() == f"open fd={fd} write=<bufsize={size}>"
            transport.close()
            assert shown() == f"closing fd={fd} write=<bufsize={size}>"
            transport.abort()
            assert shown() == f"closing fd={fd} write=<bufsize=0>"
            await protocol.lost
            assert shown() == "closed"

    run(main())


# ---- system calls: a socket that keeps records shows each as one ----


def records_of(loop, write):
    """What `write(transport)`, in one callback, sends: one item for each system call."""
    sent = []

    async def main():
        protocol = Recorder()
        mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with peer:
            waiter = loop.create_future()
            transport = loop._make_socket_transport(mine, protocol, waiter)
            await waiter
            write(transport)
            await turns()
            transport.close()
            await protocol.lost
            while piece := peer.recv(1 << 20):
                sent.append(piece)

    loop.run_until_complete(main())
    return sent


def test_header_and_body_leave_in_one_system_call(loop):
    header, body = b"HTTP/1.1 200 OK\r\n\r\n", bytes(50_000)

    def write(transport):
        transport.write(header)
        transport.write(body)

    assert records_of(loop, write) == [header + body]


@pytest.mark.parametrize("count", [2, 16, 1000])
def test_many_small_writes_leave_in_one_system_call(loop, count):
    pieces = [b"%d," % number for number in range(count)]
    assert records_of(loop, lambda transport: list(map(transport.write, pieces))) == [
        b"".join(pieces)
    ]


def test_writelines_leaves_in_one_system_call(loop):
    pieces = [b"a", bytearray(b"b"), memoryview(b"c"), b"", bytes(10_000)]
    assert records_of(loop, lambda transport: transport.writelines(pieces)) == [b"".join(pieces)]


def test_writes_of_connection_made_leave_in_one_system_call(loop):
    class Greets(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"220 ")
            transport.write(b"ready\r\n")
            transport.close()

    async def main():
        mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with peer:
            protocol = Greets()
            loop._make_socket_transport(mine, protocol)
            await protocol.lost
            assert [peer.recv(100), peer.recv(100)] == [b"220 ready\r\n", b""]

    loop.run_until_complete(main())


KINDS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": lambda data: memoryview(bytearray(data)),
    "subclass": type("Bytes", (bytes,), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_buffer_of_any_kind_is_taken_as_it_is_at_the_call(run, kind):
    async def write(size):
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            data = os.urandom(size)
            piece = KINDS[kind](data)
            transport.write(b"<")
            transport.write(piece)
            transport.write(b">")
            if isinstance(piece, bytearray):
                piece[:] = bytes(3)  # which also resizes it
            elif isinstance(piece, memoryview):
                piece.obj[:] = bytes(size)
            assert await receive(peer, size + 2) == b"<" + data + b">"

    for size in (8, 100_000, 2 << 20):
        run(write(size))


VIEWS = {
    "words": lambda data: memoryview(data).cast("I"),
    "rows": lambda data: memoryview(data).cast("B", (2, len(data) // 2)),
    "words with gaps": lambda data: memoryview(data).cast("I")[::2],
    "gaps": lambda data: memoryview(data)[::2],
    "backwards": lambda data: memoryview(data)[::-1],
}


@pytest.mark.parametrize("size", [80, 100_000, 2 << 20])
def test_view_of_any_shape_is_taken_as_it_is_at_the_call(run, size):
    async def write(kind):
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            data = bytearray(os.urandom(size))
            view = VIEWS[kind](data)
            expected = bytes(view)
            transport.write(view)
            data[:] = bytes(size)
            assert await receive(peer, len(expected)) == expected

    for kind in VIEWS:
        run(write(kind))


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_large_write_is_with_the_kernel_when_write_returns(run, kind):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            data = os.urandom(100_000)
            transport.write(kind(data))
            assert transport.get_write_buffer_size() == 0
            got = bytearray()
            while len(got) < len(data):
                got += peer.recv(1 << 20)  # raises, if it would have to wait
            assert got == data

    run(main())


def test_write_before_stop_leaves_before_the_loop_stops(loop):
    async def main():
        protocol = Recorder()
        mine, peer = socket.socketpair()
        transport, _ = await loop.create_connection(lambda: protocol, sock=mine)
        return transport, protocol, peer

    transport, protocol, peer = loop.run_until_complete(main())
    with peer:
        loop.call_soon(transport.write, b"last words")
        loop.call_soon(loop.stop)
        loop.run_forever()
        peer.setblocking(False)
        assert peer.recv(100) == b"last words"
        transport.close()
        loop.run_until_complete(protocol.lost)


# ---- whose fd it is ----


def test_socket_of_a_transport_is_refused_to_a_second_one(loop, run):
    async def main():
        mine, peer = socket.socketpair()
        protocol = Recorder()
        async with attached(protocol, (mine, peer)):
            with pytest.raises(RuntimeError, match="is used by transport <StreamTransport open"):
                await loop.create_connection(Recorder, sock=mine)
            peer.send(b"unharmed")
            await until(lambda: protocol.data == b"unharmed")

    run(main())


def test_fd_of_a_native_connection_is_for_no_reader(loop, run):
    async def main():
        async with Serving() as held, peer_of(held.server):
            conn = await held.conn()
            with pytest.raises(RuntimeError, match="is used by transport <Connection"):
                loop.add_reader(lib.pl_conn_fd(conn._ptr, conn.id), print)

    run(main())


# ---- the end ----


def test_write_in_resume_writing_of_a_closing_transport_leaves_too(run):
    async def main():
        protocol = Refills()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(2 << 20))
            transport.close()
            assert len(await receive(peer, 7 * (2 << 20))) == 6 * (2 << 20)
            assert await protocol.lost is None

    run(main())


def test_want_of_fds_is_told_once_a_second(loop, run, monkeypatch):
    told, now = [], [100.0]
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))

    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        async with server:
            (acceptor,) = loop._core.dispatch.owners.values()
            with monkeypatch.context() as patch:
                patch.setattr(loop, "time", lambda: now[0])
                for now[0] in (100.0, 100.5, 100.9, 101.0, 101.5):
                    acceptor.refused(-errno.EMFILE, True)
                acceptor.refused(-errno.ENOMEM, False)  # that one is closed, so it is told at once
        assert [exc.errno for exc in told] == [errno.EMFILE, errno.EMFILE, errno.ENOMEM]

    run(main())
