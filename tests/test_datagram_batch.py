"""What a datagram protocol does while more of the batch is left: close, pause, raise, hand over."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys

import pytest
from datagrams import LOCAL, Peer, endpoint, udp

from pyloop import fast

ALL = [b"%d" % number for number in range(8)]
AT = b"3"  # the first is received alone, the others in one batch


class Acts(Peer):
    """Does `act(peer)` when it gets AT; `got` is what it has got by then, and later."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.got = []

    def datagram_received(self, data, addr):
        self.got.append(data)
        super().datagram_received(data, addr)
        if data == AT:
            self.act(self)


def flood(address, datagrams=ALL):
    with udp() as sock:
        for data in datagrams:
            sock.sendto(data, address)
        return sock.getsockname()


async def turns(count=4):
    for _ in range(count):
        await asyncio.sleep(0)


def perform(loop, act):
    """Have a peer get ALL and act at AT, run until nothing more comes; return it."""

    async def main():
        async with endpoint(lambda: Acts(act)) as peer:
            flood(peer.address)
            async with asyncio.timeout(30):
                while AT not in peer.got:
                    await asyncio.sleep(0)
            await turns()
            return peer

    return loop.run_until_complete(main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_end_within_the_batch_drops_the_rest_of_it(loop, end):
    peer = perform(loop, lambda peer: getattr(peer.transport, end)())
    assert peer.got == ALL[:4]
    assert peer.calls == ["made", "lost"] and peer.lost.result() is None


def test_pause_within_the_batch_keeps_the_rest_until_resumed(loop):
    async def main():
        async with endpoint(lambda: Acts(lambda peer: peer.transport.pause_reading())) as peer:
            flood(peer.address)
            async with asyncio.timeout(30):
                assert await peer.take(4) == ALL[:4]
                await turns()
                assert peer.got == ALL[:4]
                peer.transport.resume_reading()
                assert await peer.take(4) == ALL[4:]
        assert peer.got == ALL

    loop.run_until_complete(main())


def test_pause_and_resume_within_the_batch_keep_the_order(loop):
    def act(peer):
        peer.transport.pause_reading()
        peer.transport.resume_reading()

    async def main():
        async with endpoint(lambda: Acts(act)) as peer:
            flood(peer.address)
            async with asyncio.timeout(30):
                assert await peer.take(8) == ALL

    loop.run_until_complete(main())


def test_protocol_that_is_replaced_gets_no_more_and_may_be_gone(loop):
    class Second(Peer):
        pass

    async def main():
        second = Second()

        def act(peer):
            peer.transport.set_protocol(second)
            gc.collect()

        transport, first = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Acts(act), local_addr=LOCAL
        )
        flood(first.address)
        got = first.got
        del first
        async with asyncio.timeout(30):
            assert await second.take(4) == ALL[4:]
        assert got == ALL[:4] and transport.get_protocol() is second
        transport.abort()
        await second.lost

    loop.run_until_complete(main())


def test_method_that_is_replaced_is_not_called_again(loop):
    later = []

    def act(peer):
        peer.datagram_received = lambda data, addr: later.append(data)

    async def main():
        async with endpoint(lambda: Acts(act)) as peer:
            flood(peer.address)
            async with asyncio.timeout(30):
                while len(later) < 4:
                    await asyncio.sleep(0)
        assert (peer.got, later) == (ALL[:4], ALL[4:])

    loop.run_until_complete(main())


def test_exception_within_the_batch_is_reported_and_the_rest_delivered(loop):
    reports = []

    def handler(loop, context):
        reports.append((context, where.get()))

    where = contextvars.ContextVar("where", default="outside")
    loop.set_exception_handler(handler)

    def act(peer):
        where.set("in the protocol's context")
        raise asyncio.CancelledError("at three")

    async def main():
        async with endpoint(lambda: Acts(act)) as peer:
            flood(peer.address)
            async with asyncio.timeout(30):
                assert await peer.take(8) == ALL
        [(context, place)] = reports
        assert context["message"] == "protocol.datagram_received() failed"
        assert repr(context["exception"]) == "CancelledError('at three')"
        assert context["transport"] is peer.transport and context["protocol"] is peer
        assert place == "outside"

    loop.run_until_complete(main())


def test_exit_within_the_batch_leaves_the_run_and_the_rest_comes_with_the_next(loop):
    def start():
        return loop.create_datagram_endpoint(
            lambda: Acts(lambda peer: sys.exit(7)), local_addr=LOCAL
        )

    transport, peer = loop.run_until_complete(start())
    flood(peer.address)
    with pytest.raises(SystemExit, match=r"^7$"):
        loop.run_forever()
    assert peer.got == ALL[:4]
    assert loop.run_until_complete(asyncio.wait_for(peer.take(8), 30)) == ALL
    transport.close()
    loop.run_until_complete(peer.lost)


def test_each_transport_of_a_batch_has_its_own_context(loop):
    name = contextvars.ContextVar("name")
    seen = []

    class Named(Peer):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            seen.append((name.get(), data))
            name.set(name.get() + "!")

    async def main():
        name.set("a")
        async with endpoint(Named) as first:
            name.set("b")
            async with endpoint(Named) as second:
                for address in (first.address, second.address):
                    flood(address, ALL[:3])
                async with asyncio.timeout(30):
                    await first.take(3), await second.take(3)
        assert name.get() == "b"

    loop.run_until_complete(main())
    for letter in "ab":
        mine = [each for each in seen if each[0][0] == letter]
        assert mine == [(letter + "!" * n, ALL[n]) for n in range(3)]


def test_transport_that_another_aborts_within_the_batch_gets_nothing_more(loop):
    async def main():
        got = []

        class Jealous(Peer):
            def datagram_received(self, data, addr):
                got.append(self)
                for each in peers - {self}:
                    each.transport.abort()

        async with endpoint(Jealous) as first, endpoint(Jealous) as second:
            peers = {first, second}
            for peer in peers:
                flood(peer.address)
            async with asyncio.timeout(30):
                while len(got) < 8:
                    await asyncio.sleep(0)
            assert set(got) == {got[0]} and len(got) == 8

    loop.run_until_complete(main())


# ---- sendto ----


def test_arguments_by_name_are_taken_and_wrong_ones_refused(loop):
    async def main():
        async with endpoint() as one, endpoint() as other:
            other.transport.sendto(data=b"named", addr=one.address)
            other.transport.sendto(b"half", addr=one.address)
            other.transport.sendto(bytearray(b"array"), one.address)
            assert await one.take(3) == [b"named", b"half", b"array"]
            for args, names, said in (
                ((), {}, r"missing 1 required positional argument: 'data'$"),
                (
                    (b"", None, None),
                    {},
                    r"takes from 2 to 3 positional arguments but 4 were given$",
                ),
                ((b"",), {"to": None}, r"got an unexpected keyword argument 'to'$"),
                ((b"",), {}, r"^sendto\(\) needs an address: the transport is not connected$"),
                ((b"", "host"), {}, r"^AF_INET address must be tuple, not str$"),
                ((b"", [1]), {}, r"^AF_INET address must be tuple, not list$"),
            ):
                with pytest.raises(TypeError, match=said):
                    other.transport.sendto(*args, **names)

    loop.run_until_complete(main())


class Pulls(str):
    """A host whose comparison forgets all addresses, or raises."""

    __slots__ = ("pull",)
    __hash__ = str.__hash__

    def __eq__(self, other):
        self.pull()
        return str.__eq__(self, other)


def test_address_that_pulls_the_rug_away_is_sent_to_all_the_same(loop):
    def divide():
        raise ZeroDivisionError("in a comparison")

    async def main():
        async with endpoint() as one, endpoint() as other:
            host = Pulls(one.address[0])
            host.pull = other.transport._packed.clear
            for _ in range(3):
                other.transport.sendto(b"met", one.address)
                other.transport.sendto(b"pulled", (host, one.address[1]))
            assert await one.take(6) == [b"met", b"pulled"] * 3
            other.transport.sendto(b"met", one.address)
            host.pull = divide
            with pytest.raises(ZeroDivisionError, match=r"^in a comparison$"):
                other.transport.sendto(b"never", (host, one.address[1]))
            assert await one.take(1) == [b"met"]

    loop.run_until_complete(main())


def test_transport_of_a_closed_loop_drops_what_it_is_given(loop, caplog):
    transport, peer = loop.run_until_complete(loop.create_datagram_endpoint(Peer, local_addr=LOCAL))
    address = peer.address
    loop.close()
    for _ in range(6):
        transport.sendto(b"late", address)
    assert transport.get_write_buffer_size() == 0
    assert [each.getMessage().split(":")[0] for each in caplog.records] == [
        "sendto() on a closed transport"
    ]
    transport.close()
    assert transport.is_closing()


@pytest.mark.skipif(fast.fastpath is None, reason="there is no fast path")
def test_base_without_a_transport_refuses_its_work():
    base = fast.fastpath.DatagramBase()
    with pytest.raises(AttributeError, match="_send_other"):
        base.sendto(b"data", ("127.0.0.1", 1))
    with pytest.raises(AttributeError, match=r"^_ptr: cannot be deleted"):
        del base._ptr
    with pytest.raises(TypeError, match=r"must be a cdata pointer, not int$"):
        base._ptr = 5
    assert isinstance(base, asyncio.DatagramTransport)
