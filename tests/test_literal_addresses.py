"""Addresses in digits are resolved where they stand; only names are sent through a thread."""

from __future__ import annotations

import asyncio
import socket

import pytest

import pyloop


@pytest.fixture
def no_executor(loop, monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a thread was asked for {args}")

    monkeypatch.setattr(loop, "run_in_executor", refuse)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", b"127.0.0.1", None])
def test_literal_address_is_resolved_without_a_thread(loop, run, no_executor, host):
    async def main():
        infos = await loop.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
        assert infos == socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_literal_address_connects_and_serves_without_a_thread(loop, run, no_executor, host):
    async def main():
        server = await asyncio.start_server(lambda r, w: w.close(), host, 0)
        async with server, pyloop.Server(lambda conn, message: None, host=host) as native:
            for port in (server.sockets[0].getsockname()[1], native.port):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                await writer.wait_closed()
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=(host, 9)
            )
            transport.close()

    run(main())


def test_names_go_through_the_executor(loop, run, monkeypatch):
    asked = []
    ask = loop.run_in_executor
    monkeypatch.setattr(
        loop, "run_in_executor", lambda *args: (asked.append(args[2:4]), ask(*args))[1]
    )

    async def main():
        infos = await loop.getaddrinfo("localhost", 80, family=socket.AF_INET)
        assert infos[0][4] == ("127.0.0.1", 80)
        assert asked == [("localhost", 80)]
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("127.0.0.1", "no-such-service")
        assert len(asked) == 2

    run(main())
