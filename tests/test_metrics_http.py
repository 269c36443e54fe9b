"""The metrics server's HTTP: whole answers, and peers that ask for something else."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from peers import until
from web import HOST, ask, port_of, serving, split, talk

from pyloop import metrics, responder


def test_every_answer_closes_and_is_complete(run):
    async def main():
        async with serving() as server:
            for target in ("/", "/metrics", "/stats.json", "/nothing"):
                status, fields, body = await ask(server, target)
                assert status == (404 if target == "/nothing" else 200)
                assert fields["connection"] == "close"
                assert fields["cache-control"] == "no-store"
                assert int(fields["content-length"]) == len(body) > 0
                assert "default-src 'none'" in fields["content-security-policy"]

    run(main())


def test_head_has_no_body_and_the_same_fields(run):
    async def main():
        async with serving() as server:
            for target in ("/", "/nothing"):
                full = await ask(server, target)
                status, fields, body = await ask(server, target, method="HEAD")
                assert (status, body) == (full[0], b"")
                assert fields["content-length"] == str(len(full[2]))

    run(main())


WRONG = {
    "other method": (b"POST / HTTP/1.1\r\n" + HOST, 405),
    "no such path": (b"GET /metrics/ HTTP/1.1\r\n" + HOST, 404),
    "path upward": (b"GET /../stats.json HTTP/1.1\r\n" + HOST, 404),
    "no path": (b"GET HTTP/1.1\r\n" + HOST, 400),
    "nothing": (b"\r\n\r\n", 400),
    "no HTTP": (b"hello\r\n", 400),
    "bytes": (b"\xff\x00\x01 / HTTP/1.1\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2, 400),
    "odd host": (b"GET / HTTP/1.1\r\nHost: a b\r\n", 421),
    "malformed host": (b"GET / HTTP/1.1\r\nHost: [::1\r\n", 400),
    "folded field": (b"GET / HTTP/1.1\r\n" + HOST + b" more\r\n", 400),
    "no field": (b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n", 400),
    "spaces before a NUL": (b"GET / HTTP/1.1\r\nX:" + b" " * 8000 + b"\0\r\n", 400),
    "body": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n", 413),
    "chunks": (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n", 413),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request_is_answered_and_closed(name):
    request, status = WRONG[name]
    written = []

    class Conn:
        write = written.append

        def close(self):
            written.append(None)

    respond = responder.responder({"/": lambda request: responder.Answer(b"never")})
    respond(Conn(), request.removesuffix(b"\r\n"))
    assert written.pop() is None
    (answer,) = written
    got, fields, body = split(answer)
    assert got == status
    assert body.startswith(b"%d " % status)
    assert ("allow" in fields) == (status == 405)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9090", "[::1]:9090", "10.0.0.7", "LocalHost", "my.name:1"]
)
def test_host_that_is_an_address_or_a_name_of_ours_is_served(host):
    check = responder._check_host
    check(responder.Request("GET", "/", {"host": host}), {"localhost", "my.name"})


def test_page_of_a_name_that_was_made_to_lead_here_reads_nothing(run):
    async def main():
        async with serving() as server:
            request = b"GET /stats.json HTTP/1.1\r\nHost: evil.example:9090\r\n\r\n"
            status, _, body = split(await talk(server, request))
            assert (status, body) == (421, b"421 Misdirected Request\n")

    run(main())


def test_request_in_single_bytes_is_answered(run):
    async def main():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            for byte in b"\r\nGET /stats.json HTTP/1.0\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert split(await reader.read())[0] == 200
            writer.close()

    run(main())


def test_pipelined_requests_get_one_answer(run):
    async def main():
        async with serving() as server:
            request = b"HEAD /stats.json HTTP/1.1\r\n" + HOST + b"\r\n"
            answer = await talk(server, request * 50)
            assert answer.count(b"HTTP/1.1 ") == 1

    run(main())


def test_half_close_after_the_request_gets_the_whole_answer(run):
    async def main():
        async with serving() as server:
            request = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
            status, fields, body = split(await talk(server, request, eof=True))
            assert status == 200 and len(body) == int(fields["content-length"])

    run(main())


def test_half_close_within_the_request_ends_it(run):
    async def main():
        async with serving() as server:
            assert await talk(server, b"GET / HTTP/1.1\r\n", eof=True) == b""

    run(main())


def test_head_without_end_is_cut_off(run):
    async def main():
        async with serving() as server:
            request = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000
            with contextlib.suppress(ConnectionResetError):
                assert await talk(server, request) == b""
            assert (await ask(server, "/stats.json"))[0] == 200

    run(main())


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_peer_that_never_asks_is_let_go(run, monkeypatch, sent):
    async def main():
        monkeypatch.setattr(metrics, "_TIMEOUT", 0.05)
        async with serving() as server:
            with contextlib.suppress(ConnectionResetError):
                assert await talk(server, sent) == b""

    run(main())


def test_peers_beyond_the_limit_wait_and_are_served(run, monkeypatch):
    async def main():
        monkeypatch.setattr(metrics, "_CONNECTIONS", 2)
        async with serving() as server:
            idle = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(2)]
            await until(lambda: len(server._server.connections) == 2)
            late = asyncio.ensure_future(ask(server, "/stats.json"))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not late.done() and server._server.stats().accepted == 2
            for sock in idle:
                sock.close()
            assert (await late)[0] == 200

    run(main())


def test_route_that_raises_harms_nobody_else(run, caplog):
    async def main():
        async with serving() as server:
            server._exposition = None
            with pytest.raises(ConnectionResetError):
                await ask(server, "/metrics")
            assert "AttributeError" in caplog.text
            assert (await ask(server, "/stats.json"))[0] == 200

    run(main())
