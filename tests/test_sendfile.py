"""loop.sock_sendfile and loop.sendfile do what they do on asyncio's own loop, by sendfile(2)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket

import pytest
from conftest import BACKENDS
from ends import pair, started
from peers import read_all, tls_contexts

import pyloop

DATA = bytes(range(256)) * 4096  # 1 MiB: more than a socket takes at once


@pytest.fixture(params=[*BACKENDS, "asyncio"])
def run(request, monkeypatch):
    """With asyncio's own loop beside the backends: the same tests hold there."""
    monkeypatch.delenv("PYLOOP_BACKEND", raising=False)
    stdlib = request.param == "asyncio"
    loop = asyncio.SelectorEventLoop() if stdlib else pyloop.Loop(request.param)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield lambda main: runner.run(asyncio.wait_for(main(loop), 60))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        yield file


@pytest.fixture
def calls(monkeypatch):
    """What os.sendfile was asked for, and said."""
    seen = []
    real = os.sendfile

    def watched(out, in_, offset, count):
        sent = real(out, in_, offset, count)
        seen.append((offset, count, sent))
        return sent

    monkeypatch.setattr(os, "sendfile", watched)
    return seen


@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (1000, None), (0, 300_000), (1000, 17), (5, len(DATA) * 2)]
)
def test_sock_sendfile_sends_the_part_and_leaves_the_file_behind_it(
    run, file, calls, offset, count
):
    async def main(loop):
        ours, theirs = pair()
        with ours, theirs:
            reading = await started(read_all(theirs))
            sent = await loop.sock_sendfile(ours, file, offset, count)
            ours.close()
            expected = DATA[offset:][:count]
            assert await reading == expected and sent == len(expected)
            assert file.tell() == offset + sent
            assert sum(call[2] for call in calls) == sent

    run(main)


def test_empty_rest_sends_nothing(run, file, calls):
    async def main(loop):
        ours, theirs = pair()
        with ours, theirs:
            assert await loop.sock_sendfile(ours, file, len(DATA)) == 0
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    run(main)


def test_object_without_an_fd_is_sent_in_pieces(run, calls):
    async def main(loop):
        ours, theirs = pair()
        with ours, theirs:
            memory = io.BytesIO(DATA)
            reading = await started(read_all(theirs))
            assert await loop.sock_sendfile(ours, memory, 10, 500_000) == 500_000
            assert memory.tell() == 500_010
            with pytest.raises(asyncio.SendfileNotAvailableError, match="not a regular file"):
                await loop.sock_sendfile(ours, memory, fallback=False)
            ours.close()
            assert await reading == DATA[10:500_010] and not calls

    run(main)


def test_wrong_arguments_are_named(run, file, tmp_path):
    async def main(loop):
        ours, theirs = pair()
        text = (tmp_path / "data").open()
        with ours, theirs, text, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            for args, said in [
                ((ours, text), "file should be opened in binary mode"),
                ((datagrams, file), "only SOCK_STREAM type sockets are supported"),
                ((ours, file, -1), "offset must be a non-negative integer"),
                ((ours, file, 0, 0), "count must be a positive integer"),
            ]:
                with pytest.raises(ValueError, match=said):
                    await loop.sock_sendfile(*args)

    run(main)


def test_peer_that_leaves_is_an_error_and_the_position_what_was_sent(run, file, calls):
    async def main(loop):
        ours, theirs = pair()
        with ours:
            sending = await started(loop.sock_sendfile(ours, file))
            assert not sending.done()
            theirs.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await sending
            assert file.tell() == sum(call[2] for call in calls) > 0

    run(main)


def test_cancelled_sendfile_stops_and_the_socket_can_be_used(run, file, calls):
    async def main(loop):
        ours, theirs = pair()
        with ours, theirs:
            sending = await started(loop.sock_sendfile(ours, file))
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            sent = sum(call[2] for call in calls)
            reading = await started(read_all(theirs))
            await loop.sock_sendall(ours, b"end")
            ours.close()
            assert await reading == DATA[:sent] + b"end"

    run(main)


# ---- loop.sendfile: on transports ----


@contextlib.asynccontextmanager
async def transports(**options):
    """Two connected streams; `options` are those of a TLS client."""
    arrived = asyncio.get_running_loop().create_future()

    def connected(reader, writer):
        arrived.set_result((reader, writer))

    server_context = tls_contexts()[0] if options else None
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        their_reader, their_writer = await arrived
        try:
            yield writer, their_reader, (reader, their_writer)
        finally:
            writer.close()
            their_writer.close()
            for each in (writer, their_writer):
                with contextlib.suppress(OSError):
                    await each.wait_closed()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_sendfile_of_a_transport_keeps_its_place_among_writes(run, file, calls, tls):
    async def main(loop):
        options = {"ssl": tls_contexts()[1]} if tls else {}
        async with transports(**options) as (writer, reader, _):
            reading = await started(reader.readexactly(6 + len(DATA) - 10 + 5))
            writer.write(b"before")
            assert await loop.sendfile(writer.transport, file, 10) == len(DATA) - 10
            assert file.tell() == len(DATA)
            writer.write(b"after")
            assert await reading == b"before" + DATA[10:] + b"after"
            assert bool(calls) is not tls

    run(main)


def test_transport_goes_on_reading_after_sendfile(run, file):
    async def main(loop):
        async with transports() as (writer, reader, (back, their_writer)):
            reading = await started(reader.readexactly(1000))
            await loop.sendfile(writer.transport, file, 0, 1000)
            assert await reading == DATA[:1000] and writer.transport.is_reading()
            their_writer.write(b"back")
            assert await back.readexactly(4) == b"back"

    run(main)


def test_sendfile_of_a_closing_transport_is_refused(run, file):
    async def main(loop):
        async with transports() as (writer, _, _):
            writer.close()
            with pytest.raises(RuntimeError, match=r"^Transport is closing$"):
                await loop.sendfile(writer.transport, file)

    run(main)


def test_tls_without_the_fallback_is_refused(run, file):
    async def main(loop):
        async with transports(ssl=tls_contexts()[1]) as (writer, _, _):
            with pytest.raises(RuntimeError, match="fallback is disabled and native sendfile"):
                await loop.sendfile(writer.transport, file, fallback=False)

    run(main)


def test_object_without_an_fd_is_written_to_the_transport(run, calls):
    async def main(loop):
        async with transports() as (writer, reader, _):
            memory = io.BytesIO(DATA)
            reading = await started(reader.readexactly(1000))
            assert await loop.sendfile(writer.transport, memory, 5, 1000) == 1000
            assert await reading == DATA[5:1005] and memory.tell() == 1005 and not calls

    run(main)
