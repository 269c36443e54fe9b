"""Handlers: their kinds, the order of calls, and conversations."""

from __future__ import annotations

import asyncio
import functools

import pytest
from peers import answer, exchange, peer_of, reset, until

import pyloop
from pyloop.handlers import HandlerKind, classify


class Recorder(pyloop.Protocol):
    """Write every call into `calls`, which a subclass has."""

    calls: list

    def connection_made(self, conn):
        self.conn = conn
        self.calls.append("made")

    def message_received(self, message):
        self.calls.append(message)

    def eof_received(self):
        self.calls.append("eof")

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))


def recorder(base=Recorder, **members):
    return type("Recorder", (base,), {"calls": [], **members})


# ---- kinds ----


class Methods:
    def message(self, conn, message): ...
    async def async_message(self, conn, message): ...
    async def talk(self, conn): ...
    def make(self):
        return Recorder()

    @classmethod
    def class_message(cls, conn, message): ...
    @staticmethod
    def static_message(conn, message): ...


class Callable:
    def __call__(self, conn, message): ...


class AsyncCallable:
    async def __call__(self, conn): ...


class Maker:
    def __call__(self):
        return Recorder()


def message3(prefix, conn, message): ...
def message_and_option(conn, message, extra=None): ...
def keyword_only(conn, message, *, extra=None): ...
def anything(*args): ...
async def talk2(prefix, conn): ...
def make1(name):
    return Recorder()


KINDS = [
    (Recorder, HandlerKind.PROTOCOL),
    (lambda: Recorder(), HandlerKind.PROTOCOL),
    (functools.partial(make1, "x"), HandlerKind.PROTOCOL),
    (functools.partial(Recorder), HandlerKind.PROTOCOL),
    (Methods().make, HandlerKind.PROTOCOL),
    (Maker(), HandlerKind.PROTOCOL),
    (lambda conn, message: None, HandlerKind.MESSAGE),
    (functools.partial(message3, "x"), HandlerKind.MESSAGE),
    (message_and_option, HandlerKind.MESSAGE),
    (keyword_only, HandlerKind.MESSAGE),
    (anything, HandlerKind.MESSAGE),
    (Methods().message, HandlerKind.MESSAGE),
    (Methods.class_message, HandlerKind.MESSAGE),
    (Methods.static_message, HandlerKind.MESSAGE),
    (Callable(), HandlerKind.MESSAGE),
    (pyloop.Connection.send, HandlerKind.MESSAGE),
    (Methods().async_message, HandlerKind.ASYNC_MESSAGE),
    (functools.partial(Methods.async_message, None), HandlerKind.ASYNC_MESSAGE),
    (Methods().talk, HandlerKind.CONVERSATION),
    (functools.partial(talk2, "x"), HandlerKind.CONVERSATION),
    (functools.partial(functools.partial(talk2), "x"), HandlerKind.CONVERSATION),
    (AsyncCallable(), HandlerKind.CONVERSATION),
]


@pytest.mark.parametrize(("handler", "kind"), KINDS)
def test_handler_is_told_apart(handler, kind):
    assert classify(handler) is kind
    pyloop.Server(handler)


async def no_arguments(): ...
async def three(a, b, c): ...
async def generator(conn):
    yield


WRONG = [
    (None, "is not callable"),
    ("echo", "is not callable"),
    (Recorder(), "pass the class"),
    (lambda conn: None, "would block the loop"),
    (lambda a, b, c: None, r"takes \(a, b, c\)"),
    (no_arguments, r"takes \(\)"),
    (three, r"takes \(a, b, c\)"),
    (Methods, "no pyloop.Protocol"),
    (asyncio.Protocol, "no pyloop.Protocol"),
    (no_arguments, "takes"),
    (generator, "handler"),
]


@pytest.mark.parametrize(("handler", "why"), WRONG)
def test_wrong_handler_is_a_type_error_that_lists_the_kinds(handler, why):
    with pytest.raises(TypeError, match=why) as info:
        pyloop.Server(handler)
    for kind in (
        "Protocol subclass",
        "callable without arguments",
        "def (conn, message)",
        "async def (conn, message)",
        "async def (conn)",
    ):
        assert kind in str(info.value)


def test_factory_that_makes_no_protocol_fails_its_connection_only(run, caplog):
    async def main():
        made = []

        def make():
            made.append(0)
            return object() if len(made) == 1 else Recorder()

        Recorder.calls = []
        async with pyloop.Server(make) as server:
            with pytest.raises(ConnectionResetError):
                async with peer_of(server) as (reader, _):
                    await reader.read()
            assert await exchange(server, b"x") == b""
        assert "expected a pyloop.Protocol" in caplog.text

    run(main())


# ---- order of calls ----


def test_protocol_calls_come_in_order_and_lost_once(run):
    kind = recorder()

    async def main():
        async with pyloop.Server(kind, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"one\ntwo\nthree") == b""
            await until(lambda: not server.connections)
        assert kind.calls == ["made", b"one", b"two", b"three", "eof", ("lost", None)]

    run(main())


def test_one_protocol_per_connection(run):
    made = []

    def make():
        made.append(recorder()())
        return made[-1]

    async def main():
        async with pyloop.Server(make, framing=pyloop.Lines()) as server:
            await exchange(server, b"a\n")
            await exchange(server, b"b\n")
        assert [protocol.calls[1] for protocol in made] == [b"a", b"b"]

    run(main())


def test_eof_received_true_keeps_the_write_side_open(run):
    class HalfOpen(recorder()):
        def eof_received(self):
            super().eof_received()
            asyncio.get_running_loop().call_soon(self.finish)
            return True

        def finish(self):
            self.conn.send(b"after eof")
            self.calls.append("finish")
            self.conn.close()

    async def main():
        async with pyloop.Server(HalfOpen) as server:
            assert await exchange(server, b"x") == b"after eof"
            await until(lambda: not server.connections)
        assert HalfOpen.calls == ["made", b"x", "eof", "finish", ("lost", None)]

    run(main())


def test_messages_keep_wire_order_across_many_turns(run):
    kind = recorder()
    lines = [b"%d" % number for number in range(20_000)]

    async def main():
        async with pyloop.Server(kind, framing=pyloop.Lines()) as server:
            await exchange(server, b"\n".join(lines) + b"\n")
            await until(lambda: not server.connections)
        assert kind.calls == ["made", *lines, "eof", ("lost", None)]

    run(main())


def test_peer_reset_is_told_as_connection_reset(run):
    kind = recorder()

    async def main():
        async with pyloop.Server(kind, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (_, writer):
                writer.write(b"whole\npart of a mes")
                await until(lambda: b"whole" in kind.calls)
                reset(writer)
            await until(lambda: not server.connections)
        assert kind.calls[:2] == ["made", b"whole"]
        ((word, exc),) = kind.calls[2:]
        assert word == "lost" and isinstance(exc, ConnectionResetError)

    run(main())


@pytest.mark.parametrize(
    ("framing", "data", "text"),
    [
        (pyloop.Lines(8), b"123456789\n", "message over max_size"),
        (pyloop.LengthPrefixed(max_size=8), b"\0\0\0\x09", "message over max_size"),
        (pyloop.Netstring(), b"x:", "malformed message length"),
        (pyloop.FixedSize(4), b"123", "incomplete message"),
        (pyloop.LengthPrefixed(), b"\0\0\0\x05abc", "incomplete message"),
        (pyloop.Delimited(b";"), b"abc", "incomplete message"),
    ],
)
def test_framing_error_is_exc_and_harms_nobody_else(run, framing, data, text):
    kind = recorder()

    async def main():
        async with pyloop.Server(kind, framing=framing) as server, peer_of(server):
            await exchange(server, data)
            await until(lambda: kind.calls[-1] != "made")
            ((word, exc),) = [call for call in kind.calls if call != "made"]
            assert word == "lost"
            assert type(exc) is pyloop.FramingError and str(exc) == text
            assert len(server.connections) == 1
            assert server.stats().framing_errors == 1

    run(main())


# ---- conversations ----


def test_conversation_iterates_and_ends_at_end_of_stream(run):
    async def shout(conn):
        async for line in conn:
            conn.send(line.upper())
            await conn.drain()
        conn.send(b"bye")

    async def main():
        async with pyloop.Server(shout, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"a\nb\nlast") == b"A\nB\nLAST\nbye\n"

    run(main())


def test_receive_is_none_at_end_of_stream_each_time(run):
    async def main():
        got = []

        async def handler(conn):
            for _ in range(3):
                got.append(await conn.receive())

        async with pyloop.Server(handler) as server:
            await exchange(server, b"x")
        assert got == [b"x", None, None]

    run(main())


def test_conversation_that_returns_closes_after_flushing(run):
    big = bytes(8_000_000)

    async def handler(conn):
        conn.send(big)

    async def main():
        async with pyloop.Server(handler) as server:
            async with peer_of(server) as (reader, _):
                assert await reader.read() == big

    run(main())


def test_conversation_that_raises_is_logged_with_address_and_aborted(run, caplog):
    async def handler(conn):
        await conn.receive()
        raise LookupError("no such thing")

    async def main():
        async with pyloop.Server(handler) as server, peer_of(server) as (reader, writer):
            address = "{}:{}".format(*writer.get_extra_info("sockname"))
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        (record,) = [entry for entry in caplog.records if entry.name == "pyloop"]
        assert address in record.getMessage() and record.levelname == "ERROR"
        assert isinstance(record.exc_info[1], LookupError)

    run(main())


def test_conversation_that_lets_a_reset_through_is_not_logged(run, caplog):
    async def main():
        async def handler(conn):
            conn.send(b"ready")
            await conn.receive()

        async with pyloop.Server(handler) as server:
            async with peer_of(server) as (reader, writer):
                await reader.readexactly(5)
                reset(writer)
            await until(lambda: not server.connections)
        assert caplog.records == []

    run(main())


def test_async_per_message_takes_one_at_a_time_in_order(run):
    async def main():
        running, seen = 0, []

        async def handler(conn, message):
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append(message)
            conn.send(message)
            running -= 1

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"1\n2\n3\n4\n") == b"1\n2\n3\n4\n"
        assert seen == [b"1", b"2", b"3", b"4"]

    run(main())


def test_async_per_message_of_two_connections_run_side_by_side(run):
    async def main():
        gate = asyncio.Event()

        async def handler(conn, message):
            if message == b"wait":
                await gate.wait()
            conn.send(message)

        async with pyloop.Server(handler) as server:
            async with peer_of(server) as slow, peer_of(server) as quick:
                slow[1].write(b"wait")
                assert await answer(quick, b"go") == b"go"
                gate.set()
                assert await slow[0].readexactly(4) == b"wait"

    run(main())
