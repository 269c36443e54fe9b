"""Datagrams on their way, where pyloop and asyncio's own loop agree: each test runs on both."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
import uuid

import pytest
from datagrams import LOCAL, either_loop, endpoint, udp, unix_pair  # noqa: F401

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")


# ---- who talks to whom ----


def link_local():
    """Return an IPv6 address with a scope, (host, 0, 0, scope): ::1, scope 0, if there is none."""
    with open("/proc/net/if_inet6") as table:
        for line in table:
            packed, index, _, scope, _, _ = line.split()
            if scope == "20":
                host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))
                return host, 0, 0, int(index, 16)
    return "::1", 0, 0, 0


def ends(kind):
    """Return the family, and two addresses to bind to."""
    unique = str(uuid.uuid4())
    return {
        "inet": (socket.AF_INET, LOCAL, LOCAL),
        "inet6": (socket.AF_INET6, ("::1", 0), ("::1", 0)),
        "scope": (socket.AF_INET6, link_local(), link_local()),
        "path": (socket.AF_UNIX, "one", "other"),
        "abstract": (socket.AF_UNIX, f"\0{unique}".encode(), f"\0{unique}x\0".encode()),
    }[kind]


KINDS = ["inet", "inet6", "path"] + ["scope", "abstract"] * (sys.platform == "linux")


@pytest.mark.parametrize("kind", KINDS)
def test_answer_goes_to_the_sender(run, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family, one, other = ends(kind)

    async def main():
        with udp(family, one) as sock, udp(family, other) as third:
            sock.setblocking(False)
            async with endpoint(sock=sock) as peer:
                for text in (b"first", b"second"):
                    third.sendto(text, peer.address)
                    assert await peer.next() == (text, third.getsockname())
                    peer.transport.sendto(text.upper(), third.getsockname())
                    await asyncio.sleep(0)
                    assert third.recvfrom(100) == (text.upper(), peer.address)

    run(main())


def test_connected_endpoints_hear_their_peer_only(run):
    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            peername = other.transport.get_extra_info("peername")
            assert peername == one.address
            other.transport.sendto(b"none")
            other.transport.sendto(b"same", one.address)
            with pytest.raises(ValueError, match=r"Invalid address: must be None or \('127"):
                other.transport.sendto(b"x", ("127.0.0.1", 1))
            assert await one.take(2) == [b"none", b"same"]
            async with endpoint() as stranger:
                stranger.transport.sendto(b"stranger", other.address)
                one.transport.sendto(b"peer", other.address)
                assert await other.next() == (b"peer", one.address)
            assert other.inbox.empty()

    run(main())


@linux_only
def test_sender_without_a_name_is_none(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def main():
        async with endpoint(local_addr="here", family=socket.AF_UNIX) as peer:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
                nameless.sendto(b"who?", "here")
                assert await peer.next() == (b"who?", None)

    run(main())


def test_host_names_are_looked_up(run):
    async def main():
        async with endpoint() as one, endpoint() as other:
            for host in ("localhost", "127.0.0.1", ""):
                other.transport.sendto(host.encode() or b"any", (host, one.address[1]))
            assert await one.take(3) == [b"localhost", b"127.0.0.1", b"any"]

    run(main())


@linux_only
def test_netlink_answers_with_the_names_of_links(run):
    length, request, dump = struct.Struct("=IHHII16x"), 18, 0x301  # RTM_GETLINK, REQUEST | DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as sock:
        sock.bind((0, 0))
        sock.setblocking(False)

        async def main():
            async with endpoint(sock=sock) as peer:
                peer.transport.sendto(length.pack(length.size, request, dump, 1, 0))
                data, sender = await peer.next()
                assert b"lo\0" in data and sender == (0, 0)

        run(main())


@pytest.mark.parametrize("allowed", [True, False])
def test_broadcast_is_sent_if_it_is_allowed(run, allowed):
    async def main():
        async with endpoint(local_addr=("0.0.0.0", 0)) as all_ears:
            where = ("127.255.255.255", all_ears.address[1])
            options = {"remote_addr": where} if allowed else {}
            async with endpoint(local_addr=LOCAL, allow_broadcast=allowed, **options) as caller:
                caller.transport.sendto(b"all", where)
                if allowed:
                    caller.transport.sendto(b"of you")
                    assert await all_ears.take(2) == [b"all", b"of you"]
                else:
                    assert (await caller.errors.get()).errno == errno.EACCES

    run(main())


# ---- what arrives ----


def test_many_senders_are_told_apart_and_kept_in_order(run):
    async def main():
        async with endpoint() as peer:
            socks = [udp() for _ in range(30)]
            for number in range(5):
                for sock in socks:
                    sock.sendto(b"%d" % number, peer.address)
            heard = {}
            for _ in range(150):
                data, sender = await peer.next()
                heard.setdefault(sender, []).append(int(data))
            assert heard == {sock.getsockname(): list(range(5)) for sock in socks}
            for sock in socks:
                sock.close()

    run(main())


def test_burst_arrives_in_order(run):
    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            for number in range(150):
                other.transport.sendto(b"%d" % number)
            assert await one.take(150) == [b"%d" % number for number in range(150)]

    run(main())


def test_largest_datagram_arrives_and_a_larger_one_is_an_error(run):
    data = os.urandom(65507)

    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            other.transport.sendto(data + b"x")
            other.transport.sendto(data)
            assert (await one.next())[0] == data
            assert (await other.errors.get()).errno == errno.EMSGSIZE

    run(main())


def test_large_unix_datagram_arrives_whole(run):
    data = os.urandom(150_000)

    async def main():
        with unix_pair() as (ours, theirs):
            async with endpoint(sock=ours) as peer:
                theirs.send(data)
                assert (await peer.next())[0] == data

    run(main())


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_buffer_is_taken_as_it_is_at_the_call(run, kind):
    async def main():
        async with endpoint() as one, endpoint(remote_addr=one.address) as other:
            data = bytearray(b"before")
            other.transport.sendto(kind(data))
            data[:] = b"behind"
            assert (await one.next())[0] == b"before"

    run(main())
