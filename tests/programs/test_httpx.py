"""httpx.AsyncClient: pools, Unix sockets, time-outs, cancellation, servers that break off."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from bodies import LARGE, blocks, blocks_async, digest, digest_async, on_two_backends
from peers import reset
from uvicorns import ask_many, certificate, serving


def client(url="http://here", **options):
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, **options)


@contextlib.asynccontextmanager
async def answering(answer):
    """A server that reads each request's head and leaves the rest to `answer(reader, writer)`."""

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("way", ["tls", "unix"])
@on_two_backends
def test_large_bodies_both_ways_at_once(run, tmp_path, way):
    settings, context, transport = {"uds": str(tmp_path / "s")}, True, None
    if way == "tls":
        settings, context = certificate(tmp_path)
    else:
        transport = httpx.AsyncHTTPTransport(uds=settings["uds"])
    wanted = digest(blocks(LARGE))

    async def main():
        async with serving(**settings) as url:
            there = url if way == "tls" else "http://here"
            async with client(there, verify=context, transport=transport) as http:
                post = asyncio.create_task(http.post("/upload", content=blocks_async(LARGE)))
                async with http.stream("GET", f"/blocks/{LARGE}") as response:
                    assert await digest_async(response.aiter_bytes()) == (wanted, LARGE)
                assert (await post).json() == {"sha": wanted, "size": LARGE}

    run(main(), 60)


def test_cancelled_download_leaves_the_pool_usable(run):
    async def main():
        one = httpx.Limits(max_connections=1)
        async with serving() as url, client(url, limits=one) as http:
            for _ in range(10):
                begun = asyncio.Event()

                async def download(begun=begun):
                    async with http.stream("GET", f"/blocks/{LARGE}") as response:
                        async for _ in response.aiter_bytes():
                            begun.set()

                task = asyncio.create_task(download())
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert len(await ask_many(http, 10, 10)) == 10

    run(main())


def test_silent_server_is_a_read_timeout(run):
    async def silent(reader, writer):
        await reader.read()

    async def main():
        async with answering(silent) as url, client(url) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.get("/", timeout=httpx.Timeout(60, read=0.05))

    run(main())


def test_refused_connection_is_a_connect_error(run):
    async def main():
        async with answering(None) as url:
            pass
        async with client(url) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("/")

    run(main())


def test_body_up_to_the_end_of_the_stream_arrives_whole(run):
    """The server closes its half only, and waits for the client's."""
    ended = []

    async def until_end(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for block in blocks(5 << 20):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
        ended.append(await reader.read())

    async def main():
        async with answering(until_end) as url, client(url) as http:
            response = await http.get("/")
            assert digest([response.content]) == digest(blocks(5 << 20))
            while not ended:
                await asyncio.sleep(0)
        assert ended == [b""]

    run(main())


@pytest.mark.parametrize(
    ("end", "error"),
    [(asyncio.StreamWriter.close, httpx.RemoteProtocolError), (reset, httpx.ReadError)],
    ids=["closed", "reset"],
)
def test_server_that_breaks_off_is_an_error(run, end, error):
    go_on = asyncio.Event()

    async def broken(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
        await go_on.wait()
        end(writer)

    async def main():
        async with answering(broken) as url, client(url) as http:
            async with http.stream("GET", "/") as response:
                parts = response.aiter_raw()
                assert await anext(parts) == b"only this"
                go_on.set()
                with pytest.raises(error):
                    await anext(parts)

    run(main())
