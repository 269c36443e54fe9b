"""Taking messages: receive(), the bounded inbox, pause_reading and resume_reading."""

from __future__ import annotations

import asyncio

import pytest
from peers import answer, exchange, peer_of, until

import pyloop

# (framing, messages, the bytes on the wire)
FRAMINGS = [
    pyloop.Raw(),
    pyloop.Lines(),
    pyloop.Delimited(b"--"),
    pyloop.LengthPrefixed(1),
    pyloop.LengthPrefixed(2, "little"),
    pyloop.LengthPrefixed(),
    pyloop.LengthPrefixed(8),
    pyloop.LengthPrefixed("varint"),
    pyloop.FixedSize(5),
    pyloop.Netstring(),
]


def wire(framing, messages):
    return b"".join(b"".join((*framing.wrap(m)[:1], m, *framing.wrap(m)[1:])) for m in messages)


def numbered(count):
    return [b"%05d" % number for number in range(count)]


# ---- receive ----


def test_two_receives_at_once_are_a_runtime_error(run):
    async def main():
        caught = asyncio.get_running_loop().create_future()

        async def handler(conn):
            first = asyncio.create_task(conn.receive())
            await asyncio.sleep(0)
            try:
                await conn.receive()
            except RuntimeError as exc:
                caught.set_result(str(exc))
            conn.send(b"go")
            conn.send(await first)

        async with pyloop.Server(handler) as server, peer_of(server) as (reader, writer):
            assert await reader.readexactly(2) == b"go"
            writer.write(b"message")
            assert await reader.readexactly(7) == b"message"
            assert "another receive() is already waiting" in await caught

    run(main())


def test_receive_of_a_handler_that_gets_messages_is_a_runtime_error(run):
    async def main():
        caught = asyncio.get_running_loop().create_future()

        def handler(conn, message):
            try:
                conn.receive().send(None)
            except RuntimeError as exc:
                caught.set_result(str(exc))

        async with pyloop.Server(handler) as server:
            await exchange(server, b"x")
            assert "messages of this connection go to its handler" in await caught

    run(main())


def test_cancelled_receive_loses_nothing(run):
    lines = numbered(200)

    async def main():
        got = []

        async def handler(conn):
            conn.send(b"ready")
            while True:
                waiting = asyncio.create_task(conn.receive())
                await asyncio.sleep(0)
                if len(got) % 2:  # cancel it when its message may just have come
                    waiting.cancel()
                    try:
                        message = await waiting
                    except asyncio.CancelledError:
                        message = await conn.receive()
                else:
                    message = await waiting
                if message is None:
                    break
                got.append(message)

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (reader, writer):
                await reader.readuntil(b"ready\n")
                for line in lines:
                    writer.write(line + b"\n")
                    await asyncio.sleep(0)
                writer.write_eof()
                assert await reader.read() == b""
        assert got == lines

    run(main())


def test_receive_with_a_timeout_gets_the_next_message_later(run):
    async def main():
        async def handler(conn):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await conn.receive()
            conn.send(b"late")
            conn.send(await conn.receive())

        async with pyloop.Server(handler) as server, peer_of(server) as (reader, writer):
            assert await reader.readexactly(4) == b"late"
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"

    run(main())


def test_framing_error_is_raised_by_receive_after_the_whole_messages(run):
    async def main():
        seen = asyncio.get_running_loop().create_future()

        async def handler(conn):
            got = []
            try:
                async for message in conn:
                    got.append(message)
            except pyloop.FramingError as exc:
                seen.set_result((got, str(exc)))

        async with pyloop.Server(handler, framing=pyloop.Lines(4)) as server:
            await exchange(server, b"one\ntwo\nfour5\n")
            assert await seen == ([b"one", b"two"], "message over max_size")

    run(main())


# ---- the inbox ----


@pytest.mark.parametrize("size", [1, 100, 5_000])
def test_inbox_holds_read_limit_bytes_or_one_message(run, size):
    limit, count = 4096, 2_000
    messages = [b"%0*d" % (size, n % 10) for n in range(count)]

    async def main():
        held = []
        gate = asyncio.Event()

        async def handler(conn):
            await gate.wait()
            got = []
            async for message in conn:
                got.append(message)
                held.append(conn._target.size)
            assert got == messages
            conn.send(b"all")

        framing = pyloop.LengthPrefixed()
        async with pyloop.Server(handler, framing=framing, read_limit=limit) as server:
            async with peer_of(server) as (reader, writer):
                writer.write(wire(framing, messages))
                writer.write_eof()
                await until(lambda: server.stats().messages_in)
                (conn,) = server.connections
                await until(lambda: conn._target.size)
                held.append(conn._target.size)
                gate.set()
                assert await reader.read() == wire(framing, [b"all"])
            assert max(held) <= limit + size
            assert server.stats().messages_in == count

    run(main())


# ---- pause_reading, resume_reading ----


class Pausing(pyloop.Protocol):
    """Pause at each message, resume in the loop's next turn."""

    def __init__(self, got):
        self.got = got

    def connection_made(self, conn):
        self.conn = conn
        self.paused = False

    def message_received(self, message):
        assert not self.paused
        self.got.append(message)
        self.paused = True
        self.conn.pause_reading()
        asyncio.get_running_loop().call_soon(self.resume)

    def resume(self):
        self.paused = False
        self.conn.resume_reading()

    def eof_received(self):
        assert not self.paused
        self.got.append("eof")


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_pause_at_each_message_loses_and_reorders_nothing(run, framing):
    messages = numbered(500)

    async def main():
        got = []
        async with pyloop.Server(lambda: Pausing(got), framing=framing) as server:
            await exchange(server, wire(framing, messages))
            await until(lambda: not server.connections)
            assert got.pop() == "eof"
            if framing == pyloop.Raw():
                assert b"".join(got) == b"".join(messages)
            else:
                assert got == messages
                assert server.stats().messages_in == len(messages)

    run(main())


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_pause_with_messages_cut_over_reads_loses_nothing(run, framing):
    """The wire arrives in pieces of 7 bytes, so that a held rest meets new bytes."""
    messages = numbered(120)
    data = wire(framing, messages)

    async def main():
        got = []
        async with pyloop.Server(lambda: Pausing(got), framing=framing) as server:
            async with peer_of(server) as (reader, writer):
                for start in range(0, len(data), 7):
                    writer.write(data[start : start + 7])
                    await asyncio.sleep(0)
                writer.write_eof()
                await reader.read()
            assert got.pop() == "eof"
            assert b"".join(got) == b"".join(messages)

    run(main())


def test_paused_connection_gets_nothing_until_it_resumes(run):
    async def main():
        got, conns = [], []

        def handler(conn, message):
            got.append(message)
            conns.append(conn)
            conn.pause_reading()

        async with pyloop.Server(handler, framing=pyloop.Lines(), drain_timeout=0) as server:
            async with peer_of(server) as (_, writer), peer_of(server) as other:
                writer.write(b"1\n2\n3\n")
                await until(lambda: got)
                for _ in range(20):
                    other[1].write(b"")
                    await asyncio.sleep(0)
                assert got == [b"1"]
                conns[0].resume_reading()
                await until(lambda: len(got) > 1)
                assert got == [b"1", b"2"]

    run(main())


def test_resume_at_once_in_the_same_callback_keeps_order(run):
    async def main():
        got = []

        def handler(conn, message):
            got.append(message)
            conn.pause_reading()
            conn.resume_reading()
            conn.resume_reading()

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            await exchange(server, b"1\n2\n3\nlast")
        assert got == [b"1", b"2", b"3", b"last"]

    run(main())


def test_pause_of_another_connection_holds_its_part_of_the_batch(run):
    async def main():
        conns, got = {}, []

        def handler(conn, message):
            name, word = message.split(b" ")
            conns[name] = conn
            if word == b"hello":
                conn.send(message)
                return
            other = conns[b"b" if name == b"a" else b"a"]
            if not got:
                other.pause_reading()
                asyncio.get_running_loop().call_soon(other.resume_reading)
            got.append(message)

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as a, peer_of(server) as b:
                assert await answer(a, b"a hello\n") == b"a hello\n"
                assert await answer(b, b"b hello\n") == b"b hello\n"
                for name, (_, writer) in ((b"a", a), (b"b", b)):
                    writer.write(b"".join(b"%s %d\n" % (name, n) for n in range(10)))
                await until(lambda: len(got) == 20)
        for name in (b"a", b"b"):
            in_order = [b"%s %d" % (name, number) for number in range(10)]
            assert [message for message in got if message.startswith(name)] == in_order
        assert [message[:1] for message in got[:10]] == [got[0][:1]] * 10

    run(main())


def test_paused_reading_pushes_back_on_the_peer(run):
    async def main():
        class Paused(pyloop.Protocol):
            def connection_made(self, conn):
                conn.pause_reading()

        async with pyloop.Server(Paused, drain_timeout=0) as server:
            async with peer_of(server) as (_, writer):
                writer.transport.set_write_buffer_limits(high=1)
                writer.write(bytes(64 << 20))
                await asyncio.sleep(0)
                await until(lambda: server.stats().accepted)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert writer.transport.get_write_buffer_size() > 0
                assert server.stats().bytes_in <= 256 * 1024
                writer.transport.abort()

    run(main())
