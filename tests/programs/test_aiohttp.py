"""aiohttp, server and client on one loop: large bodies, WebSockets, clients that stop or vanish."""

from __future__ import annotations

import asyncio
import contextlib
import types

import aiohttp
import pytest
from aiohttp import web
from bodies import LARGE, blocks, blocks_async, digest, digest_async, on_two_backends, standstill
from peers import deaf_peer, read_all, reset, tls_contexts

BOUND = LARGE // 2
"""More than a kernel's two buffers and the program's own, less than a body."""


@contextlib.asynccontextmanager
async def serving(*routes, tls=False):
    """Serve the routes on a free port; yields the URL."""
    app = web.Application(client_max_size=2 * LARGE)
    app.add_routes(routes)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        context = tls_contexts()[0] if tls else None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def client(url="", **options):
    """A session; connections of TLS are closed before it is, so that no fd outlives the test."""
    return aiohttp.ClientSession(
        url or None, connector=aiohttp.TCPConnector(ssl=tls_contexts()[1], **options)
    )


def place_of(url):
    """What `deaf_peer` connects to."""
    return types.SimpleNamespace(port=int(url.rpartition(":")[2]))


async def upload(request):
    sha, size = await digest_async(request.content.iter_any())
    return web.json_response({"sha": sha, "size": size})


async def download(request):
    response = web.StreamResponse()
    response.content_length = LARGE
    await response.prepare(request)
    async for block in blocks_async(LARGE):
        await response.write(block)
    return response


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_large_upload_and_download_arrive_whole(run, tls):
    wanted = digest(blocks(LARGE))

    async def main():
        routes = web.post("/", upload), web.get("/", download)
        async with serving(*routes, tls=tls) as url, client() as session:
            async with session.post(url, data=blocks_async(LARGE)) as response:
                assert await response.json() == {"sha": wanted, "size": LARGE}
            async with session.get(url) as response:
                assert await digest_async(response.content.iter_any()) == (wanted, LARGE)

    run(main(), 100)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_websocket_echoes_small_and_large_messages(run, tls):
    async def echo(request):
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "leave":
                await socket.close(code=4001, message=b"as told")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        return socket

    async def main():
        big = b"".join(blocks(8 << 20))
        async with serving(web.get("/", echo), tls=tls) as url, client() as session:
            async with session.ws_connect(url, max_msg_size=0, autoping=False) as socket:
                for number in range(500):
                    await socket.send_str(f"message {number}")
                await socket.ping(b"there?")
                for number in range(500):
                    assert await socket.receive_str() == f"message {number}"
                assert (await socket.receive()).data == b"there?"
                await socket.send_bytes(big)
                assert await socket.receive_bytes() == big
                await socket.send_str("leave")
                end = await socket.receive()
                assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as told")

    run(main(), 60)


def test_reader_that_stops_holds_the_writer_back(run):
    written = 0

    async def endless(request):
        nonlocal written
        response = web.StreamResponse()
        response.content_length = LARGE
        await response.prepare(request)
        for block in blocks(LARGE):
            await response.write(block)
            written += len(block)
        return response

    async def main():
        async with serving(web.get("/", endless)) as url:
            with deaf_peer(place_of(url), 1 << 16) as sock:
                sock.send(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                assert await standstill(lambda: written) < BOUND
                head, _, body = (await read_all(sock)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert digest([body]) == digest(blocks(LARGE))

    run(main(), 60)


def test_server_that_stops_reading_holds_the_client_back(run):
    sent, go_on = 0, asyncio.Event()

    async def slow(request):
        await go_on.wait()
        return await upload(request)

    async def counted():
        nonlocal sent
        for block in blocks(LARGE):
            yield block
            sent += len(block)

    async def main():
        async with serving(web.post("/", slow)) as url, client() as session:
            post = asyncio.create_task(session.post(url, data=counted()))
            assert await standstill(lambda: sent) < BOUND
            go_on.set()
            async with await post as response:
                assert await response.json() == {"sha": digest(blocks(LARGE)), "size": LARGE}

    run(main(), 60)


def test_reset_in_a_download_ends_the_handler_and_nobody_else(run):
    ended = []

    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
        except (OSError, asyncio.CancelledError) as exc:
            ended.append(exc)
            raise

    async def main():
        routes = web.get("/", endless), web.post("/", upload)
        async with serving(*routes) as url, client() as session:
            reader, writer = await asyncio.open_connection("127.0.0.1", place_of(url).port)
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await reader.readexactly(1 << 20)
            reset(writer)
            while not ended:
                await asyncio.sleep(0)
            async with session.post(url, data=b"still there") as response:
                assert (await response.json())["size"] == len(b"still there")

    run(main())


def test_cancelled_upload_ends_the_handler_and_frees_the_session(run):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def reading(request):
        try:
            async for _ in request.content.iter_any():
                begun.set()
        finally:
            ended.set()
        return web.Response()

    async def never_done():
        yield bytes(1 << 20)
        await asyncio.Event().wait()

    async def main():
        routes = web.put("/", reading), web.post("/", upload)
        async with serving(*routes) as url, client(limit=1) as session:
            put = asyncio.create_task(session.put(url, data=never_done()))
            await begun.wait()
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            await ended.wait()
            async with session.post(url, data=b"next") as response:
                assert (await response.json())["size"] == len(b"next")

    run(main())


async def pump(reader, writer):
    """Half of a proxy: the end of one stream is the end of the other."""
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def proxy(reader, writer):
    """Answer one CONNECT, then copy both ways until both sides have ended."""
    request = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = request.partition(b" ")
    assert method == b"CONNECT"
    host, port = rest.split()[0].decode().split(":")
    far_reader, far_writer = await asyncio.open_connection(host, port)
    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
    with contextlib.suppress(OSError):
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    for end in far_writer, writer:
        end.close()


@on_two_backends
def test_download_goes_by_start_tls_through_a_proxy(run):
    async def main():
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        there = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, serving(web.get("/", download), tls=True) as url:
            async with client() as session, session.get(url, proxy=there) as response:
                got = await digest_async(response.content.iter_any())
            assert got == (digest(blocks(LARGE)), LARGE)

    run(main(), 60)
