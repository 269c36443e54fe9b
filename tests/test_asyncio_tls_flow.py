"""TLS over asyncio's transports: flow control, sendfile, and ends, with megabytes on their way."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from peers import until
from tls import (
    HOST,
    Echo,
    SlowPeer,
    alike,
    client_context,
    echo_server,
    in_thread,
    server_context,
    told,
)

BIG = bytes(range(256)) * 20_000  # 5 MB


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


class Pausing(Echo):
    def connection_made(self, transport):
        super().connection_made(transport)
        transport.pause_reading()


def send_and_close(port, size):
    peer = SlowPeer(port)
    peer.sock.sendall(peer.seal(bytes(size)))
    peer.finish()


async def end_while_paused(size):
    async with echo_server(server_context(), Pausing) as (port, made):
        sending = in_thread(send_and_close, port, size)
        await until(lambda: made and made[0].events)
        await until(lambda: made[0].transport.get_read_buffer_size() >= min(size, 256 * 1024))
        made[0].data_received = made[0].received.extend  # an answer would find the peer gone
        made[0].transport.resume_reading()
        await made[0].lost
        await sending
        return made[0].events, len(made[0].received)


@pytest.mark.parametrize("size", [100_000, 400_000])
def test_what_came_before_an_end_that_was_held_back_is_delivered(run, size):
    """With 400,000 bytes TLS has paused the transport, and the end is not seen before."""
    assert alike(run, end_while_paused, size) == (["made", "eof", "lost None"], size)


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


# ---- ends ----


class Gathering(Echo):
    """Keeps each piece that comes, and answers nothing."""

    def data_received(self, data):
        self.events.append(data)


def test_records_of_one_segment_come_in_one_call(run):
    async def main():
        async with echo_server(server_context(), Gathering) as (port, made):
            peer = await in_thread(SlowPeer, port)
            await until(lambda: made)
            records = b"".join(peer.seal(b"%d" % i) for i in range(10))
            peer.sock.sendall(records + peer.seal(b"cut")[:-1])
            await until(lambda: len(made[0].events) > 1)
            made[0].transport.abort()
            assert made[0].events == ["made", b"0123456789"]
            await in_thread(peer.stay_silent)

    run(main())


class WritingLines(Echo):
    def data_received(self, data):
        pieces = data[:1], bytearray(data[1:3]), b"", memoryview(data)[3:]
        self.transport.writelines(iter(pieces))
        self.transport.writelines([])


def test_writelines_makes_one_record(run):
    async def main():
        async with echo_server(server_context(), WritingLines) as (port, _):
            peer = await in_thread(SlowPeer, port)
            await in_thread(peer.call, peer.tls.write, b"together")
            assert await in_thread(peer.receive_once) == b"together"
            await in_thread(peer.finish)

    run(main())


class Changing(Echo):
    """Writes a buffer and uses it again at once."""

    def connection_made(self, transport):
        super().connection_made(transport)
        buffer = bytearray(BIG)
        transport.write(memoryview(buffer).cast("I"))
        buffer[:] = bytes(len(buffer))
        del buffer[:]


def test_buffer_is_the_writers_again_once_written(run):
    async def main():
        async with echo_server(server_context(), Changing) as (port, made):
            peer = await in_thread(SlowPeer, port)
            assert await in_thread(peer.receive, len(BIG)) == BIG
            made[0].transport.close()
            assert await in_thread(peer.read_to_end) == b""

    run(main())


def test_half_close_is_not_supported(run):
    async def main():
        async with echo_server(server_context()) as (port, _):
            _, writer = await asyncio.open_connection(HOST, port, ssl=client_context())
            assert not writer.can_write_eof()
            with pytest.raises(NotImplementedError):  # asyncio's own word: TLS has no half-close
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
