"""TLS when what it calls ends it, raises or does half of it: as with asyncio, and as the twin."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl

import pytest
from peers import until
from tls import (
    HOST,
    Echo,
    SlowPeer,
    alike,
    client_context,
    echo_server,
    in_thread,
    server_context,
    told,
)

import pyloop
from pyloop.tls_protocol import TLSProtocol

# ---- a protocol that does something while it is told of data ----


def close(echo):
    echo.transport.write(b"last")
    echo.transport.close()
    echo.transport.write(b"lost")


def abort(echo):
    echo.transport.abort()
    echo.transport.write(b"lost")


def fail(echo):
    raise ZeroDivisionError


def cancel(echo):
    raise asyncio.CancelledError


def leave(echo):
    raise SystemExit("leaving")


def pause(echo):
    loop = asyncio.get_running_loop()
    echo.transport.pause_reading()
    loop.call_soon(echo.events.append, "resumed")
    loop.call_soon(echo.transport.resume_reading)
    loop.call_later(0.01, echo.transport.close)


def hand_over(echo):
    other = Other()
    vars(other).update(vars(echo))
    echo.transport.set_protocol(other)
    echo.transport.write(b"last")
    asyncio.get_running_loop().call_soon(echo.transport.close)


def turn(echo):
    loop = asyncio.get_running_loop()
    echo.transport.write(b"before")
    loop.call_soon(echo.transport.write, b"within")
    loop.call_soon(echo.transport.close)
    loop._run_once()
    echo.events.append(echo.transport.is_closing())


def mark(echo):
    echo.transport.set_write_buffer_limits(0)  # asyncio says "paused" and "resumed" by turns then
    echo.transport.write(b"a")
    echo.transport.write(b"b")
    asyncio.get_running_loop().call_soon(echo.transport.abort)


class Other(Echo):
    def __init__(self):
        pass

    def connection_lost(self, exc):
        self.events.append("other")
        super().connection_lost(exc)


class Acting(Echo):
    """Calls `act` with the data that it is told of."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def data_received(self, data):
        self.events.append(data)
        self.act(self)

    def pause_writing(self):
        self.events.append("paused")

    def resume_writing(self):
        self.events.append("resumed")


def collect(peer):
    """Return what comes, until the other end has ended in whatever way."""
    data = b""
    with contextlib.suppress(OSError, EOFError):
        while piece := peer.call(peer.tls.read, 1 << 16):
            data += piece
        peer.call(peer.tls.unwrap)
    peer.sock.close()
    return data


async def act_on(act, *records, context=None):
    factory = functools.partial(Acting, act)
    with told() as entries:
        async with echo_server(context or server_context(), factory) as (port, made):
            peer = await in_thread(SlowPeer, port)
            await until(lambda: made[0].events)
            peer.sock.sendall(b"".join(map(peer.seal, records)))
            back = await in_thread(collect, peer)
            await made[0].lost
    return made[0].events, entries, back


@pytest.mark.parametrize("act", [close, abort, fail, cancel, pause, hand_over, turn])
def test_protocol_that_acts_while_told_of_data_sees_what_asyncio_shows_it(run, act):
    events, _, _ = alike(run, act_on, act, b"one", b"two")
    assert events[:2] == ["made", b"onetwo"] and events[-1].startswith("lost")


def test_high_water_of_0_leaves_nobody_paused(run):
    events, _, _ = run(act_on(mark, b"data"))
    assert events == ["made", b"data", "paused", "resumed", "paused", "resumed", "lost None"]


def test_system_exit_of_a_protocol_leaves_the_loop(loop):
    async def main():
        async with echo_server(server_context(), functools.partial(Acting, leave)) as (port, made):
            peer = await in_thread(SlowPeer, port)
            try:
                peer.sock.sendall(peer.seal(b"data"))
                await asyncio.sleep(30)
            finally:
                made[0].transport.abort()
                await in_thread(collect, peer)

    task = loop.create_task(main())
    with pytest.raises(SystemExit, match=r"^leaving$"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


# ---- an SSLObject that fails ----

ERRORS = (ssl.SSLError(1, "spoilt"), ZeroDivisionError("spoilt"), MemoryError("spoilt"))
SPOILT = b"spoil"


def spoiling(method, error):
    """A server's context whose SSLObject raises where it would read or write b"spoil"."""

    class Spoiling(ssl.SSLObject):
        def read(self, *args):
            data = super().read(*args)
            if method == "read" and data == SPOILT:
                raise error
            return data

        def write(self, data):
            if method == "write" and bytes(data) == SPOILT:
                raise error
            return super().write(data)

    context = server_context.__wrapped__()
    context.sslobject_class = Spoiling
    return context


def reply(echo):
    echo.transport.write(echo.events[-1])


async def spoil(method, number):
    context = spoiling(method, ERRORS[number])
    events, entries, back = await act_on(reply, SPOILT, context=context)
    return events, sorted(set(entries)), back  # asyncio tries to write it again, and says so


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_an_ssl_object_raises_ends_the_transport_as_it_does_asyncios(run, method, number):
    events, _, back = alike(run, spoil, method, number)
    assert events[-1].startswith("lost") and back == b""


class Piecemeal(ssl.SSLObject):
    """Makes records of three bytes, and waits for input before the second, as in renegotiation."""

    waited = False

    def write(self, data):
        if not self.waited and len(data) > 3 and self.started:
            self.waited = True
            raise ssl.SSLWantReadError
        self.started = True
        return super().write(bytes(data)[:3])

    started = False


def piecemeal():
    context = server_context.__wrapped__()
    context.sslobject_class = Piecemeal
    return context


async def echo_in_pieces():
    async with echo_server(piecemeal()) as (port, made):
        peer = await in_thread(SlowPeer, port)
        await until(lambda: made)
        peer.sock.sendall(peer.seal(b"0123456789"))
        first = await in_thread(peer.receive_once)
        await until(lambda: made[0].received)
        peer.sock.sendall(peer.seal(b"abcdef"))
        rest = await in_thread(peer.receive, 13)
        await in_thread(peer.finish)
        return first + rest


def test_records_that_hold_less_than_was_written_and_wait_for_input_lose_nothing(run):
    assert alike(run, echo_in_pieces) == b"0123456789abcdef"


def test_start_tls_makes_one_of_ours(run):
    async def main():
        made = []
        server = await asyncio.start_server(
            lambda reader, writer: made.append((reader, writer)), HOST, 0
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection(HOST, port)
            await until(lambda: made)
            ours, theirs = made[0][1], writer
            await asyncio.gather(
                ours.start_tls(server_context()),
                theirs.start_tls(client_context(), server_hostname=HOST),
            )
            for end in (ours, theirs):
                assert type(end.transport._ssl_protocol) is TLSProtocol
            theirs.write(b"upgraded")
            assert await made[0][0].readexactly(8) == b"upgraded"
            for end in (theirs, ours):
                end.close()

    run(main())


# ---- native connections ----


async def native(handler, *messages, context=None):
    """Send lines to a server, and return what comes back until it ends."""
    server = pyloop.Server(handler, framing=pyloop.Lines(), ssl=context or server_context())
    async with server:
        peer = await in_thread(SlowPeer, server.port)
        for message in messages:
            with contextlib.suppress(OSError):
                await in_thread(peer.sock.sendall, peer.seal(message))
        return await in_thread(collect, peer)


@pytest.mark.parametrize("how", ["close", "abort", "raise"])
def test_handler_that_ends_its_connection_gets_no_further_message(run, how):
    got = []

    def handler(conn, message):
        got.append(message)
        conn.send(b"answer")
        if how == "raise":
            raise ZeroDivisionError
        getattr(conn, how)()
        conn.send(b"dropped")

    back = run(native(handler, b"one\ntwo\n"))
    assert got == [b"one"] and back == (b"answer\n" if how == "close" else b"")


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_an_ssl_object_raises_ends_a_native_connection(run, caplog, method, number):
    caplog.set_level(logging.INFO)
    context = spoiling(method, ERRORS[number])
    message = SPOILT if method == "read" else b"line\n"
    assert run(native(lambda conn, message: conn.write(SPOILT), message, context=context)) == b""
    faults = [record for record in caplog.records if record.name == "pyloop"]
    if number == 0:
        assert [record.args[-1] for record in faults] == [ERRORS[0]]
    else:
        assert [record.exc_info[1] for record in faults] == [ERRORS[number]]
    caplog.clear()


def test_native_records_that_hold_less_than_was_sent_and_wait_for_input_lose_nothing(run):
    def handler(conn, message):
        conn.send(message)
        if message == b"end":
            conn.close()

    async def main():
        server = pyloop.Server(handler, framing=pyloop.Lines(), ssl=piecemeal())
        async with server:
            peer = await in_thread(SlowPeer, server.port)
            peer.sock.sendall(peer.seal(b"0123456789\n"))
            back = await in_thread(peer.receive_once)
            peer.sock.sendall(peer.seal(b"abc\nend\n"))
            return back + await in_thread(collect, peer)

    assert run(main()) == b"0123456789\nabc\nend\n"


def test_framing_that_refuses_a_message_says_so_and_sends_nothing(run):
    said = []

    def handler(conn, message):
        for wrong in (b"two\nlines", "text", 5):
            try:
                conn.send(wrong)
            except (ValueError, TypeError) as exc:
                said.append(str(exc))
        conn.send(bytearray(b"end"))
        conn.close()

    assert run(native(handler, b"line\n")) == b"end\n"
    assert said == [
        "message of 9 bytes contains \\n: Lines(max_size=65536) would not give it back",
        "expected bytes-like, got str: 'text' (encode it first)",
        "expected bytes-like, got int",
    ]
