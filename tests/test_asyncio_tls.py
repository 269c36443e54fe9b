"""TLS over asyncio's transports: many connections, what they tell, flow control, ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import AUTO_TOO
from peers import until
from tls import (
    HOST,
    Echo,
    alike,
    client_context,
    echo_server,
    server_context,
    told,
)

import pyloop

BIG = bytes(range(256)) * 20_000  # 5 MB
ORDERLY = ["made", "data", "eof", "lost None"]


# ---- many ----


def has_ended_in_order(ssl_object):
    """Have both ends sent close_notify? Only then has OpenSSL nothing left to do."""
    try:
        ssl_object.unwrap()
    except ssl.SSLError:
        return False
    return True


class Kept(Echo):
    def connection_made(self, transport):
        super().connection_made(transport)
        self.ssl_object = transport.get_extra_info("ssl_object")


async def come_and_go(port, number):
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(
        Asking, HOST, port, ssl=client_context(), server_hostname=HOST
    )
    transport.write(b"number %d" % number)
    await protocol.lost
    return bytes(protocol.received), has_ended_in_order(protocol.ssl_object)


class Asking(Kept):
    def data_received(self, data):
        self.received += data
        self.transport.close()


async def many(count, at_once):
    """Echo on so many connections: none is lost, and each ends in order."""
    async with echo_server(server_context(), Kept, backlog=at_once) as (port, made):
        for first in range(0, count, at_once):
            numbers = range(first, first + at_once)
            answers = await asyncio.gather(*(come_and_go(port, number) for number in numbers))
            assert answers == [(b"number %d" % number, True) for number in numbers]
        for protocol in made:
            await protocol.lost
        assert [protocol.events for protocol in made] == [ORDERLY] * count
        assert all(has_ended_in_order(protocol.ssl_object) for protocol in made)


@AUTO_TOO
def test_connections_by_the_hundred_come_and_go_and_none_is_lost(run, backend):
    run(many(400, 200) if backend == "auto" else many(100, 100))


# ---- what they tell, and what they hold ----


async def extra_infos():
    """What get_extra_info tells on each side, as far as it is the same each time."""
    server = server_context(verify_mode=ssl.CERT_REQUIRED)
    client = client_context(name="client.example")
    async with echo_server(server) as (port, made):
        _, writer = await asyncio.open_connection(HOST, port, ssl=client)
        await until(lambda: made and made[0].events)
        for transport, context in ((writer.transport, client), (made[0].transport, server)):
            info = transport.get_extra_info
            assert info("sslcontext") is context
            assert info("ssl_object").context is context
            assert info("cipher") == info("ssl_object").cipher()
            sock = info("socket")
            assert (sock.getsockname(), sock.getpeername()) == (info("sockname"), info("peername"))
            names = [value for kind, value in info("peercert")["subjectAltName"]]
            yield names, info("compression"), info("nonsense", "default")
        writer.close()
        await writer.wait_closed()


async def all_infos():
    return [infos async for infos in extra_infos()]


def test_extra_info_tells_of_session_and_socket(run):
    infos = alike(run, all_infos)
    assert infos == [([HOST], None, "default"), (["client.example"], None, "default")]


def test_connections_share_one_receive_buffer(run):
    async def main():
        async with echo_server(server_context()) as (port, made):
            _, writer = await asyncio.open_connection(HOST, port)
            await writer.start_tls(client_context(), server_hostname=HOST)
            await until(lambda: made[-1].events)
            transports = [writer.transport, made[-1].transport]
            rooms = [transport._ssl_protocol._ssl_buffer for transport in transports]
            assert rooms[0] is rooms[1]
            assert len(rooms[0]) == 256 * 1024
            writer.close()
            await writer.wait_closed()

    run(main())


def test_unix_sockets_carry_tls(run, tmp_path):
    async def main():
        loop, path = asyncio.get_running_loop(), str(tmp_path / "socket")
        made = []
        server = await loop.create_unix_server(
            lambda: made.append(Kept()) or made[-1], path, ssl=server_context()
        )
        async with server:
            transport, asking = await loop.create_unix_connection(
                Asking, path, ssl=client_context(), server_hostname=HOST
            )
            transport.write(b"ping")
            await asking.lost
            await made[0].lost
        assert (asking.received, made[0].events) == (b"ping", ORDERLY)
        assert has_ended_in_order(asking.ssl_object)

    run(main())


def test_loops_in_two_threads_do_not_mix_what_they_receive(backend):
    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def ask(address, data):
        reader, writer = await asyncio.open_connection(*address, ssl=client_context())
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()

    async def main(data):
        async with await asyncio.start_server(echo, HOST, 0, ssl=server_context()) as server:
            address = server.sockets[0].getsockname()
            await asyncio.gather(*(ask(address, data) for _ in range(4)))

    def work(data):
        with asyncio.Runner(loop_factory=lambda: pyloop.Loop(backend)) as runner:
            runner.run(main(data))

    server_context(), client_context()  # made once, by one thread
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [BIG[:1_000_000], BIG[100:1_000_100]]))


# ---- arguments ----


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_time_outs_are_checked(run, name):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server((HOST, 0)) as listening:
            with socket.create_connection(listening.getsockname()) as sock:
                sock.setblocking(False)
                tls = {"ssl": client_context(), "server_hostname": HOST}
                with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
                    await loop.create_connection(Echo, sock=sock, **tls, **{name: 0})
                with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
                    await loop.create_connection(Echo, sock=sock, **{name: 1})
            with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
                await loop.create_server(Echo, HOST, 0, **{name: 1})

    run(main())


def test_server_with_a_bad_time_out_refuses_each_connection_and_says_why(run):
    async def main():
        with told() as entries:
            async with echo_server(server_context(), ssl_handshake_timeout=-1) as (port, made):
                with pytest.raises(ConnectionResetError):
                    await asyncio.open_connection(HOST, port, ssl=client_context())
        assert [protocol.events for protocol in made] == [[]]
        assert entries == [("Error on transport creation for incoming connection", "ValueError")]

    run(main())
