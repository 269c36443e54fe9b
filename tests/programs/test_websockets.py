"""websockets, server and client on one loop: sizes, many at once, pings, ends, a deaf peer."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from bodies import blocks, running, standstill
from peers import reset, tls_contexts
from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import broadcast, serve, unix_serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

BIG = b"".join(blocks(10 << 20))


async def echo(socket):
    with contextlib.suppress(ConnectionClosedError):
        async for message in socket:
            await socket.send(message)


@contextlib.asynccontextmanager
async def talking(handler, tls=False, **options):
    """A server, and a client of it."""
    ours, theirs = tls_contexts() if tls else (None, None)
    options = {"compression": None, "max_size": None, "close_timeout": 20, **options}
    async with serve(handler, "127.0.0.1", 0, ssl=ours, **options) as server:
        url = f"ws{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with connect(url, ssl=theirs, proxy=None, **options) as socket:
            yield socket


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_large_and_many_messages_come_back(run, tls):
    async def main():
        async with talking(echo, tls) as socket:
            await socket.send(BIG)
            assert await socket.recv() == BIG
            for number in range(1000):
                await socket.send(str(number))
            assert [await socket.recv() for _ in range(1000)] == [str(n) for n in range(1000)]

    run(main(), 60)


def test_compressed_and_fragmented_messages_come_back(run):
    async def main():
        async with talking(echo, compression="deflate") as socket:
            await socket.send([b"one ", b"two ", BIG[: 1 << 20]])
            assert await socket.recv() == b"one two " + BIG[: 1 << 20]

    run(main())


def test_ping_is_answered_between_messages(run):
    async def main():
        async with talking(echo) as socket:
            await socket.send(BIG)
            pong = await socket.ping(b"there?")
            assert await socket.recv() == BIG
            assert await pong >= 0

    run(main())


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "moved"), (4321, "é" * 50)])
def test_close_code_and_reason_reach_the_other_side(run, code, reason):
    async def leave(socket):
        await socket.close(code, reason)

    async def main():
        async with talking(leave) as socket:
            kind = ConnectionClosedOK if code < 1002 else ConnectionClosedError
            with pytest.raises(kind) as caught:
                await socket.recv()
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, reason)

    run(main())


def test_reset_ends_the_other_side_without_a_close_frame(run):
    ended = []

    async def wait(socket):
        with pytest.raises(ConnectionClosedError) as caught:
            await socket.recv()
        ended.append(caught.value)

    async def main():
        async with talking(wait) as socket:
            reset(socket)
            await socket.wait_closed()
            while not ended:
                await asyncio.sleep(0)
        assert ended[0].rcvd is None
        assert isinstance(ended[0].__cause__, ConnectionResetError)

    run(main())


def test_peer_that_does_not_read_holds_the_sender_back(run):
    sent, listen = 0, asyncio.Event()

    async def deaf(socket):
        await listen.wait()
        await echo(socket)

    async def main():
        async def send():
            nonlocal sent
            for block in blocks(50 << 20, 1 << 20):
                await socket.send(block)
                sent += len(block)

        async with talking(deaf, max_queue=4) as socket, running(send()) as sender:
            assert await standstill(lambda: sent) < 25 << 20
            listen.set()
            for block in blocks(50 << 20, 1 << 20):
                assert await socket.recv() == block
            await sender

    run(main(), 60)


def test_cancelled_receive_loses_no_message(run):
    async def main():
        async with talking(echo) as socket:
            for number in range(100):
                receive = asyncio.create_task(socket.recv())
                await asyncio.sleep(0)
                receive.cancel()
                await asyncio.gather(receive, return_exceptions=True)
                await socket.send(str(number))
                assert await socket.recv() == str(number)

    run(main())


def test_many_clients_hear_a_broadcast_over_a_unix_socket(run, tmp_path):
    path = str(tmp_path / "s")

    async def main():
        async with unix_serve(echo, path) as server, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(unix_connect(path)) for _ in range(40)]
            broadcast(server.connections, "to all")
            heard = await asyncio.gather(*(socket.recv() for socket in clients))
            assert heard == ["to all"] * 40

    run(main())


def test_abort_ends_a_sender_that_is_held_back(run):
    """At once, with all that it had queued: the peer never reads, so nothing else would end it."""
    ended = asyncio.Event()

    async def deaf(socket):
        await ended.wait()

    async def send(socket):
        while True:
            await socket.send(BIG)

    async def main():
        async with talking(deaf, max_queue=1, close_timeout=0.1) as socket:
            sender = asyncio.create_task(send(socket))
            await standstill(socket.transport.get_write_buffer_size)
            socket.transport.abort()
            with pytest.raises(ConnectionClosedError):
                await sender
            ended.set()

    run(main())
