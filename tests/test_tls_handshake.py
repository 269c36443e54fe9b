"""The TLS handshake: what fails in it fails for one connection, in time, and says why."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl

import pytest
from peers import answer, exchange, peer_of, reset, tls_contexts, until

import pyloop

HOST = "127.0.0.1"


def echo(conn, message):
    conn.send(message)


def tls_server(handler=echo, **options):
    return pyloop.Server(handler, ssl=tls_contexts()[0], **options)


async def serves(server):
    async with peer_of(server, ssl=tls_contexts()[1]) as peer:
        return await answer(peer, b"ping") == b"ping"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b"", bytes(100_000)])
def test_plain_text_peer_is_closed_and_hurts_nobody(run, caplog, data):
    async def main():
        async with tls_server() as server:
            try:
                await exchange(server, data)
            except ConnectionError:
                pass
            await until(lambda: not server.connections)
            assert await serves(server)
        assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []

    run(main())


def test_handler_never_sees_a_connection_whose_handshake_failed(run):
    async def main():
        seen = []

        class Seeing(pyloop.Protocol):
            def connection_made(self, conn):
                seen.append("made")

            def connection_lost(self, exc):
                seen.append("lost")

        async with tls_server(Seeing) as server:
            async with peer_of(server) as (reader, writer):
                writer.write(b"plain text, no TLS\n")
                await reader.read()
            await until(lambda: not server.connections)
        assert seen == []

    run(main())


def test_peer_that_resets_in_the_handshake_hurts_nobody(run):
    async def main():
        async with tls_server() as server:
            async with peer_of(server) as (_, writer):
                writer.write(b"\x16\x03\x01\x02\x00\x01")
                await until(lambda: server.stats().open)
                reset(writer)
            await until(lambda: not server.stats().open)
            assert await serves(server)

    run(main())


def test_silent_peer_is_dropped_at_handshake_timeout(run):
    async def main():
        async with tls_server(handshake_timeout=0.05) as server:
            async with peer_of(server) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            await until(lambda: not server.stats().open)
            assert await serves(server)

    run(main())


def test_handshake_timeout_does_not_outlive_the_handshake(run):
    async def main():
        async with tls_server(handshake_timeout=0.2) as server:
            async with peer_of(server, ssl=tls_contexts()[1]) as peer:
                await answer(peer, b"ping")
                async with peer_of(server) as (late, _):  # its time-out comes later than ours
                    with pytest.raises(ConnectionResetError):
                        await late.read()
                assert await answer(peer, b"still here") == b"still here"

    run(main())


def test_handshake_in_single_bytes_succeeds(run):
    async def main():
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = tls_contexts()[1].wrap_bio(incoming, outgoing, server_hostname=HOST)
        async with tls_server() as server:
            with socket.create_connection((HOST, server.port)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        for byte in outgoing.read():
                            await loop.sock_sendall(sock, bytes([byte]))
                        incoming.write(await loop.sock_recv(sock, 1 << 16))
                tls.write(b"ping")
                await loop.sock_sendall(sock, outgoing.read())
                plain = b""
                while plain != b"ping":
                    incoming.write(await loop.sock_recv(sock, 1 << 16))
                    try:
                        plain += tls.read()
                    except ssl.SSLWantReadError:
                        pass

    run(main())


def test_first_message_in_the_segment_of_the_handshakes_end_arrives(run):
    async def main():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = tls_contexts()[1].wrap_bio(incoming, outgoing, server_hostname=HOST)
        server = tls_server(framing=pyloop.Lines())
        async with server, peer_of(server) as (reader, writer):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(1 << 16))
            tls.write(b"early\n")
            writer.write(outgoing.read())  # Finished and the message, together
            plain = b""
            while plain != b"early\n":
                incoming.write(await reader.read(1 << 16))
                try:
                    plain += tls.read()
                except ssl.SSLWantReadError:
                    pass

    run(main())


# ---- before it is done ----


class Greeter(pyloop.Protocol):
    def connection_made(self, conn):
        conn.send(b"hello")


def test_peer_in_its_handshake_is_no_connection_and_gets_no_broadcast(run):
    async def main():
        async with tls_server(Greeter, framing=pyloop.Lines()) as server:
            async with peer_of(server) as (reader, writer):
                await until(lambda: server.stats().accepted)
                await asyncio.sleep(0)
                assert list(server.connections) == []
                for _ in range(100):
                    server.broadcast(b"secret" * 10_000)
                async with peer_of(server, ssl=tls_contexts()[1]) as (other, _):
                    assert await other.readline() == b"hello\n"
                    assert len(server.connections) == 1
                    server.broadcast(b"news")
                    assert await other.readline() == b"news\n"
                await writer.start_tls(tls_contexts()[1], server_hostname=HOST)
                assert await reader.readline() == b"hello\n"
                server.broadcast(b"more")
                assert await reader.readline() == b"more\n"

    run(main())


@pytest.mark.parametrize("framing", [pyloop.Lines(), pyloop.LengthPrefixed()], ids=repr)
def test_no_broadcast_comes_before_connection_made(run, framing):
    async def main():
        async with tls_server(Greeter, framing=framing) as server:
            connecting = asyncio.create_task(
                pyloop.connect(HOST, server.port, ssl=tls_contexts()[1], framing=framing)
            )
            while not connecting.done():
                server.broadcast(b"early")
                await asyncio.sleep(0)
            conn = await connecting
            assert await conn.receive() == b"hello"
            conn.abort()
            await conn.wait_closed()

    run(main())


def half_open(loop):
    """The one connection in its handshake: no public name leads to it."""
    connections = map(loop._core.dispatch.at, range(64))  # the peer's transport is there too
    [conn] = [conn for conn in connections if isinstance(conn, pyloop.Connection)]
    return conn


def test_send_after_close_is_dropped_and_counted(run, loop):
    async def main():
        async with tls_server(framing=pyloop.Lines()) as server:
            async with peer_of(server) as (reader, writer):
                await until(lambda: server.stats().accepted)
                await asyncio.sleep(0)
                conn = half_open(loop)
                conn.send(b"before")
                conn.close()
                queued, dropped = conn.buffered, server.stats().dropped
                conn.send(b"after")
                conn.write(b"after")
                assert server.stats().dropped == dropped + 2
                assert conn.buffered == queued
                await writer.start_tls(tls_contexts()[1], server_hostname=HOST)
                assert await reader.read() == b"before\n"

    run(main())


# ---- clients ----


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [(".bad", ValueError, "idna|server_hostname"), ("localhost", ssl.SSLError, "SSL")],
)
def test_connect_whose_handshake_fails_leaves_no_future_behind(
    run, loop, tmp_path, name, error, text
):
    async def main():
        complaints = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        path = tmp_path / "socket"
        async with pyloop.Server(echo, path=path) as server:
            with pytest.raises(error, match=text):
                await pyloop.connect(path=path, ssl=tls_contexts()[1], server_hostname=name)
            await until(lambda: server.stats().accepted and not server.connections)
            gc.collect()
            await asyncio.sleep(0)
        assert complaints == []

    run(main())


def test_untrusted_certificate_is_refused_by_connect_and_dial(run):
    async def main():
        context = ssl.create_default_context()
        async with tls_server() as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await pyloop.connect(HOST, server.port, ssl=context)
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(pyloop.dial, HOST, server.port, ssl=context, timeout=30)
            assert await serves(server)

    run(main())


def test_hostname_is_checked_and_server_hostname_overrides_it(run):
    async def main():
        context = tls_contexts()[1]
        async with tls_server() as server:
            for name, good in (("localhost", True), ("elsewhere.example", False)):
                connecting = pyloop.connect(HOST, server.port, ssl=context, server_hostname=name)
                if good:
                    conn = await connecting
                    conn.close()
                    await conn.wait_closed()
                else:
                    with pytest.raises(ssl.SSLCertVerificationError, match=name):
                        await connecting

    run(main())


def test_connect_to_a_silent_server_times_out(run):
    async def main():
        with socket.create_server((HOST, 0)) as silent:
            with pytest.raises(TimeoutError, match=r"TLS handshake took more than 0\.05 seconds"):
                await pyloop.connect(
                    *silent.getsockname(), ssl=tls_contexts()[1], handshake_timeout=0.05
                )
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(
                    pyloop.dial, *silent.getsockname(), ssl=tls_contexts()[1], timeout=0.05
                )

    run(main())


def test_connect_to_a_plain_server_is_an_ssl_error(run):
    async def main():
        def greet(conn, message):
            conn.send(b"500 what is this?\r\n")

        async with pyloop.Server(greet) as server:
            with pytest.raises(ssl.SSLError):
                await pyloop.connect(HOST, server.port, ssl=tls_contexts()[1])
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(
                    pyloop.dial, HOST, server.port, ssl=tls_contexts()[1], timeout=30
                )

    run(main())


def test_server_that_hangs_up_in_the_handshake_is_an_error(run):
    async def main():
        async def hang_up(conn):
            await conn.receive()

        async with pyloop.Server(hang_up) as server:
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await pyloop.connect(HOST, server.port, ssl=tls_contexts()[1])

    run(main())


def test_cancelled_handshake_leaves_nothing_open(run):
    async def main():
        with socket.create_server((HOST, 0)) as silent:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(
                    pyloop.connect(*silent.getsockname(), ssl=tls_contexts()[1]), 0.05
                )
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    run(main())


def test_stop_ends_a_handshake_that_hangs(run):
    async def main():
        server = tls_server(drain_timeout=60)
        await server.start()
        async with peer_of(server) as (reader, _):
            await until(lambda: server.stats().open)
            await server.stop()
            with pytest.raises(ConnectionResetError):
                await reader.read()

    run(main())
