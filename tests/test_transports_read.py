"""asyncio's stream transports: how they read, pause, and change protocols, and BufferedProtocol."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from peers import tls_contexts, until
from transports import ORACLE, BufferedRecorder, Recorder, attached, receive, turns

pytestmark = ORACLE
KINDS = [Recorder, BufferedRecorder]


# ---- pausing ----


@pytest.mark.parametrize("kind", KINDS)
def test_paused_transport_delivers_nothing_until_resumed(run, kind):
    async def main():
        protocol = kind()
        async with attached(protocol) as (transport, peer):
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            peer.send(b"held")
            peer.shutdown(socket.SHUT_WR)
            await turns(5)
            assert protocol.calls == ["made"]
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            await protocol.lost
            assert protocol.calls == ["made", b"held", "eof", "lost"]
            assert not transport.is_reading()
            transport.resume_reading()
            transport.pause_reading()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_paused_in_connection_made_starts_paused(run, kind):
    class Shy(kind):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def main():
        protocol = Shy()
        mine, peer = socket.socketpair()
        peer.send(b"early")
        async with attached(protocol, (mine, peer)) as (transport, _):
            await turns(5)
            assert protocol.calls == ["made"] and not transport.is_reading()
            transport.resume_reading()
            await until(lambda: protocol.data == b"early")

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_paused_in_a_callback_loses_and_reorders_nothing(run, kind):
    class Halting(kind):
        """Pauses after each piece; someone else resumes it."""

        def __init__(self):
            super().__init__()
            self.halts = 0

        def _halt(self):
            self.halts += 1
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            self._halt()

        if kind is Recorder:

            def data_received(self, data):
                super().data_received(data)
                self._halt()

    async def main():
        loop, protocol = asyncio.get_running_loop(), Halting()
        async with attached(protocol) as (_, peer):
            data = os.urandom(1 << 20)
            await loop.sock_sendall(peer, data)
            peer.shutdown(socket.SHUT_WR)
            await protocol.lost
            assert protocol.data == data and protocol.halts >= 4
            assert protocol.calls.count("eof") == 1

    run(main())


def test_paused_by_another_connection_of_the_same_turn_gets_nothing_more(run):
    """What is in the batch already is held, and comes first after resume_reading."""

    async def main():
        transports = []

        class Rivals(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transports.append(transport)

            def data_received(self, data):
                super().data_received(data)
                for other in transports:
                    if other is not self.transport:
                        other.pause_reading()

        pair = Rivals(), Rivals()
        async with attached(pair[0]) as (_, first), attached(pair[1]) as (_, second):
            for peer in (first, second):
                peer.send(b"one")
            await until(lambda: pair[0].data or pair[1].data)
            await turns(5)
            winner, loser = sorted(pair, key=lambda each: -len(each.data))
            assert (winner.data, loser.calls) == (b"one", ["made"])
            for peer in (first, second):
                peer.send(b"two")
                peer.shutdown(socket.SHUT_WR)
            await winner.lost
            assert loser.calls == ["made"]
            loser.transport.resume_reading()
            await loser.lost
            assert loser.data == b"onetwo" and loser.calls[-2:] == ["eof", "lost"]

    run(main())


# ---- protocols that change ----


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_protocol_set_in_a_callback_gets_what_comes_next(run, before, after):
    async def main():
        second = after()

        class First(before):
            def _hand_over(self):
                self.transport.set_protocol(second)
                self.lost.set_result(None)

            def buffer_updated(self, nbytes):
                super().buffer_updated(nbytes)
                self._hand_over()

            if before is Recorder:

                def data_received(self, data):
                    super().data_received(data)
                    self._hand_over()

        first = First()
        async with attached(first) as (transport, peer):
            second.transport = transport
            peer.send(b"for the first")
            await until(lambda: first.data)
            assert transport.get_protocol() is second
            peer.send(b"for the second")
            await until(lambda: second.data)
            peer.shutdown(socket.SHUT_WR)
            await second.lost
            assert first.calls == ["made", b"for the first"]
            assert second.calls == [b"for the second", "eof", "lost"]

    run(main())


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_protocol_set_while_paused_gets_what_was_held(run, before, after):
    async def main():
        first, second = before(), after()
        async with attached(first) as (transport, peer):
            transport.pause_reading()
            peer.send(b"held")
            await turns(5)
            transport.set_protocol(second)
            second.transport = transport
            first.lost.set_result(None)
            peer.send(b" and more")
            await turns()
            transport.resume_reading()
            await until(lambda: second.data == b"held and more")
            peer.shutdown(socket.SHUT_WR)
            await second.lost
            assert first.calls == ["made"] and second.calls[-2:] == ["eof", "lost"]

    run(main())


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_protocol_set_by_another_connection_of_the_same_turn(run, before, after):
    """An event of the old kind that is in the batch already goes to the new one."""

    async def main():
        seconds, firsts = {}, []

        def received():
            return sum(len(each.data) for each in (*firsts, *seconds.values()))

        class First(before):
            def _change_others(self):
                for other in firsts:
                    if other is not self and not other.data:
                        seconds[other] = after()
                        seconds[other].transport = other.transport
                        other.transport.set_protocol(seconds[other])

            def buffer_updated(self, nbytes):
                super().buffer_updated(nbytes)
                self._change_others()

            if before is Recorder:

                def data_received(self, data):
                    super().data_received(data)
                    self._change_others()

        firsts += [First(), First()]
        async with attached(firsts[0]) as (_, one), attached(firsts[1]) as (_, two):
            for peer in (one, two):
                peer.send(b"x")
            await until(lambda: firsts[0].data or firsts[1].data)
            await until(lambda: received() == 2)
            assert len(seconds) == 1
            for first, second in seconds.items():
                assert (first.data, second.data) == (b"", b"x")
                first.lost = second.lost

    run(main())


def test_starttls_with_the_client_hello_in_the_same_segment(loop, run):
    """The server pauses at its STARTTLS line and gives the rest to TLS."""
    server_context, client_context = tls_contexts()

    class Upgrades(Recorder):
        upgraded = None

        def data_received(self, data):
            super().data_received(data)
            if data == b"STARTTLS\n":
                self.upgraded = loop.create_task(self.upgrade())

        async def upgrade(self):
            self.transport.pause_reading()
            self.transport.write(b"220 go\n")
            inner = Recorder()
            inner.transport = await loop.start_tls(
                self.transport, inner, server_context, server_side=True
            )
            inner.transport.write(b"secret")
            return inner

    async def main():
        protocol = Upgrades()
        async with attached(protocol) as (_, peer):
            await loop.sock_sendall(peer, b"STARTTLS\n")
            assert await receive(peer, 7) == b"220 go\n"
            client = Recorder()
            raw, _ = await loop.create_connection(lambda: client, sock=peer.dup())
            plain = Recorder()
            transport = await loop.start_tls(
                raw, plain, client_context, server_hostname="localhost"
            )
            await until(lambda: plain.data == b"secret")
            transport.write(b"answer")
            inner = await protocol.upgraded
            await until(lambda: inner.data == b"answer")
            transport.close()
            await plain.lost
            await inner.lost
            protocol.lost = inner.lost

    run(main())


# ---- BufferedProtocol ----


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 22])
def test_buffers_of_all_sizes_receive_the_whole_stream(run, size):
    async def main():
        protocol = BufferedRecorder(size)
        async with attached(protocol) as (_, peer):
            data = os.urandom(500 if size < 100 else 300_000)
            await asyncio.get_running_loop().sock_sendall(peer, data)
            peer.shutdown(socket.SHUT_WR)
            await protocol.lost
            assert protocol.data == data
            pieces = protocol.calls[1:-2]
            assert all(1 <= len(piece) <= size for piece in pieces)
            assert protocol.calls[-2:] == ["eof", "lost"]

    run(main())


def test_exact_buffer_is_followed_by_the_end_of_stream(run):
    async def main():
        protocol = BufferedRecorder(4)
        async with attached(protocol) as (_, peer):
            peer.send(b"1234")
            peer.shutdown(socket.SHUT_WR)
            await protocol.lost
            assert protocol.calls == ["made", b"1234", "eof", "lost"]

    run(main())


def test_buffer_may_be_resized_in_buffer_updated(run):
    class Grows(BufferedRecorder):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            self.buffer += bytes(len(self.buffer))

    async def main():
        protocol = Grows(1)
        async with attached(protocol) as (_, peer):
            peer.send(bytes(range(256)))
            await until(lambda: len(protocol.data) == 256)
            assert protocol.data == bytes(range(256))
            assert [len(piece) for piece in protocol.calls[1:]] == [1, 2, 4, 8, 16, 32, 64, 128, 1]

    run(main())


@pytest.mark.parametrize("view", [memoryview, lambda buffer: memoryview(buffer)[3:]])
def test_buffer_may_be_a_part_of_another(run, view):
    class Part(BufferedRecorder):
        def get_buffer(self, sizehint):
            return view(self.buffer)

        def buffer_updated(self, nbytes):
            self.data += view(self.buffer)[:nbytes]

    async def main():
        protocol = Part(100)
        async with attached(protocol) as (_, peer):
            peer.send(b"into a view")
            await until(lambda: protocol.data == b"into a view")

    run(main())


class Odd(BufferedRecorder):
    def get_buffer(self, sizehint):
        return self.buffer() if callable(self.buffer) else self.buffer


def raise_it():
    raise ZeroDivisionError("no buffer")


BAD_BUFFERS = {
    "empty": (bytearray(), RuntimeError, "get_buffer() returned an empty buffer"),
    "read-only": (bytes(10), (TypeError, BufferError), "writ"),
    "none": (None, TypeError, ""),
    "raises": (raise_it, ZeroDivisionError, "no buffer"),
}


@pytest.mark.parametrize("buffer", BAD_BUFFERS)
def test_bad_buffer_ends_the_connection_and_is_reported(loop, run, buffer):
    async def main():
        reports = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        protocol = Odd()
        protocol.buffer, kind, match = BAD_BUFFERS[buffer]
        async with attached(protocol) as (transport, peer):
            peer.send(b"data")
            exc = await protocol.lost
            assert isinstance(exc, kind) and match in str(exc)
            assert len(reports) == 1 and reports[0]["exception"] is exc
            assert reports[0]["transport"] is transport and reports[0]["protocol"] is protocol
            assert reports[0]["message"].startswith("Fatal")
            assert protocol.calls == ["made", "lost"]

    run(main())
