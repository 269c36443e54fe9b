"""TLS over asyncio's transports, with peers that fail, lie, cut off or are not TLS at all.

What each side is told is compared with asyncio's own loop, where the same test runs first.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from tls import (
    HOST,
    TLSPeer,
    alike,
    client_context,
    echo_server,
    in_thread,
    name_of,
    server_context,
    split,
    talk,
    told,
)

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PLAIN = {
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "garbage": bytes(range(256)) * 4,
    "zeros": bytes(100_000),
    "three bytes of a record": b"\x16\x03\x01",
    "nothing": b"",
}
UNTRUSTED = "SSLCertVerificationError CERTIFICATE_VERIFY_FAILED"
DIFFERING = {  # what the server's context is, the client's, and what the client is told
    "authority": ({}, {"trusting": False}, UNTRUSTED),
    "host name": ({"name": "other.example"}, {}, UNTRUSTED),
    "version": ({"minimum_version": TLS13}, {"maximum_version": TLS12}, "ConnectionResetError"),
    "cipher": (
        {"maximum_version": TLS12, "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"},
        {"ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"},
        "ConnectionResetError",
    ),
    "certificate of a client, 1.2": (
        {"verify_mode": ssl.CERT_REQUIRED, "maximum_version": TLS12},
        {},
        "ConnectionResetError",
    ),
    "certificate of a client, 1.3": ({"verify_mode": ssl.CERT_REQUIRED}, {}, b""),
}
ENDS = ["close", "reset", "half a record"]


async def attacked(attack, *args, **settings):
    """Let a thread loose on a server. What the protocols saw, and the exception handler."""
    with told() as entries:
        async with echo_server(server_context(**settings)) as (port, made):
            await in_thread(attack, port, *args)
            assert await talk(port) == b"ping"
            for protocol in made:
                if protocol.events:
                    await protocol.lost
    assert made[-1].events == ["made", "data", "eof", "lost None"]
    return [protocol.events for protocol in made[:-1]], entries


def peer(port, **settings):
    return TLSPeer(socket.create_connection((HOST, port)), client_context(**settings))


# ---- a server's handshakes ----


def say_plain(port):
    for data in PLAIN.values():
        for how in ("close", "reset"):
            one = peer(port)
            try:
                one.sock.sendall(data)
            except OSError:
                pass  # it was closed before it had taken all
            one.finish(how)


def test_peers_that_speak_no_tls_are_closed_and_hurt_nobody(run):
    async def scenario():
        return await attacked(say_plain)

    assert alike(run, scenario) == ([[]] * 2 * len(PLAIN), [])


def cut_handshakes(port, version, sent):
    """End the handshake after each record that a client sends in it, and within it."""
    for records in range(sent):
        for how in ENDS:
            one = peer(port, minimum_version=version, maximum_version=version)
            with pytest.raises(EOFError):
                one.handshake(records)
            if how == "half a record":
                one.sock.sendall(one.unsent[: len(one.unsent) // 2])
            one.finish(how)


@pytest.mark.parametrize(("version", "sent"), [(TLS12, 4), (TLS13, 3)], ids=["1.2", "1.3"])
def test_handshakes_cut_by_clients_end_and_hurt_nobody(run, version, sent):
    assert alike(run, attacked, cut_handshakes, version, sent) == ([[]] * sent * len(ENDS), [])


async def served_silence():
    with told() as entries:
        async with echo_server(server_context(), ssl_handshake_timeout=0.05) as (port, made):
            one = await in_thread(peer, port)
            await in_thread(one.stay_silent)
    return [protocol.events for protocol in made], entries


def test_silent_client_is_dropped_at_ssl_handshake_timeout(run):
    assert alike(run, served_silence) == ([[]], [])


# ---- both sides ----


async def differ(name):
    server, client, _ = DIFFERING[name]
    with told() as entries:
        async with echo_server(server_context(**server)) as (port, made):
            try:
                reader, writer = await asyncio.open_connection(
                    HOST, port, ssl=client_context(**client)
                )
                answer = await reader.read()
                writer.close()
            except OSError as exc:
                answer = name_of(exc)
    return answer, [protocol.events for protocol in made], entries


@pytest.mark.parametrize("what", DIFFERING)
def test_two_that_do_not_agree_are_told_as_asyncio_tells_it(run, what):
    assert alike(run, differ, what) == (DIFFERING[what][2], [[]], [])


async def differ_in_debug_mode(name):
    asyncio.get_running_loop().set_debug(True)
    try:
        return await differ(name)
    finally:
        asyncio.get_running_loop().set_debug(False)


def test_failed_handshake_of_a_server_is_reported_in_debug_mode(run):
    message = "Error on transport creation for incoming connection"
    answer, events, entries = alike(run, differ_in_debug_mode, "cipher")
    assert (answer, events) == ("ConnectionResetError", [[]])
    assert entries == [(message, "SSLError NO_SHARED_CIPHER")]


# ---- a client's handshakes ----


async def meet(serve, *args, **options):
    """Connect to a server in a thread: what came of it, and what the exception handler saw."""
    with told() as entries, socket.create_server((HOST, 0)) as listening:
        serving = in_thread(serve, listening, *args)
        try:
            port = listening.getsockname()[1]
            await asyncio.open_connection(HOST, port, ssl=client_context(), **options)
            answer = "connected"
        except OSError as exc:
            answer = name_of(exc)
        await serving
    return answer, entries


def accept(listening, version=TLS13):
    context = server_context(minimum_version=version, maximum_version=version)
    return TLSPeer(listening.accept()[0], context, server_side=True)


def greet(listening, greeting):
    one = accept(listening)
    one.sock.sendall(greeting)
    one.finish()


@pytest.mark.parametrize("greeting", [b"220 at your service\r\n", b"", bytes(100_000)])
def test_server_that_speaks_no_tls_is_an_error(run, greeting):
    answer, entries = alike(run, meet, greet, greeting)
    assert ("Error" in answer, entries) == (True, [])


def cut_serving(listening, version, records, how):
    one = accept(listening, version)
    with pytest.raises(EOFError):
        one.handshake(records)
    if how == "half a record":
        one.sock.sendall(one.unsent[: len(one.unsent) // 2])
    one.finish(how)


async def meet_cuts(version):
    return [await meet(cut_serving, version, records, how) for records in range(4) for how in ENDS]


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])
def test_handshakes_cut_by_servers_are_a_connection_reset(run, version):
    assert alike(run, meet_cuts, version) == [("ConnectionResetError", [])] * 4 * len(ENDS)


def stay_silent(listening):
    accept(listening).stay_silent()


def test_silent_server_is_connection_aborted_at_ssl_handshake_timeout(run):
    async def main():
        with socket.create_server((HOST, 0)) as listening:
            serving = in_thread(stay_silent, listening)
            text = "SSL handshake is taking longer than 0.05 seconds: aborting the connection"
            with pytest.raises(ConnectionAbortedError, match=text):
                await asyncio.open_connection(
                    *listening.getsockname(), ssl=client_context(), ssl_handshake_timeout=0.05
                )
            await serving

    run(main())


def test_cancelled_handshake_closes_the_connection(run):
    async def main():
        with socket.create_server((HOST, 0)) as listening, told() as entries:
            connecting = asyncio.create_task(
                asyncio.open_connection(*listening.getsockname(), ssl=client_context())
            )
            one = await in_thread(accept, listening)
            await in_thread(one.sock.recv, 5)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await in_thread(one.finish)
        assert entries == []

    run(main())


# ---- after the handshake ----


def spoil(one, name):
    """Send what ends the connection, after which it is closed, or reset."""
    record = one.seal(b"the last of it")
    if name.startswith("half a record"):
        one.sock.sendall(record[: len(record) // 2])
    elif name == "bad MAC":
        one.sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
    elif name == "record over 16 KiB":
        one.sock.sendall(b"\x17\x03\x03\x48\x00" + bytes(0x4800))
    elif name == "plain text":
        one.sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    elif name.startswith("close_notify"):
        with pytest.raises(ssl.SSLWantReadError):
            one.tls.unwrap()
        trailing = record if name == "close_notify and data" else b""
        one.sock.sendall(record + one.outgoing.read() + trailing)


SPOILT = [
    "no close_notify",
    "half a record",
    "half a record and reset",
    "bad MAC",
    "record over 16 KiB",
    "plain text",
    "close_notify",
    "close_notify and data",
]


def spoil_one(port, name, version):
    one = peer(port, maximum_version=version)
    one.handshake()
    one.sock.sendall(one.seal(b"ping"))
    assert one.receive(4) == b"ping"
    spoil(one, name)
    one.finish("reset" if "reset" in name else "close")


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])
@pytest.mark.parametrize("name", SPOILT)
def test_what_ends_a_connection_is_told_as_asyncio_tells_it(run, name, version):
    ((events,), entries) = alike(run, attacked, spoil_one, name, version)
    assert (events[:2], entries) == (["made", "data"], [])
    assert events[-1].startswith("lost")
    assert ("SSLError" in events[-1]) == (name in ("bad MAC", "record over 16 KiB", "plain text"))


def test_answers_are_whole_however_records_are_sent(run):
    async def scenario():
        return await attacked(send_oddly)

    assert alike(run, scenario) == ([["made", "data", "eof", "lost None"]], [])


def send_oddly(port):
    one = peer(port)
    one.handshake()
    tiny = [b"%d," % number for number in range(1000)]
    one.sock.sendall(b"".join(map(one.seal, tiny)))
    assert one.receive(len(b"".join(tiny))) == b"".join(tiny)
    for byte in one.seal(b"byte by byte"):
        one.sock.sendall(bytes([byte]))
    assert one.receive(12) == b"byte by byte"
    big = bytes(range(256)) * 250
    first, *others = split(one.seal(big))
    assert len(others) == 3  # 64,000 bytes in records of 16 KiB
    one.sock.sendall(first[:-1])
    one.sock.sendall(first[-1:] + b"".join(others))
    assert one.receive(len(big)) == big
    one.call(one.tls.unwrap)
    one.finish()
