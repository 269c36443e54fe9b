"""TLS that begins, goes on or begins anew later: start_tls, TLS in TLS, sessions, new keys."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess

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
)

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BIG = bytes(range(256)) * 10_000  # 2.5 MB


# ---- start_tls ----


async def upgrade(reader, writer):
    """Serve one stream: plain, then TLS, then, if the client wants it, TLS in that."""
    while await reader.readline() == b"STARTTLS\n":
        writer.write(b"go\n")
        await writer.start_tls(server_context())
    writer.write(await reader.readexactly(len(BIG)))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def layers(count):
    """Ask for TLS so many times, each within the one before, and send 2.5 MB through them all."""
    async with await asyncio.start_server(upgrade, HOST, 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(count):
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_context(), server_hostname=HOST)
        writer.write(b"ENOUGH\n" + BIG)
        back = await reader.read()
        infos = writer.get_extra_info("cipher") is not None, writer.get_extra_info("peername")[0]
        writer.close()
        await writer.wait_closed()
    return back == BIG, infos


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stream_goes_on_in_tls_and_in_tls_within_that(run, count):
    assert alike(run, layers, count) == (True, (count > 0, HOST))


class Upgrading(asyncio.BufferedProtocol):
    """Takes one line of plain text, not a byte more, then TLS."""

    def __init__(self):
        self.buffer = bytearray(len(b"STARTTLS\n"))
        self.events = []

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        assert self.buffer == b"STARTTLS\n"
        self.transport.pause_reading()
        self.upgrading = asyncio.create_task(start(self.transport))


async def start(transport):
    echo = Echo()
    tls = await asyncio.get_running_loop().start_tls(
        transport, echo, server_context(), server_side=True
    )
    echo.connection_made(tls)
    tls.write(b"go")
    return await echo.lost


def shake_hands(sock, before=b""):
    """Send plain text and ClientHello in one segment, then talk."""
    peer = TLSPeer(sock, client_context())
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    sock.sendall(before + peer.outgoing.read())
    return peer


def talk_and_end(peer):
    peer.handshake()
    assert peer.receive(2) == b"go"  # before that, nobody is there to answer
    peer.sock.sendall(peer.seal(b"ping"))
    assert peer.receive(4) == b"ping"
    peer.call(peer.tls.unwrap)
    peer.finish()


async def one_segment():
    async with echo_server(None, Upgrading) as (port, made):
        peer = shake_hands(socket.create_connection((HOST, port)), b"STARTTLS\n")
        await in_thread(talk_and_end, peer)
        return await made[0].upgrading


def test_client_hello_in_the_segment_of_starttls_is_taken(run):
    assert alike(run, one_segment) is None


def test_client_hello_that_was_held_back_goes_to_the_new_protocol(run):
    """It was received in the same batch as what made its transport pause."""

    class First(asyncio.Protocol):
        events = ()

        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            for other in made:
                if other is not self:
                    other.transport.pause_reading()
                    upgrading.append(asyncio.create_task(start(other.transport)))
                else:
                    gone.append(self)

    made, gone, upgrading = [], [], []

    async def main():
        async with echo_server(None, First) as (port, protocols):
            socks = [socket.create_connection((HOST, port)) for _ in range(2)]
            await until(lambda: len(protocols) == 2)
            made.extend(protocols)
            peers = {sock.getsockname(): shake_hands(sock) for sock in socks}  # in one turn
            await until(lambda: upgrading)
            taken = peers.pop(gone[0].transport.get_extra_info("peername"))
            (held,) = peers.values()
            await in_thread(talk_and_end, held)
            assert await upgrading[0] is None
            await in_thread(taken.finish)
        assert len(gone) == len(upgrading) == 1

    run(main())


def test_start_tls_that_fails_closes_the_connection(run):
    async def main():
        async with echo_server(server_context()) as (port, made):
            _, writer = await asyncio.open_connection(HOST, port)
            with pytest.raises(ssl.SSLCertVerificationError):
                await writer.start_tls(client_context(trusting=False), server_hostname=HOST)
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        assert made[0].events == []

    run(main())


# ---- sessions, keys, certificates ----


def resume(port, version):
    """Connect twice, the second time with the session of the first."""
    session = None
    for again in (False, True):
        sock = client_context(maximum_version=version).wrap_socket(
            socket.create_connection((HOST, port)), server_hostname=HOST, session=session
        )
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"  # TLS 1.3 sends its tickets before
        assert sock.session_reused is again
        session = sock.session
        sock.unwrap().close()


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])
def test_session_is_resumed(run, version):
    async def main():
        async with echo_server(server_context()) as (port, made):
            await in_thread(resume, port, version)
            for protocol in made:
                assert await protocol.lost is None

    run(main())


def show_certificate(port):
    context = client_context(name="client.example", post_handshake_auth=True)
    with context.wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST) as sock:
        for _ in range(2):
            sock.sendall(b"ping")
            assert sock.recv(4) == b"ping"
        sock.unwrap().close()


def test_client_shows_its_certificate_after_the_handshake(run):
    class Asking(Echo):
        def data_received(self, data):
            tls = self.transport.get_extra_info("ssl_object")
            if not self.received:
                assert tls.getpeercert() is None
                tls.verify_client_post_handshake()  # leaves with the answer
            super().data_received(data)
            self.certificate = tls.getpeercert()

    async def main():
        context = server_context(post_handshake_auth=True, verify_mode=ssl.CERT_OPTIONAL)
        async with echo_server(context, Asking) as (port, made):
            await in_thread(show_certificate, port)
            assert await made[0].lost is None
        assert made[0].certificate["subjectAltName"] == (("DNS", "client.example"),)

    run(main())


# ---- what only OpenSSL's own client can do ----


ANSWERS = {"ping": "ping", "pong": "pong", "k": "KEYUPDATE", "K": "KEYUPDATE", "R": None, "Q": None}


def press(port, version, *keys):
    """Type these lines, each after the answer to the one before. Returns all that it said."""
    command = ["openssl", "s_client", "-connect", f"{HOST}:{port}", version]
    said = []
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-2, text=True, bufsize=1) as process:
        for text in keys:
            process.stdin.write(text + "\n")
            for line in process.stdout:  # to its end, after the last
                said.append(line.strip())
                if said[-1] == ANSWERS[text]:
                    break
    return said


async def pressed(*args):
    async with echo_server(server_context()) as (port, made):
        said = await in_thread(press, port, *args)
        await made[0].lost
        assert await talk(port) == b"ping"
    return made[0].events, bytes(made[0].received), "no renegotiation" in "".join(said)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl")
def test_renegotiation_is_refused_and_hurts_nobody(run):
    events, received, refused = alike(run, pressed, "-tls1_2", "ping", "R")
    assert events[:2] == ["made", "data"]
    assert events[-1].startswith("lost SSLError")
    assert (received, refused) == (b"ping\n", True)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl")
@pytest.mark.parametrize("key", ["k", "K"], ids=["own", "both"])
def test_new_keys_are_taken(run, key):
    events, received, _ = alike(run, pressed, "-tls1_3", "ping", key, "pong", "Q")
    assert (events, received) == (["made", "data", "eof", "lost None"], b"ping\npong\n")
