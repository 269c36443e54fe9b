"""MappedViews sent by reference: every framing, limits, ends, TLS, and truncated files."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import re
import socket
import tracemalloc

import pytest
from peers import Serving, deaf_peer, peer_of, read_all, tls_contexts
from views import BYTES, SIZE, SMALL, TRUNCATED, big_file, mapped, small_file

import pyloop

__all__ = ["big_file", "mapped", "small_file"]

PAGE = mmap.PAGESIZE
PART = 200_000
TAKE = [
    (pyloop.Raw(), b"", b""),
    (pyloop.LengthPrefixed(4, max_size=PART), b"\0\x03\x0d\x40", b""),
    (pyloop.LengthPrefixed("varint", max_size=PART), b"\xc0\x9a\x0c", b""),
    (pyloop.FixedSize(PART), b"", b""),
    (pyloop.Netstring(PART), b"200000:", b","),
]
REFUSE = [pyloop.Lines(SIZE), pyloop.Delimited(b"--", SIZE)]


async def read_into(wire, sock):
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(sock, 1 << 20):
        wire += piece


# ---- in the loop ----


@pytest.mark.parametrize(("framing", "head", "tail"), TAKE, ids=lambda value: repr(value)[:20])
def test_framings_put_their_bytes_around_a_view(mapped, run, framing, head, tail):
    async def main():
        async with Serving(framing=framing) as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.send(mapped.view(9, 9 + PART))
            conn.write(b"<")
            conn.write(mapped.view(7, 9))
            conn.close()
            wire = head + BYTES[9 : 9 + PART] + tail + b"<" + BYTES[7:9]
            assert await reader.read() == wire
            stats = serving.server.stats()
            assert (stats.messages_out, stats.bytes_out) == (3, len(wire))

    run(main())
    mapped.close()


@pytest.mark.parametrize("framing", REFUSE, ids=repr)
def test_framings_that_read_messages_refuse_a_view(mapped, run, framing):
    message = "looks for its terminator in each message, and a MappedView is not read: send bytes"

    async def main():
        async with Serving(framing=framing) as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            for send in (conn.send, serving.server.broadcast):
                for view in (mapped.view(0, 5), mapped.view(0, 0)):
                    with pytest.raises(TypeError, match=message):
                        send(view)
            conn.write(mapped.view(0, 5))
            conn.close()
            assert await reader.read() == BYTES[:5]

    run(main())


def test_what_is_there_at_flush_is_sent_and_nothing_copied(mapped, run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            view = mapped.view(0, 60_000)
            conn.send(view)
            assert conn.buffered == 60_000
            mapped[0:5] = b"fresh"
            assert await reader.readexactly(10) == b"fresh" + BYTES[5:10]
            tracemalloc.start()
            try:
                conn.send(mapped.view())
                conn.close()
                assert tracemalloc.get_traced_memory()[1] < 100_000
            finally:
                tracemalloc.stop()
            assert len(await reader.read()) == 60_000 - 10 + SIZE

    run(main())


def test_close_with_queued_views_is_refused_until_they_are_sent(big_file, mapped, run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(mapped.view())
                conn.send(mapped.view(3, 5))
                message = f"^cannot close MappedFile '{big_file}': 2 views of it queued to send$"
                with pytest.raises(BufferError, match=message):
                    mapped.close()
                assert mapped[0:5] == BYTES[:5]
                assert not conn.state.lost.done()
                conn.close()
                assert await read_all(sock) == BYTES + BYTES[3:5]
                mapped.close()

    run(main())


def test_a_view_over_high_water_pauses_and_drain_waits(mapped, run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(mapped.view())
                assert conn.buffered > SIZE // 2
                drained = asyncio.ensure_future(conn.drain())
                await asyncio.sleep(0)
                assert not drained.done()
                got = 0
                while not drained.done() and got < SIZE:  # all, before a turn lets drain return
                    got += len(await asyncio.get_running_loop().sock_recv(sock, 1 << 20))
                await drained
                assert got > SIZE // 2

    run(main())


def test_a_mapped_file_itself_is_sent_as_a_copy(mapped, run):
    async def main():
        framing = pyloop.Lines(SIZE)
        async with Serving(framing=framing) as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            with pyloop.SharedMemory(size=3, create=True) as memory:
                memory.unlink()
                memory[:] = b"abc"
                conn.send(memory)
                memory[:] = b"def"
            assert await reader.readexactly(4) == b"abc\n"

    run(main())


def test_views_over_write_limit_abort_and_let_go(mapped, run):
    async def main():
        async with Serving(write_limit=1000) as serving:
            with deaf_peer(serving.server):
                conn = await serving.conn()
                conn.send(mapped.view())  # one of any size
                conn.send(mapped.view(0, 1))
                assert isinstance(await conn.state.lost, pyloop.WriteLimitError)
                mapped.close()

    run(main())


def test_abort_and_a_stopping_server_let_go_of_views(mapped, run):
    async def main():
        async with Serving(drain_timeout=0.05) as serving:
            with deaf_peer(serving.server), deaf_peer(serving.server):
                first, second = await serving.conn(), await serving.conn()
                for conn in (first, second):
                    conn.send(mapped.view())
                first.abort()
                with pytest.raises(BufferError, match="1 view of it queued"):
                    mapped.close()
                await serving.server.stop()
                mapped.close()

    run(main())


def test_a_loop_that_is_closed_lets_go_of_views(backend, mapped):
    loop = pyloop.Loop(backend=backend)

    async def main():
        serving = Serving()
        await serving.server.start()
        sock = socket.create_connection(("127.0.0.1", serving.server.port))
        (await serving.conn()).send(mapped.view())
        return sock

    with loop.run_until_complete(main()):
        with pytest.raises(BufferError):
            mapped.close()
        loop.close()
        mapped.close()


def test_broadcast_of_a_view_reaches_all_but_the_excluded(mapped, run):
    async def main():
        framing = pyloop.Netstring()
        async with Serving(framing=framing) as serving:
            async with (
                peer_of(serving.server) as (one, _),
                peer_of(serving.server) as (two, _),
                peer_of(serving.server) as (three, _),
            ):
                conns = [await serving.conn() for _ in range(3)]
                left_out = next(c for c in conns if c.peername == three_name(three))
                serving.server.broadcast(mapped.view(5, 10), exclude=left_out)
                left_out.send(b"not")
                for reader, wire in ((one, b"5:" + BYTES[5:10]), (two, b"5:" + BYTES[5:10])):
                    assert await reader.readexactly(8) == wire + b","
                assert await three.readexactly(6) == b"3:not,"

    def three_name(reader):
        return reader._transport.get_extra_info("sockname")

    run(main())


# ---- truncated files ----


@pytest.mark.parametrize("size", [0, 100, PAGE, SMALL - 1])
def test_a_file_truncated_before_the_flush_aborts_that_connection_only(
    small_file, run, size, caplog
):
    async def main():
        async with Serving() as serving:
            async with peer_of(serving.server) as (reader, _), peer_of(serving.server) as (good, _):
                conns = [await serving.conn(), await serving.conn()]
                name = reader._transport.get_extra_info("sockname")
                bad, other = sorted(conns, key=lambda conn: conn.peername != name)
                mapped = pyloop.MappedFile(small_file, mode="r+")
                bad.send(mapped.view(0, 1000) if size < 1000 else mapped.view(SMALL - 1000))
                with pytest.raises(BufferError, match=r"^cannot resize MappedFile .*1 view of it"):
                    mapped.resize(9)
                os.truncate(small_file, size)
                other.send(b"fine")
                exc = await bad.state.lost
                with pytest.raises(OSError, match=TRUNCATED):
                    raise exc
                assert await good.readexactly(4) == b"fine"
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                assert serving.server.stats().aborts == 1
                (record,) = caplog.records
                assert re.match("a mapped file was truncated, .*; connection of", record.message)
                mapped.close()

    run(main())


def test_a_file_truncated_in_the_middle_sends_no_wrong_byte(small_file, run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                small_file.write_bytes(BYTES)
                conn.send(pyloop.MappedFile(small_file).view())
                conn.close()
                os.truncate(small_file, 1000)
                wire = bytearray()
                with pytest.raises(ConnectionResetError):
                    await read_into(wire, sock)
                assert wire == BYTES[: len(wire)]
                with pytest.raises(OSError, match=TRUNCATED) as info:
                    raise await conn.state.lost
                assert info.value.errno == errno.EFAULT

    run(main())


# ---- TLS ----


def test_tls_copies_a_view_and_says_when_it_cannot(small_file, run):
    server_context, client_context = tls_contexts()

    async def main():
        framing = pyloop.Netstring(SMALL)
        async with Serving(framing=framing, ssl=server_context) as serving:
            conn = await pyloop.connect(
                "127.0.0.1", serving.server.port, ssl=client_context, framing=framing
            )
            ours = await serving.conn()
            mapped = pyloop.MappedFile(small_file, mode="r+")
            ours.send(mapped.view(3))
            mapped[3:4] = b"x"  # too late
            serving.server.broadcast(mapped.view(0, 2))
            assert await conn.receive() == BYTES[3:SMALL]
            assert await conn.receive() == BYTES[:2]
            view = mapped.view(0, 100)
            os.truncate(small_file, 50)
            with pytest.raises(OSError, match="cannot read 100 bytes at offset 0"):
                ours.send(view)
            ours.send(mapped.view(0, 2))
            assert await conn.receive() == BYTES[:2]
            conn.abort()

    run(main())


def test_tls_lines_refuse_a_view(mapped, run):
    async def main():
        options = {"framing": pyloop.Lines(), "ssl": tls_contexts()[0]}
        async with Serving(**options) as serving:
            conn = await pyloop.connect("127.0.0.1", serving.server.port, ssl=tls_contexts()[1])
            with pytest.raises(TypeError, match=r"^Lines\(max_size=65536\) looks for"):
                (await serving.conn()).send(mapped.view(0, 3))
            conn.abort()

    run(main())


# ---- shared memory ----


def test_shared_memory_is_sent_by_reference_too(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            with pyloop.SharedMemory(size=100, create=True) as memory:
                memory.unlink()
                conn.send(memory.view(0, 10))
                memory[:3] = b"abc"
                assert await reader.readexactly(10) == b"abc" + bytes(7)

    run(main())
