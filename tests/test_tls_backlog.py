"""TLS: what was sent is encrypted later, and still nothing is lost, doubled or overtaken."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

import pytest
from peers import Serving, peer_of, tls_contexts, until
from test_fastpath_tls import ERRORS, SPOILT, collect, native, spoiling
from tls import HOST, SlowPeer, in_thread, server_context

import pyloop
from pyloop.tls import TLSConnection

RECORD_BYTES = 16 * 1024
HIGH_WATER = 64 * 1024

# ---- order ----


class Chopping(ssl.SSLObject):
    """Has no more room in a record, as when a peer asks for short ones."""

    def write(self, data):
        return super().write(bytes(data)[:9_999])


class Insisting(pyloop.Protocol):
    """Sends until it is paused, and then does something else first."""

    def __init__(self, act):
        self.act, self.sent, self.paused = act, [], False

    def connection_made(self, conn):
        self.conn = conn
        self.go_on()

    def send(self, size):
        self.sent.append(b"%5d" % len(self.sent) * (size // 5))
        self.conn.send(self.sent[-1])

    def go_on(self):
        if not self.paused:
            self.send(10_000)
            asyncio.get_running_loop().call_soon(self.go_on)

    def pause_writing(self):
        self.paused = True
        self.act(self)


def close(protocol):
    protocol.conn.close()


def send_more(protocol):
    protocol.send(20_000)
    asyncio.get_running_loop().call_soon(protocol.conn.close)


@pytest.mark.parametrize("act", [close, send_more])
def test_what_pause_writing_does_comes_behind_what_was_sent(run, act):
    context = server_context.__wrapped__()
    context.sslobject_class = Chopping
    made = []

    def factory():
        made.append(Insisting(act))
        return made[-1]

    async def main():
        async with pyloop.Server(factory, ssl=context) as server:
            peer = await in_thread(SlowPeer, server.port)
            await until(lambda: made and made[0].paused)
            back = await in_thread(collect, peer)
            sent = b"".join(made[0].sent)
            assert len(back) == len(sent) and back == sent

    run(main())


# ---- limits ----

IDLE = 0.4
"""An idle_timeout: long beside a turn of a busy loop, short for a test."""


def test_answer_that_was_long_in_the_making_is_output_that_leaves(run):
    async def handler(conn):
        async for message in conn:
            time.sleep(1.5 * IDLE)  # it keeps the loop busy
            conn.send(message)

    async def main():
        server = pyloop.Server(
            handler, framing=pyloop.Lines(), ssl=tls_contexts()[0], idle_timeout=IDLE
        )
        async with server, peer_of(server, ssl=tls_contexts()[1]) as (reader, writer):
            writer.write(b"line\n")
            assert await reader.readline() == b"line\n"

    run(main())


# ---- ends ----


def test_send_then_loop_stop_sends(loop):
    serving = Serving(ssl=tls_contexts()[0])
    loop.run_until_complete(serving.__aenter__())
    port, context = serving.server.port, tls_contexts()[1]
    dialling = loop.run_in_executor(None, lambda: pyloop.dial(HOST, port, ssl=context, timeout=10))
    with loop.run_until_complete(dialling) as peer:
        conn = loop.run_until_complete(serving.conn())

        def last_words():
            conn.send(b"sent")
            loop.stop()

        loop.call_soon(last_words)
        loop.run_forever()
        assert peer.receive() == b"sent"  # the loop does not run
    loop.run_until_complete(serving.__aexit__())


def test_what_close_cannot_encrypt_aborts(run):
    closing = []

    def handler(conn, message):
        conn.write(SPOILT)
        try:
            conn.close()
        except ZeroDivisionError:
            closing.append("raised")
        closing.append(conn.is_closing)

    context = spoiling("write", ERRORS[1])
    assert run(native(handler, b"line\n", context=context), 10) == b""
    assert closing == [True]


def test_what_cannot_be_encrypted_leaves_no_hole(run):
    class Failing(ssl.SSLObject):
        def write(self, data):
            if len(data) > RECORD_BYTES:
                raise ZeroDivisionError
            return super().write(data)

    def handler(conn, message):
        conn.send(b"before")
        with contextlib.suppress(ZeroDivisionError):
            conn.write(bytes(RECORD_BYTES))
        conn.send(b"after")
        conn.close()

    context = server_context.__wrapped__()
    context.sslobject_class = Failing
    assert run(native(handler, b"line\n", context=context)) == b""


class Leaving(Insisting):
    """Closes when that is what brings output over high water."""

    def go_on(self):
        self.send(10_000)
        if self.conn.buffered > HIGH_WATER - 100:
            self.conn.close()
        else:
            asyncio.get_running_loop().call_soon(self.go_on)


def test_who_has_closed_is_not_told_to_pause(run):
    made = []

    def factory():
        made.append(Leaving(lambda protocol: None))
        return made[-1]

    async def main():
        async with pyloop.Server(factory, ssl=server_context()) as server:
            peer = await in_thread(SlowPeer, server.port)
            await until(lambda: made and made[0].conn.is_closing)
            assert not made[0].paused
            assert await in_thread(collect, peer) == b"".join(made[0].sent)

    run(main())


def test_nothing_is_derived_whose_plaintext_would_go_out():
    with pytest.raises(TypeError, match=r"^nothing can be derived from TLSConnection$"):
        type("Derived", (TLSConnection,), {})
