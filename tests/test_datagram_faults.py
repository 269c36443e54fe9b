"""What pyloop's datagram transports do beyond asyncio's, and in forks, threads and floods."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
import threading
import weakref

import pytest
from datagrams import LOCAL, Peer, endpoint, udp, unix_pair
from faults import constant

from pyloop.datagrams import DatagramTransport
from pyloop.sockaddr import AddressBook, encode_sockaddr

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")


@pytest.fixture
def start(loop):
    """`start(**options)`: an endpoint that the test itself closes."""

    def start(**options):
        making = loop.create_datagram_endpoint(Peer, **(options or {"local_addr": LOCAL}))
        return loop.run_until_complete(making)

    return start


# ---- what asyncio does not, or does otherwise ----


def test_empty_datagrams_are_sent_and_arrive(run):
    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            other.transport.sendto(b"")
            other.transport.sendto(bytearray())
            other.transport.sendto(b"end")
            assert await one.take(3) == [b"", b"", b"end"]

    run(main())


def test_nameless_pair_talks(run):
    async def main():
        with unix_pair() as (ours, theirs):
            async with endpoint(sock=ours) as peer:
                peer.transport.sendto(b"ping")
                assert await asyncio.to_thread(theirs.recv, 10) == b"ping"
                theirs.send(b"pong")
                assert await peer.next() == (b"pong", None)

    run(main())


def test_transport_is_weakly_referenced_and_says_what_it_is(run):
    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            transport = other.transport
            assert isinstance(transport, DatagramTransport)
            assert weakref.ref(transport)() is transport
            assert not hasattr(transport, "__dict__")
            fd = transport.get_extra_info("socket").fileno()
            ends = f"sockname={other.address!r} peername={one.address!r}"
            assert repr(transport) == f"<DatagramTransport open fd={fd} {ends} queued=0>"
            transport.sendto(b"four")
            assert transport.get_write_buffer_size() == 12
            transport.close()
            assert repr(transport) == f"<DatagramTransport closing fd={fd} {ends} queued=12>"
            await other.lost
            assert repr(transport) == f"<DatagramTransport closed fd=-1 {ends} queued=0>"
            assert transport.get_protocol() is None

    run(main())


@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        (None, TypeError, r"sendto\(\) needs an address: the transport is not connected"),
        ("127.0.0.1", TypeError, "AF_INET address must be tuple, not str"),
        (["127.0.0.1", 1], TypeError, "AF_INET address must be tuple, not list"),
        (("127.0.0.1",), TypeError, r"must be a pair \(host, port\), not \('127.0.0.1',\)"),
        (("::1", 1, 0, 0), TypeError, r"AF_INET address must be a pair \(host, port\)"),
        ((1, 1), TypeError, "host must be str, bytes or bytearray, not int"),
        (("127.0.0.1", "1"), TypeError, "'str' object cannot be interpreted as an integer"),
        (("127.0.0.1", 65536), OverflowError, "port must be 0-65535, not 65536"),
        (("127.0.0.1\0", 1), ValueError, "embedded null character"),
    ],
)
def test_bad_address_raises_at_the_call_and_ends_nothing(run, address, kind, text):
    async def main():
        async with endpoint() as peer:
            with pytest.raises(kind, match=text):
                peer.transport.sendto(b"x", address)
            peer.transport.sendto(b"fine", peer.address)
            assert (await peer.next())[0] == b"fine"

    run(main())


def test_unknown_host_is_told_and_the_others_arrive(run, monkeypatch):
    def unknown(host, *args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, f"no {host}")

    async def main():
        async with endpoint() as peer:
            monkeypatch.setattr(socket, "getaddrinfo", unknown)
            for _ in range(2):  # asked each time
                peer.transport.sendto(b"x", ("nobody.invalid", 1))
                assert str(await peer.errors.get()) == "[Errno -2] no nobody.invalid"
            peer.transport.sendto(b"fine", peer.address)
            assert (await peer.next())[0] == b"fine"

    run(main())


@linux_only
def test_cut_datagram_is_told_and_not_delivered(run):
    async def main():
        with unix_pair() as (ours, theirs):
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            size = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 1000
            if size <= constant("PL_DATAGRAM_MAX"):
                pytest.skip("net.core.wmem_max does not allow datagrams as long")
            async with endpoint(sock=ours) as peer:
                theirs.send(bytes(size))
                error = await peer.errors.get()
                assert error.errno == errno.EMSGSIZE
                assert str(error).endswith(
                    "a datagram of more than 262144 bytes from None was dropped"
                )
                theirs.send(b"next")
                assert (await peer.next())[0] == b"next" and peer.inbox.empty()

    run(main())


def test_family_that_only_python_can_read_has_asyncios_transport(loop, monkeypatch):
    made = []
    monkeypatch.setattr(
        asyncio.SelectorEventLoop, "_make_datagram_transport", lambda *args: made.append(args[1])
    )

    class Odd:
        family = 29  # AF_CAN

    loop._make_datagram_transport(Odd, None)
    assert made == [Odd]


# ---- buffers ----


def test_lower_limits_pause_at_once(run):
    async def main():
        with unix_pair() as (ours, theirs):
            async with endpoint(sock=ours) as peer:
                number = 0
                while peer.transport.get_write_buffer_size() < 1000:
                    peer.transport.sendto(b"%d" % number)
                    number += 1
                    if number % 2:
                        await asyncio.sleep(0)  # flushed: what stays, the kernel did not take
                peer.transport.set_write_buffer_limits(high=0)
                assert peer.calls == ["made", "pause"]
                for expected in range(number):
                    assert await asyncio.to_thread(theirs.recv, 10) == b"%d" % expected
                await peer.writable.wait()
                assert peer.calls == ["made", "pause", "resume"]

    run(main())


def test_abort_drops_what_waits_for_the_receiver(run):
    async def main():
        with unix_pair() as (ours, _):
            async with endpoint(sock=ours) as peer:
                while "pause" not in peer.calls:
                    peer.transport.sendto(b"x" * 2000)
                peer.transport.abort()
                assert await peer.lost is None
                assert peer.calls == ["made", "pause", "lost"]

    run(main())


@pytest.mark.parametrize("what", ["pause_writing", "resume_writing", "connection_lost"])
def test_exception_in_flow_control_or_at_the_end_is_reported(loop, run, what):
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))

    class Faulty(Peer):
        pass

    def fail(self, *args):
        getattr(Peer, what)(self, *args)
        raise ArithmeticError(what)

    setattr(Faulty, what, fail)

    async def main():
        with unix_pair() as (ours, theirs):
            async with endpoint(Faulty, sock=ours) as peer:
                while "pause" not in peer.calls:
                    peer.transport.sendto(b"x" * 2000)
                theirs.setblocking(False)
                while "resume" not in peer.calls:
                    await asyncio.get_running_loop().sock_recv(theirs, 3000)
            assert peer.lost.done()
            return peer.transport, peer

    transport, peer = run(main())
    (report,) = reports
    assert report["message"] == f"protocol.{what}() failed"
    assert isinstance(report["exception"], ArithmeticError)
    assert report["transport"] is transport and report["protocol"] in (peer, None)


# ---- floods ----


def test_flood_starves_neither_timers_nor_another_socket(run):
    class Storm(Peer):
        """Each datagram of it makes another, for ever."""

        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)

    async def main():
        loop = asyncio.get_running_loop()
        async with endpoint(Storm) as storm, endpoint() as peer:
            for _ in range(200):
                storm.transport.sendto(b"again", storm.address)
            fired = asyncio.Event()
            loop.call_later(0.01, fired.set)
            await fired.wait()
            for _ in range(20):
                peer.transport.sendto(b"hello", peer.address)
                assert (await peer.next())[0] == b"hello"

    run(main())


def test_address_book_is_bounded_and_keeps_no_names():
    book = AddressBook()
    for number in range(5000):
        address = (f"127.0.{number // 256}.{number % 256}", 1)
        raw = book.pack(socket.AF_INET, address)
        head = len(raw).to_bytes(4, sys.byteorder) + raw
        assert book.unpack(socket.AF_INET, head) == address
        assert book.senders[head] == address and book.packed[socket.AF_INET][address] == raw
    assert 0 < len(book.senders) <= 1024 and 0 < len(book.packed[socket.AF_INET]) <= 1024
    book.pack(socket.AF_INET, ("localhost", 1))
    book.pack(socket.AF_INET, (bytearray(b"127.0.0.1"), 1))
    assert ("localhost", 1) not in book.packed[socket.AF_INET]


@pytest.mark.parametrize(
    ("family", "address", "kind", "text"),
    [
        (socket.AF_INET6, ("::1",), TypeError, r"\(host, port\[, flowinfo\[, scopeid\]\]\)"),
        (socket.AF_INET6, ("::1", 1, 1 << 20), OverflowError, "flowinfo must be 0-1048575"),
        (socket.AF_INET6, ("::1", 1, 0, -1), OverflowError, "scopeid must be 0-4294967295"),
        (socket.AF_INET6, ("127.0.0.1", 1), socket.gaierror, "ddress family"),
        (socket.AF_UNIX, "x" * 108, OSError, "AF_UNIX path too long"),
        (socket.AF_UNIX, 1, TypeError, "a bytes-like object is required, not 'int'"),
    ],
)
def test_bad_address_of_another_family_is_refused(family, address, kind, text):
    with pytest.raises(kind, match=text):
        encode_sockaddr(family, address)


def test_address_is_packed_as_the_kernel_has_it():
    packed = encode_sockaddr(socket.AF_INET6, ("fe80::1", 80, 5, 3))
    raw = (socket.AF_INET6).to_bytes(2, sys.byteorder) + b"\0\x50\0\0\0\5\xfe\x80"
    assert packed == (raw + bytes(13) + b"\1" + (3).to_bytes(4, sys.byteorder), True)
    broadcast = encode_sockaddr(socket.AF_INET, ("<broadcast>", 80))
    assert broadcast == encode_sockaddr(socket.AF_INET, ("255.255.255.255", 80))


# ---- threads, forks, ends ----


def test_call_from_another_thread_is_refused(run):
    async def main():
        async with endpoint() as peer:
            for call in (lambda: peer.transport.sendto(b"", peer.address), peer.transport.close):
                with pytest.raises(RuntimeError, match=r"use loop\.call_soon_threadsafe"):
                    await asyncio.to_thread(call)
            assert not peer.transport.is_closing()

    run(main())


def test_forked_child_may_let_go_and_the_parent_goes_on(run):
    async def main():
        async with endpoint() as one, endpoint() as other:
            other.transport.sendto(b"queued before", one.address)
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    with pytest.raises(RuntimeError, match="the loop belongs to process"):
                        other.transport.sendto(b"from the child", one.address)
                    sock = one.transport.get_extra_info("socket")
                    one.transport.close()
                    other.transport.abort()
                    assert sock.fileno() == -1 and "lost" not in one.calls
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0
            other.transport.sendto(b"after", one.address)
            assert await one.take(2) == [b"queued before", b"after"]
            assert one.inbox.empty()

    run(main())


def test_transport_of_a_closed_loop_can_be_closed_quietly(loop, start):
    (one, _), (other, peer) = start(), start()
    socks = [transport.get_extra_info("socket") for transport in (one, other)]
    other.sendto(b"never", peer.address)
    loop.close()
    other.sendto(b"nor this", peer.address)
    one.close()
    other.abort()
    assert [sock.fileno() for sock in socks] == [-1, -1]
    assert not peer.lost.done() and one.get_write_buffer_size() == 0


def test_fd_closed_behind_its_back_ends_the_transport(loop, run):
    if loop.backend == "epoll":
        pytest.skip("epoll forgets it without a word")

    async def main():
        async with endpoint() as peer:
            os.close(peer.transport.get_extra_info("socket").fileno())
            assert (await peer.lost).errno == errno.EBADF

    run(main())


def test_sending_on_after_the_end_is_logged_once(run, caplog):
    async def main():
        async with endpoint() as peer:
            peer.transport.close()
            for _ in range(20):
                peer.transport.sendto(b"x", peer.address)
            (record,) = caplog.records
            assert record.message.startswith("sendto() on a closed transport: <DatagramTransport")

    run(main())


def test_what_is_queued_leaves_when_the_run_ends(loop, start):
    transport, _ = start()
    with udp() as sock:
        loop.call_soon(lambda: (transport.sendto(b"bye", sock.getsockname()), loop.stop()))
        loop.run_forever()
        assert sock.recv(10) == b"bye"
    transport.abort()


def test_unused_endpoints_leave_nothing(run):
    async def main():
        threads = threading.active_count()
        for _ in range(50):
            async with endpoint() as peer:
                peer.transport.sendto(b"x", peer.address)
                await peer.next()
        gc.collect()
        left = [thing for thing in gc.get_objects() if type(thing) is DatagramTransport]
        assert len(left) <= 1 and threading.active_count() == threads

    run(main())
