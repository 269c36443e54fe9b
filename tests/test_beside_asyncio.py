"""Native connections and asyncio's transports on one loop, each waiting for the other."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web
from peers import deaf_peer, exchange, peer_of, read_all, tls_contexts, until

import pyloop

BIG = bytes(range(256)) * 40_000  # 10 MB
CLIENTS = 15
POURED = 800  # times 64 KiB: more than the kernel keeps on four ends
tls_or_not = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@contextlib.asynccontextmanager
async def streams_server(talk, tls=False):
    """asyncio's server, whose connections end with `talk`; yields its port."""

    async def talk_and_close(reader, writer):
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    ours = tls_contexts()[0] if tls else None
    server = await asyncio.start_server(talk_and_close, "127.0.0.1", 0, ssl=ours)
    async with server:
        yield server.sockets[0].getsockname()[1]


def trust(tls):
    return tls_contexts()[1] if tls else None


@tls_or_not
def test_handler_awaits_a_streams_server_that_awaits_a_native_one(run, tls):
    """client (streams) -> native -> streams -> native, and all the way back, many at once."""

    def last(conn, line):
        conn.send(line + b" last")

    async def main():
        async def middle(reader, writer):
            async for line in reader:
                conn = await pyloop.connect(
                    "127.0.0.1", end.port, framing=pyloop.Lines(), ssl=trust(tls)
                )
                conn.send(line.strip() + b" middle")
                writer.write(await conn.receive() + b"\n")
                conn.close()

        async def first(conn):
            async for line in conn:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust(tls))
                writer.write(line + b" first\n")
                conn.send((await reader.readline()).strip())
                writer.close()
                await writer.wait_closed()

        async def ask(number):
            async with peer_of(front) as (reader, writer):
                for turn in range(3):
                    writer.write(b"%d.%d\n" % (number, turn))
                    answer = await reader.readline()
                    assert answer == b"%d.%d first middle last\n" % (number, turn)

        lines = {"framing": pyloop.Lines()}
        async with pyloop.Server(last, ssl=tls_contexts()[0] if tls else None, **lines) as end:
            async with streams_server(middle, tls) as port, pyloop.Server(first, **lines) as front:
                await asyncio.gather(*map(ask, range(CLIENTS)))

    run(main())


def test_half_close_goes_through_both_and_back(run):
    """Each passes on the end of its input, and still gets and gives what is to come."""

    async def after_end(reader, writer):
        writer.write(b"%d bytes" % len(await reader.read()))

    async def main():
        async def relay(conn):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async for piece in conn:
                writer.write(piece)
                await writer.drain()
            writer.write_eof()
            conn.send(await reader.read())
            writer.close()

        async with streams_server(after_end) as port, pyloop.Server(relay) as server:
            assert await exchange(server, BIG) == b"%d bytes" % len(BIG)

    run(main())


def test_deaf_client_of_a_native_server_holds_the_stream_behind_it_back(run):
    """The handler drains, so it does not read; so nobody reads from the streams server."""
    written = 0

    async def pour(reader, writer):
        nonlocal written
        for _ in range(POURED):
            writer.write(BIG[: 1 << 16])
            await writer.drain()
            written += 1

    async def main():
        async def relay(conn):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while piece := await reader.read(1 << 16):
                conn.send(piece)
                await conn.drain()
            writer.close()

        async with streams_server(pour) as port, pyloop.Server(relay) as server:
            with deaf_peer(server, 1 << 16) as sock:
                last = -1
                while last != written or not written:
                    last = written
                    for _ in range(100):
                        await asyncio.sleep(0)
                assert written < POURED * 2 // 3
                assert await read_all(sock) == BIG[: 1 << 16] * POURED

    run(main())


def test_abort_of_a_native_server_cancels_what_its_handlers_await_from_asyncio(run):
    ended = []

    async def silent(reader, writer):
        ended.append(await reader.read())

    async def main():
        waiting = asyncio.Event()

        async def relay(conn):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                waiting.set()
                await reader.read()
            finally:
                writer.close()

        async with streams_server(silent) as port, pyloop.Server(relay) as server:
            conn = await pyloop.connect("127.0.0.1", server.port)
            await waiting.wait()
            server.abort()
            await until(lambda: ended)
            conn.abort()
        assert ended == [b""]

    run(main())


def test_aiohttp_handler_and_native_handler_ask_each_other(run):
    async def main():
        async def over_http(conn, line):
            async with session.get(f"http://127.0.0.1:{port}/native/{line.decode()}") as answer:
                conn.send(await answer.read())

        async def over_native(request):
            conn = await pyloop.connect("127.0.0.1", echo.port, framing=pyloop.Lines())
            conn.send(request.match_info["word"].encode())
            word = await conn.receive()
            conn.close()
            return web.Response(body=b"via native: " + word)

        app = web.Application()
        app.router.add_get("/native/{word}", over_native)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        lines = {"framing": pyloop.Lines()}
        async with pyloop.Server(lambda conn, line: conn.send(line), **lines) as echo:
            async with (
                pyloop.Server(over_http, **lines) as server,
                aiohttp.ClientSession() as session,
            ):

                async def ask(number):
                    async with peer_of(server) as (reader, writer):
                        writer.write(b"word-%d\n" % number)
                        assert await reader.readline() == b"via native: word-%d\n" % number

                await asyncio.gather(*map(ask, range(CLIENTS)))
        await runner.cleanup()

    run(main())
