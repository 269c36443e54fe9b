"""TLS: every framing through Server, connect and dial; ends, sizes, limits."""

from __future__ import annotations

import asyncio
import ssl
import threading

import pytest
from peers import Serving, peer_of, tls_contexts, until

import pyloop

FRAMINGS = [
    pyloop.Raw(),
    pyloop.Lines(),
    pyloop.Delimited(b"--"),
    pyloop.LengthPrefixed(),
    pyloop.LengthPrefixed("varint"),
    pyloop.FixedSize(5),
    pyloop.Netstring(),
]
HOST = "127.0.0.1"
BIG = bytes(range(256)) * 20_000  # 5 MB


@pytest.fixture
def contexts():
    return tls_contexts()


def echo(conn, message):
    conn.send(message)


def tls_server(handler, **options):
    return pyloop.Server(handler, ssl=tls_contexts()[0], **options)


def tls_peer(server):
    return peer_of(server, ssl=tls_contexts()[1])


async def tls_connect(server, **options):
    return await pyloop.connect(HOST, server.port, ssl=tls_contexts()[1], **options)


async def in_thread(call):
    return await asyncio.get_running_loop().run_in_executor(None, call)


# ---- every framing, every client ----


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_every_framing_through_connect(run, framing):
    async def main():
        async with tls_server(echo, framing=framing) as server:
            conn = await tls_connect(server, framing=framing)
            for message in (b"hello", b"again"):
                conn.send(message)
                assert await conn.receive() == message
            conn.close()
            await conn.wait_closed()

    run(main())


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_every_framing_through_dial(run, framing):
    async def main():
        async with tls_server(echo, framing=framing) as server:

            def talk():
                with pyloop.dial(
                    HOST, server.port, ssl=tls_contexts()[1], framing=framing, timeout=30
                ) as conn:
                    for message in (b"hello", b"again"):
                        conn.send(message)
                        assert conn.receive() == message

            await in_thread(talk)

    run(main())


def test_asyncio_client_is_served_in_order(run):
    lines = [b"%d" % number for number in range(5_000)]

    async def main():
        async with tls_server(echo, framing=pyloop.Lines()) as server:
            async with tls_peer(server) as (reader, writer):
                writer.write(b"\n".join(lines) + b"\n")
                for line in lines:
                    assert await reader.readuntil() == line + b"\n"

    run(main())


def test_every_kind_of_handler_serves_tls(run):
    class Echo(pyloop.Protocol):
        def connection_made(self, conn):
            self.conn = conn
            conn.send(b"hi")

        def message_received(self, message):
            self.conn.send(message)

    async def talk(conn):
        conn.send(b"hi")
        async for message in conn:
            conn.send(message)

    async def per_message(conn, message):
        conn.send(b"hi")
        conn.send(message)

    async def main():
        for handler in (Echo, talk, per_message):
            async with tls_server(handler, framing=pyloop.Lines()) as server:
                conn = await tls_connect(server, framing=pyloop.Lines())
                conn.send(b"there")
                assert (await conn.receive(), await conn.receive()) == (b"hi", b"there")
                conn.close()
                await conn.wait_closed()

    run(main())


def test_ssl_object_tells_of_the_session(run):
    async def main():
        async with Serving(ssl=tls_contexts()[0]) as serving:
            conn = await tls_connect(serving.server)
            served = await serving.conn()
            assert conn.ssl_object.version() == served.ssl_object.version() == "TLSv1.3"
            assert conn.ssl_object.getpeercert()["subjectAltName"]
            conn.close()
            await conn.wait_closed()

    run(main())


# ---- ends ----


def test_servers_close_sends_close_notify_after_all_output(run):
    async def main():
        async def handler(conn):
            conn.send(BIG)

        async with tls_server(handler) as server:

            def read():
                with pyloop.dial(HOST, server.port, ssl=tls_contexts()[1], timeout=30) as conn:
                    return b"".join(conn)  # a missing close_notify would be an SSLEOFError

            assert await in_thread(read) == BIG

    run(main())


def test_clients_close_notify_is_end_of_stream(run):
    async def main():
        ended = asyncio.get_running_loop().create_future()

        async def handler(conn):
            ended.set_result([message async for message in conn])

        async with tls_server(handler, framing=pyloop.Lines()) as server:
            conn = await tls_connect(server, framing=pyloop.Lines())
            conn.send(b"one")
            conn.write(b"last")
            conn.close()
            assert await ended == [b"one", b"last"]
            await conn.wait_closed()

    run(main())


@pytest.mark.parametrize("with_reset", [False, True])
def test_end_without_close_notify_is_told_and_harms_nobody(run, with_reset):
    async def main():
        async with Serving(ssl=tls_contexts()[0]) as serving:
            async with tls_peer(serving.server) as (_, other):
                await serving.conn()
                async with tls_peer(serving.server) as (_, writer):
                    conn = await serving.conn()
                    sock = writer.get_extra_info("socket")
                    if with_reset:
                        writer.transport.abort()
                    else:
                        sock.shutdown(1)
                    exc = await conn.state.lost
                    assert exc is None or isinstance(exc, ssl.SSLError | OSError)
                assert not other.is_closing() and len(serving.server.connections) == 1

    run(main())


def test_abort_resets_and_is_connection_aborted(run):
    async def main():
        async with Serving(ssl=tls_contexts()[0]) as serving:
            client = await tls_connect(serving.server)
            conn = await serving.conn()
            conn.abort()
            with pytest.raises(ConnectionResetError):
                await client.receive()
            assert type(await conn.state.lost) is ConnectionAbortedError
            await client.wait_closed()

    run(main())


# ---- sizes and slowness ----


def test_large_messages_both_ways(run):
    async def main():
        framing = pyloop.LengthPrefixed(max_size=len(BIG))
        async with tls_server(echo, framing=framing) as server:
            conn = await tls_connect(server, framing=framing)
            for _ in range(2):
                conn.send(BIG)
                assert await conn.receive() == BIG
            conn.close()
            await conn.wait_closed()

    run(main())


def test_message_over_write_limit_then_close_arrives_whole(run):
    """One message of any size may go, and close_notify behind it is no second one."""

    async def main():
        async def handler(conn):
            conn.send(BIG)

        async with tls_server(handler, write_limit=100_000) as server:
            conn = await tls_connect(server)
            received = 0
            async for chunk in conn:
                received += len(chunk)
            assert received == len(BIG)
            conn.close()
            await conn.wait_closed()

    run(main())


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


def test_pause_and_resume_lose_and_reorder_nothing(run):
    lines = [b"%d" % number for number in range(3_000)]

    async def main():
        got = []
        async with tls_server(lambda: Pausing(got), framing=pyloop.Lines()) as server:
            conn = await tls_connect(server, framing=pyloop.Lines())
            for number, line in enumerate(lines):
                conn.send(line)
                if not number % 100:
                    await asyncio.sleep(0)
            conn.close()
            await until(lambda: got and got[-1] == "eof")
            assert got == [*lines, "eof"]
            await conn.wait_closed()

    run(main())


def test_peer_that_does_not_read_is_aborted_at_write_limit(run):
    async def main():
        async with Serving(ssl=tls_contexts()[0], write_limit=1 << 20) as serving:
            client = await tls_connect(serving.server)
            client.pause_reading()
            conn = await serving.conn()
            most = 0
            while not conn.is_closing:
                conn.send(bytes(1 << 16))
                most = max(most, conn.buffered)
            assert (1 << 20) < most <= (1 << 20) + (1 << 18)
            assert type(await conn.state.lost) is pyloop.WriteLimitError
            assert serving.server.stats().write_limit_aborts == 1
            client.abort()
            await client.wait_closed()

    run(main())


def test_drain_waits_for_ciphertext_too(run):
    async def main():
        async with Serving(ssl=tls_contexts()[0]) as serving:
            client = await tls_connect(serving.server)
            client.pause_reading()
            conn = await serving.conn()
            conn.send(BIG)
            waiting = asyncio.create_task(conn.drain())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waiting.done()
            client.resume_reading()
            received = 0
            while received < len(BIG):
                received += len(await client.receive())
            await waiting
            client.close()
            await client.wait_closed()

    run(main())


def test_stop_delivers_complete_messages_and_ends_the_stream(run):
    async def main():
        def shout(conn, line):
            conn.send(line.upper())

        server = tls_server(shout, framing=pyloop.Lines())
        await server.start()

        def talk():
            context = tls_contexts()[1]
            with pyloop.dial(HOST, port, ssl=context, framing=pyloop.Lines(), timeout=30) as conn:
                conn.send(b"first")
                heard.append(conn.receive())
                conn.write(b"one\ntwo\n")
                written.set()
                heard.extend(conn)

        heard, written, port = [], threading.Event(), server.port
        talking = asyncio.ensure_future(in_thread(talk))
        await in_thread(written.wait)
        await server.stop()
        await talking
        assert heard == [b"FIRST", b"ONE", b"TWO"]

    run(main())


def test_messages_out_counts_messages(run):
    async def main():
        async with tls_server(echo, framing=pyloop.Lines()) as server:
            conn = await tls_connect(server, framing=pyloop.Lines())
            for _ in range(3):
                conn.send(b"x")
                await conn.receive()
            conn.close()
            await conn.wait_closed()
            await until(lambda: not server.connections)
            assert (server.stats().messages_in, server.stats().messages_out) == (3, 3)

    run(main())
