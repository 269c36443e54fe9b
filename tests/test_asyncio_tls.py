"""TLS over asyncio's transports: many connections, what they tell, flow control, ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest
from peers import until
from tls import (
    HOST,
    Echo,
    TLSPeer,
    alike,
    client_context,
    echo_server,
    in_thread,
    server_context,
    talk,
    told,
)

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


async def many(count, at_once=200):
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


def test_a_thousand_connections_come_and_go_and_none_is_lost(run, backend):
    run(many(1000 if backend == "auto" else 200))


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
            for _ in range(3):
                await talk(port)
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


# ---- flow control ----


class Sending(Echo):
    """Sends 5 MB in two pieces, and says when it is paused and resumed."""

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.write(BIG[:3_000_000])
        transport.write(BIG[3_000_000:])
        self.size = transport.get_write_buffer_size()

    def pause_writing(self):
        self.events.append("paused")

    def resume_writing(self):
        self.events.append("resumed")


class SlowPeer(TLSPeer):
    def __init__(self, port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((HOST, port))
        super().__init__(sock, client_context())
        self.handshake()

    def read_to_end(self):
        data = bytearray()
        with contextlib.suppress(ssl.SSLZeroReturnError):  # b"", had it not sent its own before
            while piece := self.call(self.tls.read, 1 << 16):
                data += piece
        self.call(self.tls.unwrap)
        self.stay_silent()
        return bytes(data)


def test_writer_is_paused_over_high_water_and_resumed(run):
    async def main():
        async with echo_server(server_context(), Sending) as (port, made):
            peer = await in_thread(SlowPeer, port)
            await until(lambda: made[0].events)
            assert made[0].events == ["made", "paused"]
            assert made[0].size > 0
            reading = in_thread(peer.receive, len(BIG))
            assert await reading == BIG
            await until(lambda: len(made[0].events) > 2)
            assert made[0].events == ["made", "paused", "resumed"]
            assert made[0].transport.get_write_buffer_size() == 0
            made[0].transport.close()
            assert await in_thread(peer.read_to_end) == b""

    run(main())


class SendingAndClosing(Sending):
    def connection_made(self, transport):
        super().connection_made(transport)
        transport.close()


def test_close_behind_megabytes_sends_them_and_close_notify(run):
    async def main():
        async with echo_server(server_context(), SendingAndClosing) as (port, made):
            peer = await in_thread(SlowPeer, port)
            assert await in_thread(peer.read_to_end) == BIG  # SSLEOFError without close_notify
            await made[0].lost
            assert made[0].events[-1] == "lost None"

    run(main())


def test_peers_close_notify_before_megabytes_are_out_loses_none(run):
    """TLS has ended then, and the transport is closing, while the most is still to be sent."""

    async def main():
        async with echo_server(server_context(), Sending) as (port, made):
            peer = await in_thread(SlowPeer, port)
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
            peer.sock.sendall(peer.outgoing.read())
            await until(lambda: "eof" in made[0].events)
            assert await in_thread(peer.read_to_end) == BIG
            await made[0].lost
            assert made[0].events == ["made", "paused", "eof", "resumed", "lost None"]

    run(main())


def test_reader_that_pauses_gets_all_once_resumed(run):
    async def main():
        async with echo_server(server_context(), Echo) as (port, made):
            reader, writer = await asyncio.open_connection(HOST, port, ssl=client_context())
            await until(lambda: made and made[0].events)
            made[0].transport.pause_reading()
            assert not made[0].transport.is_reading()
            writer.write(BIG)
            writer.write(b"end")
            await until(lambda: made[0].transport.get_read_buffer_size() >= 256 * 1024)
            assert made[0].received == b""
            made[0].transport.resume_reading()
            assert await reader.readexactly(len(BIG) + 3) == BIG + b"end"
            writer.close()
            await writer.wait_closed()

    run(main())


# ---- ends ----


def test_half_close_is_not_supported(run):
    async def main():
        async with echo_server(server_context()) as (port, _):
            _, writer = await asyncio.open_connection(HOST, port, ssl=client_context())
            assert not writer.can_write_eof()
            with pytest.raises(NotImplementedError):
                writer.write_eof()
            writer.close()
            await writer.wait_closed()

    run(main())


def test_abort_sends_no_close_notify_and_is_no_error(run):
    async def main():
        async with echo_server(server_context()) as (port, made):
            peer = await in_thread(SlowPeer, port)
            await until(lambda: made[0].events)
            made[0].transport.write(b"lost")
            made[0].transport.abort()
            with pytest.raises((EOFError, ConnectionResetError)):
                await in_thread(peer.read_to_end)
            peer.sock.close()
            await made[0].lost
            assert made[0].events == ["made", "lost None"]

    run(main())


async def shut_down_unanswered():
    async with echo_server(server_context(), ssl_shutdown_timeout=0.05) as (port, made):
        peer = await in_thread(SlowPeer, port)
        await until(lambda: made[0].events)
        made[0].transport.close()
        await made[0].lost
        await in_thread(peer.stay_silent)
        return made[0].events, str(made[0].lost.result())


def test_close_without_an_answer_ends_at_ssl_shutdown_timeout(run):
    events, text = alike(run, shut_down_unanswered)
    assert (events, text) == (["made", "lost TimeoutError"], "SSL shutdown timed out")


def raising(method):
    """A protocol class with a method that raises."""

    def failing(self, *args):
        getattr(Echo, method)(self, *args)
        raise ZeroDivisionError(method)

    return type("Raising", (Echo,), {method: failing})


async def raise_in(method):
    with told() as entries:
        async with echo_server(server_context(), raising(method)) as (port, made):
            peer = await in_thread(SlowPeer, port)
            peer.sock.sendall(peer.seal(b"ping"))
            await in_thread(peer.finish)
            await made[0].lost
    return made[0].events, entries


METHODS = ["connection_made", "data_received", "eof_received", "connection_lost"]


@pytest.mark.parametrize("method", METHODS)
def test_exception_of_a_protocol_is_told_as_asyncio_tells_it(run, method):
    _, entries = alike(run, raise_in, method)
    assert [exc for message, exc in entries] == ["ZeroDivisionError"]


# ---- arguments ----


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket")  # the stdlib's to close
@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_time_outs_are_checked(run, name):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server((HOST, 0)) as listening:
            address = listening.getsockname()
            with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
                await loop.create_connection(Echo, *address, ssl=client_context(), **{name: 0})
            with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
                await loop.create_connection(Echo, *address, **{name: 1})
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


def test_sendfile_goes_through_tls(run, tmp_path):
    path = tmp_path / "big"
    path.write_bytes(BIG)

    async def main():
        loop = asyncio.get_running_loop()
        async with echo_server(server_context(), Echo) as (port, made):
            peer = await in_thread(SlowPeer, port)
            await until(lambda: made[0].events)
            reading = in_thread(peer.receive, len(BIG) - 1)
            with path.open("rb") as file:
                with pytest.raises(RuntimeError, match="fallback is disabled"):
                    await loop.sendfile(made[0].transport, file, fallback=False)
                sent = await loop.sendfile(made[0].transport, file, offset=1)
            assert (sent, await reading) == (len(BIG) - 1, BIG[1:])
            made[0].transport.close()
            assert await in_thread(peer.read_to_end) == b""

    run(main())
