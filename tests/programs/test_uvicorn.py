"""Uvicorn with a Starlette application, in a process of its own and on the test's loop."""

from __future__ import annotations

import asyncio
import signal
import types

import aiohttp
import httpx
import pytest
import starlette_app
from bodies import LARGE, blocks, blocks_async, digest, digest_async, on_two_backends, standstill
from command import inodes, until
from peers import deaf_peer, read_all, reset
from uvicorns import Uvicorn, ask_many, certificate, serving
from websockets.asyncio.client import connect

HTTP = pytest.mark.parametrize("http", ["h11", "httptools"])
REQUESTS, CLIENTS = 600, 20
BOUND = LARGE // 2
HEADERS = b"Host: here\r\nConnection: close\r\n"


def served_by(backend):
    """What / says that it runs on."""
    return {"loop": "pyloop.loop.Loop", "backend": backend}


def place_of(url):
    return types.SimpleNamespace(port=httpx.URL(url).port)


def limited(**options):
    """A client that holds no more than CLIENTS connections, and keeps them."""
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    return httpx.AsyncClient(limits=limits, timeout=60, trust_env=False, **options)


# ---- a process of its own ----


def test_command_serves_hundreds_of_requests_and_ends_well(run, backend, tmp_path):
    async def load(url):
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        async with aiohttp.ClientSession(url, connector=connector) as client:

            async def ask():
                async with client.get("/") as response:
                    return await response.json()

            answers = await asyncio.gather(*(ask() for _ in range(REQUESTS)))
            peers = {tuple(answer.pop("peer")) for answer in answers}
            assert len(peers) <= CLIENTS  # they were kept alive
            assert answers == [served_by(backend)] * REQUESTS
            async with client.post("/upload", data=blocks_async(LARGE)) as response:
                wanted = {"sha": digest(blocks(LARGE)), "size": LARGE}
                assert await response.json() == wanted

    with Uvicorn(tmp_path, backend=backend) as app:
        url = f"http://127.0.0.1:{app.port}"
        held = inodes(app.pid)
        run(load(url), 60)
        until(lambda: inodes(app.pid) == held)
        app.signal(signal.SIGTERM)
        assert app.finish() in (0, -signal.SIGTERM)
        assert "Finished server process" in app.log()
        assert "Traceback" not in app.log()


@on_two_backends
def test_stop_waits_for_the_answer_that_has_begun(run, backend, tmp_path):
    async def ask(app):
        async with limited(base_url=f"http://127.0.0.1:{app.port}") as client:
            async with client.stream("GET", "/slow") as response:
                parts = response.aiter_bytes()
                assert await anext(parts) == b"begun, "
                app.signal(signal.SIGTERM)
                assert await anext(parts) == b"done"

    with Uvicorn(tmp_path, backend=backend) as app:
        run(ask(app))
        assert app.finish() in (0, -signal.SIGTERM)
        assert "Traceback" not in app.log()


# ---- on this loop ----


@on_two_backends
def test_requests_over_kept_connections(run, backend):
    async def main():
        async with serving(http="h11") as url, limited(base_url=url) as client:
            answers = await ask_many(client, 100, 2 * CLIENTS)
        peers = {tuple(answer.pop("peer")) for answer in answers}
        assert len(peers) <= CLIENTS
        assert answers == [served_by(backend)] * (100)

    run(main(), 60)


def test_pipelined_requests_are_answered_in_order(run):
    async def main():
        async with serving(http="httptools") as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
            sizes = [65536 * (number % 4 + 1) for number in range(100)]
            for size in sizes:
                writer.write(b"GET /blocks/%d HTTP/1.1\r\nHost: here\r\n\r\n" % size)
            for size in sizes:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"content-length: %d\r\n" % size in head
                assert await reader.readexactly(size) == b"".join(blocks(size))
            writer.close()
            await writer.wait_closed()

    run(main())


@HTTP
@on_two_backends
def test_reader_that_stops_holds_the_application_back(run, http):
    async def main():
        async with serving(http=http) as url:
            with deaf_peer(place_of(url), 1 << 16) as sock:
                sock.send(b"GET /blocks/%d HTTP/1.1\r\n%b\r\n" % (LARGE, HEADERS))
                assert await standstill(lambda: starlette_app.given) < BOUND
                _, _, body = (await read_all(sock)).partition(b"\r\n\r\n")
                assert digest([body]) == digest(blocks(LARGE))

    run(main(), 60)


@HTTP
@on_two_backends
def test_application_that_does_not_read_holds_the_client_back(run, http):
    sent = 0

    async def counted():
        nonlocal sent
        for block in blocks(LARGE):
            yield block
            sent += len(block)

    async def main():
        async with serving(http=http) as url, limited(base_url=url) as client:
            post = asyncio.create_task(client.post("/held", content=counted()))
            assert await standstill(lambda: sent) < BOUND
            starlette_app.GO_ON.set()
            assert (await post).json() == {"sha": digest(blocks(LARGE)), "size": LARGE}

    run(main(), 60)


def test_reset_in_a_download_leaves_the_others_alone(run):
    async def main():
        async with serving(http="httptools") as url, limited(base_url=url) as client:
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
                writer.write(b"GET /blocks/%d HTTP/1.1\r\nHost: here\r\n\r\n" % LARGE)
                await reader.readexactly(100_000)
                reset(writer)
            async with client.stream("GET", f"/blocks/{1 << 20}") as response:
                got = await digest_async(response.aiter_bytes())
            assert got == (digest(blocks(1 << 20)), 1 << 20)

    run(main())


@on_two_backends
def test_tls_and_websocket_on_one_port(run, tmp_path):
    options, context = certificate(tmp_path)

    async def main():
        async with serving(ws="websockets-sansio", **options) as url:
            async with limited(base_url=url, verify=context) as client:
                await ask_many(client, CLIENTS, CLIENTS)
                async with client.stream("GET", f"/blocks/{LARGE}") as response:
                    got = await digest_async(response.aiter_bytes())
                assert got == (digest(blocks(LARGE)), LARGE)
            there = url.replace("https", "wss") + "/echo"
            async with connect(there, ssl=context, proxy=None) as socket:
                for block in blocks(10 << 20, 1 << 19):
                    await socket.send(block)
                    assert await socket.recv() == block

    run(main(), 60)
