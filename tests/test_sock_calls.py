"""loop.sock_recv and its kin: they try first, wait only for what is not there, and lose nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import ssl
import warnings
import weakref

import pytest
from ends import pair, started


@pytest.fixture
def ends():
    ours, theirs = pair()
    with ours, theirs:
        yield ours, theirs


def listener(family=socket.AF_INET, address=("127.0.0.1", 0)):
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen()
    sock.setblocking(False)
    return sock


async def recv_into(loop, sock):
    buf = bytearray(8)
    return bytes(buf[: await loop.sock_recv_into(sock, buf)])


async def recvfrom(loop, sock):
    data, address = await loop.sock_recvfrom(sock, 8)
    assert address == sock.getpeername() or address is None
    return data


async def recvfrom_into(loop, sock):
    buf = bytearray(8)
    count, _ = await loop.sock_recvfrom_into(sock, buf)
    return bytes(buf[:count])


async def recv(loop, sock):
    return await loop.sock_recv(sock, 8)


def test_receive_returns_what_is_there_or_waits_for_it(loop, run):
    async def main():
        ours, theirs = pair(socket.SOCK_DGRAM)
        with ours, theirs:
            for receive in (recv, recv_into, recvfrom, recvfrom_into):
                await loop.sock_sendall(theirs, b"there")
                assert await receive(loop, ours) == b"there"
                task = await started(receive(loop, ours))
                await loop.sock_sendall(theirs, b"later")
                assert await task == b"later"

    run(main())


def test_conversation_changes_the_interest_of_each_end_once(loop, run, ends, monkeypatch):
    changes = []
    want = loop._watches._want
    monkeypatch.setattr(
        loop._watches, "_want", lambda fd, events: (changes.append((fd, events)), want(fd, events))
    )

    async def answer(sock):
        while data := await loop.sock_recv(sock, 8):
            await loop.sock_sendall(sock, data)

    async def main():
        ours, theirs = ends
        task = await started(answer(theirs))
        for number in range(20):
            await loop.sock_sendall(ours, b"%d" % number)
            assert await loop.sock_recv(ours, 8) == b"%d" % number
        assert changes == [(theirs.fileno(), 1), (ours.fileno(), 1)]
        ours.shutdown(socket.SHUT_WR)
        await task

    run(main())


def test_interest_ends_when_the_socket_is_ready_and_nobody_waits(loop, run, ends):
    async def main():
        ours, theirs = ends
        task = await started(loop.sock_recv(ours, 8))
        theirs.send(b"one")
        await task
        assert ours in loop._selector.get_map()
        theirs.send(b"two")
        while ours in loop._selector.get_map():
            await asyncio.sleep(0)
        assert await loop.sock_recv(ours, 8) == b"two"

    run(main())


def test_interest_ends_with_the_stream(loop, run, ends):
    async def main():
        ours, theirs = ends
        task = await started(loop.sock_recv(ours, 8))
        theirs.shutdown(socket.SHUT_WR)
        assert await task == b"" and ours not in loop._selector.get_map()

    run(main())


def test_receiver_and_sender_wait_for_one_socket(loop, run, ends):
    async def main():
        ours, theirs = ends
        data = bytes(range(256)) * 8192
        receiving = await started(loop.sock_recv(ours, 8))
        sending = await started(loop.sock_sendall(ours, data))
        assert not sending.done()
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(theirs, 1 << 20)
        await sending
        assert got == data and not receiving.done()
        await loop.sock_sendall(theirs, b"back")
        assert await receiving == b"back"

    run(main())


def test_receivers_of_one_socket_take_turns(loop, run):
    async def main():
        ours, theirs = pair(socket.SOCK_DGRAM)
        with ours, theirs:
            tasks = [await started(loop.sock_recv(ours, 8)) for _ in range(4)]
            tasks.pop(1).cancel()
            for number in range(3):
                theirs.send(b"%d" % number)
            assert await asyncio.gather(*tasks) == [b"0", b"1", b"2"]

    run(main())


def test_receiver_cancelled_when_the_message_is_there_leaves_it_to_the_next(loop, run, ends):
    async def main():
        ours, theirs = ends
        task = await started(loop.sock_recv(ours, 8))
        waiter = loop._watches.find(ours).receivers[0]
        theirs.send(b"message")
        loop._fd_ready(ours.fileno(), 1)
        assert waiter.done() and task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await loop.sock_recv(ours, 8) == b"message"

    run(main())


def test_cancelled_receivers_leave_nothing_that_grows(loop, run, ends):
    async def main():
        for _ in range(100):
            (await started(loop.sock_recv(ends[0], 8))).cancel()
        await asyncio.sleep(0)
        assert len(loop._watches.find(ends[0]).receivers) <= 1

    run(main())


def test_callback_and_receiver_of_one_socket_are_both_served(loop, run, ends):
    async def main():
        ours, theirs = ends
        called = asyncio.Event()
        task = await started(loop.sock_recv(ours, 8))
        loop.add_reader(ours, called.set)
        theirs.send(b"one")
        await called.wait()
        assert await task == b"one"
        task = await started(loop.sock_recv(ours, 8))
        assert loop.remove_reader(ours) and not loop.remove_reader(ours)
        called.clear()
        theirs.send(b"two")
        assert await task == b"two" and not called.is_set()

    run(main())


def test_socket_that_is_forgotten_is_closed(loop, run):
    async def main():
        ours, theirs = pair()
        task = await started(loop.sock_recv(ours, 8))
        theirs.send(b"one")
        await task
        alive = weakref.ref(ours)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del ours, task
            gc.collect()
        assert alive() is None
        with theirs:
            assert await loop.sock_recv(theirs, 8) == b""

    run(main())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_sendall_sends_large_data_of_every_kind_without_keeping_it(loop, run, ends, kind):
    async def main():
        ours, theirs = ends
        plain = bytearray(range(256)) * 4096
        data = memoryview(plain).cast("I") if kind is memoryview else kind(plain)
        sending = await started(loop.sock_sendall(ours, data))
        got = bytearray()
        while len(got) < len(plain):
            got += await loop.sock_recv(theirs, 1 << 20)
        await sending
        assert got == plain
        if kind is bytearray:
            data.append(0)  # BufferError while a view of it is alive

    run(main())


def test_sendall_to_a_peer_that_leaves_raises(loop, run, ends):
    async def main():
        ours, theirs = ends
        sending = await started(loop.sock_sendall(ours, bytes(1 << 20)))
        theirs.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await sending

    run(main())


def test_sendto_waits_for_room(loop, run):
    async def main():
        ours, theirs = pair(socket.SOCK_DGRAM)
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            name = "\0pyloop-test-" + str(id(theirs))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as target:
                target.bind(name)
                target.setblocking(False)
                sent = 0
                while (sending := await started(loop.sock_sendto(ours, b"x" * 100, name))).done():
                    sent += sending.result()
                for _ in range(sent // 100 + 1):
                    assert await loop.sock_recv(target, 200) == b"x" * 100
                assert await sending == 100

    run(main())


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_connect_and_accept_meet(loop, run, family, host):
    async def main():
        with listener(family, (host, 0)) as server, socket.socket(family) as client:
            client.setblocking(False)
            accepting = await started(loop.sock_accept(server))
            await loop.sock_connect(client, (host, server.getsockname()[1]))
            conn, address = await accepting
            with conn:
                assert address[:2] == client.getsockname()[:2] and not conn.getblocking()
                assert client not in loop._selector.get_map()

    run(main())


def test_many_accept_at_one_listener(loop, run):
    async def main():
        with listener() as server:
            tasks = [await started(loop.sock_accept(server)) for _ in range(20)]
            for _ in tasks:
                socket.create_connection(server.getsockname()).close()
            for conn, _ in await asyncio.gather(*tasks):
                conn.close()

    run(main())


def test_refused_connect_names_the_address(loop, run):
    async def main():
        with listener() as sock:
            address = sock.getsockname()
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError) as caught:
                await loop.sock_connect(client, address)
            assert str(caught.value) in (
                f"[Errno {errno.ECONNREFUSED}] Connect call failed {address}",
                f"[Errno {errno.ECONNREFUSED}] Connection refused",  # at once
            )
            assert client not in loop._selector.get_map()

    run(main())


def test_connect_to_a_full_backlog_raises_instead_of_pretending(loop, run, tmp_path):
    """A Unix socket is connected at once or not at all: there is nothing to wait for."""

    async def main():
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
                first.setblocking(False)
                second.setblocking(False)
                await loop.sock_connect(first, path)
                with pytest.raises(BlockingIOError):
                    await loop.sock_connect(second, path)

    run(main())


CALLS = {
    "sock_recv": (8,),
    "sock_recv_into": (bytearray(8),),
    "sock_recvfrom": (8,),
    "sock_recvfrom_into": (bytearray(8),),
    "sock_sendall": (b"x",),
    "sock_sendto": (b"x", ("127.0.0.1", 1)),
    "sock_connect": (("127.0.0.1", 1),),
    "sock_accept": (),
}


def test_blocking_socket_is_refused_in_debug_mode_and_tls_always(loop, run):
    async def main():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with context.wrap_socket(socket.socket()) as secure, socket.socket() as sock:
            for name, args in CALLS.items():
                loop.set_debug(False)
                with pytest.raises(TypeError, match=r"^Socket cannot be of type SSLSocket$"):
                    await getattr(loop, name)(secure, *args)
                loop.set_debug(True)
                with pytest.raises(ValueError, match=r"^the socket must be non-blocking$"):
                    await getattr(loop, name)(sock, *args)

    run(main())


def test_closed_socket_is_an_error(loop, run, ends):
    async def main():
        ends[0].close()
        for name in CALLS.keys() - {"sock_connect", "sock_sendto"}:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await getattr(loop, name)(ends[0], *CALLS[name])

    run(main())
