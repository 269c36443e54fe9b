"""Connection: sending, closing, names, use after the end and from other threads."""

from __future__ import annotations

import asyncio
import threading

import pytest
from peers import answer, deaf_peer, exchange, peer_of, read_all, reset, until

import pyloop


class Serving:
    """A server whose connections stay open and come to the test: `async with serving() as s`."""

    def __init__(self, **options):
        self.arrivals = asyncio.Queue()
        self.server = pyloop.Server(lambda: Held(self), **options)

    async def __aenter__(self):
        await self.server.start()
        return self

    async def __aexit__(self, *exc_info):
        await self.server.stop()

    async def conn(self):
        return await self.arrivals.get()


class Held(pyloop.Protocol):
    def __init__(self, serving):
        self.serving = serving
        self.messages = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, conn):
        self.conn = conn
        conn.state = self
        self.serving.arrivals.put_nowait(conn)

    def message_received(self, message):
        self.messages.append(message)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


# ---- what may be sent ----


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_bytes_like_is_sent(run, data):
    async def main():
        async with Serving(framing=pyloop.Lines()) as serving:
            async with peer_of(serving.server) as (reader, _):
                conn = await serving.conn()
                assert conn.send(data) is None
                assert conn.write(data) is None
                assert await reader.readexactly(7) == b"abc\nabc"

    run(main())


def test_array_and_sliced_memoryview_are_sent_as_their_bytes(run):
    import array

    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.send(array.array("H", [0x6161, 0x6262]))
            conn.send(memoryview(b"a-b-c-")[::2])
            assert await reader.readexactly(7) == b"aabbabc"

    run(main())


def test_bytearray_is_taken_as_it_was_at_the_call(run):
    async def main():
        async with Serving(framing=pyloop.Lines()) as serving:
            async with peer_of(serving.server) as (reader, _):
                conn = await serving.conn()
                data = bytearray(b"before")
                conn.send(data)
                conn.write(data)
                data[:] = b"AFTER!"
                data.clear()  # nothing holds a view of it
                assert await reader.readexactly(13) == b"before\nbefore"

    run(main())


@pytest.mark.parametrize("method", ["send", "write"])
@pytest.mark.parametrize("data", ["text", None, 5, ["a"]])
def test_what_is_not_bytes_like_is_a_type_error_that_names_it(run, method, data):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            with pytest.raises(TypeError, match=f"expected bytes-like, got {type(data).__name__}"):
                getattr(conn, method)(data)
            conn.send(b"fine")
            assert await reader.readexactly(4) == b"fine"

    run(main())


@pytest.mark.parametrize(
    ("framing", "message", "text"),
    [
        (pyloop.Lines(), b"a\nb", r"3 bytes contains \\n"),
        (pyloop.Lines(4), b"12345", r"5 bytes is over Lines\(max_size=4\)"),
        (pyloop.Delimited(b"||"), b"a||b", "contains the separator"),
        (pyloop.FixedSize(4), b"123", r"is not of the size of FixedSize\(n=4\)"),
        (pyloop.LengthPrefixed(1), bytes(256), "does not fit the length of LengthPrefixed"),
        (pyloop.LengthPrefixed(4, max_size=9), bytes(10), "is over LengthPrefixed"),
        (pyloop.Netstring(3), b"1234", r"is over Netstring\(max_size=3\)"),
    ],
)
def test_message_that_does_not_fit_is_a_value_error_and_nothing_is_sent(
    run, framing, message, text
):
    async def main():
        async with Serving(framing=framing) as serving:
            async with peer_of(serving.server) as (reader, _):
                conn = await serving.conn()
                with pytest.raises(ValueError, match=text):
                    conn.send(message)
                assert conn.buffered == 0
                conn.write(b"only this")
                conn.close()
                assert await reader.read() == b"only this"

    run(main())


# ---- ending ----


def test_close_flushes_and_the_peer_reads_to_the_end(run):
    big = bytes(range(256)) * 20_000

    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.send(big)
            conn.close()
            assert conn.is_closing
            assert await reader.read() == big
            writer.close()
            assert await conn.state.lost is None

    run(main())


def test_close_twice_and_abort_after_the_end_are_nothing(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.close()
            conn.close()
            await reader.read()
            await until(lambda: conn.state.lost.done() or conn.close())
            conn.close()
            conn.abort()
            conn.pause_reading()
            conn.resume_reading()
            assert conn.buffered == 0

    run(main())


def test_abort_resets_the_peer_and_is_connection_aborted(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, _):
            conn = await serving.conn()
            conn.abort()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert type(await conn.state.lost) is ConnectionAbortedError
            assert serving.server.stats().aborts == 1

    run(main())


def test_abort_drops_queued_output(run):
    async def main():
        async with Serving() as serving:
            with deaf_peer(serving.server) as sock:
                conn = await serving.conn()
                conn.send(bytes(8_000_000))
                assert conn.buffered > 0
                conn.abort()
                with pytest.raises(ConnectionResetError):
                    await read_all(sock)
            assert conn.buffered == 0

    run(main())


def test_messages_behind_a_close_are_dropped(run):
    async def main():
        seen = []

        def handler(conn, message):
            seen.append(message)
            conn.send(b"one is enough")
            conn.close()

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"1\n2\n3\n") == b"one is enough\n"
        assert seen == [b"1"]

    run(main())


def test_close_of_another_connection_in_the_same_batch_drops_its_messages(run):
    async def main():
        conns, seen = [], []

        def handler(conn, message):
            seen.append(message)
            if message.startswith(b"hello"):
                conns.append(conn)
                conn.send(message)
            elif len(seen) == 3:  # the first of the batch closes the other
                next(other for other in conns if other is not conn).close()

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as a, peer_of(server) as b:
                for peer in (a, b):
                    await answer(peer, b"hello\n")
                for _, writer in (a, b):
                    writer.get_extra_info("socket")
                    writer.write(b"one\ntwo\n")  # both are there before the loop waits again
                await asyncio.wait(
                    [asyncio.create_task(peer[0].read()) for peer in (a, b)],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                await until(lambda: len(seen) >= 4)
        assert seen == [b"hello", b"hello", b"one", b"two"]

    run(main())


def test_close_by_another_handler_flushes_what_was_sent_to_a_conversation(run, caplog):
    async def main():
        conns = {}

        async def handler(conn):
            async for name in conn:
                conns[name] = conn
                if name == b"kick":
                    conns[b"victim"].send(b"bye")
                    conns[b"victim"].close()
                else:
                    conn.send(b"in")

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as victim, peer_of(server) as (_, kicker):
                await answer(victim, b"victim\n", 3)
                kicker.write(b"kick\n")
                assert await victim[0].read() == b"bye\n"
        assert caplog.records == []

    run(main())


def test_wait_closed_returns_when_all_is_out(run):
    async def main():
        async with Serving(linger=30) as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.send(bytes(3_000_000))
            conn.close()
            waiting = [asyncio.create_task(conn.wait_closed()) for _ in range(2)]
            assert len(await reader.read()) == 3_000_000
            assert not any(task.done() for task in waiting)
            writer.close()
            await asyncio.gather(*waiting)
            assert conn.state.lost.done()
            await conn.wait_closed()

    run(main())


# ---- after the end ----


def test_send_on_a_closing_or_lost_connection_is_dropped_and_counted(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.close()
            conn.send(b"x")
            conn.write(b"x")
            assert serving.server.stats().dropped == 2
            assert await reader.read() == b""
            writer.close()
            await conn.state.lost
            loop = asyncio.get_running_loop()
            before = loop.stats().dropped + serving.server.stats().dropped
            conn.send(b"x")
            conn.write(b"x")
            assert loop.stats().dropped + serving.server.stats().dropped == before + 2

    run(main())


def lose(how, conn, writer):
    if how == "reset":
        reset(writer)
    else:
        getattr(conn, how)()


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_drain_after_the_end_raises_connection_closed(run, how):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (_, writer):
            conn = await serving.conn()
            lose(how, conn, writer)
            for _ in range(2):
                if how != "reset":
                    with pytest.raises(pyloop.ConnectionClosed, match="127.0.0.1"):
                        await conn.drain()
                writer.close()
                await conn.state.lost
                how = "reset"
            with pytest.raises(ConnectionError):
                await conn.drain()

    run(main())


def test_receive_after_close_raises_connection_closed_also_when_lost(run):
    async def main():
        outcome = asyncio.get_running_loop().create_future()

        async def handler(conn):
            errors = []
            conn.close()
            for _ in range(2):
                try:
                    errors.append(await conn.receive())
                except pyloop.ConnectionClosed as exc:
                    errors.append(str(exc))
                await conn.wait_closed()
            outcome.set_result((errors, conn.peername))

        async with pyloop.Server(handler) as server:
            assert await exchange(server, b"") == b""
            errors, _ = await outcome
            assert ["receive: the connection to" in str(error) for error in errors] == [True] * 2

    run(main())


def test_broadcast_to_a_closing_connection_does_not_raise(run):
    async def main():
        async with Serving(framing=pyloop.Lines()) as serving:
            async with peer_of(serving.server) as (reader1, _), peer_of(serving.server) as (r2, _):
                first, second = await serving.conn(), await serving.conn()
                first.close()
                serving.server.broadcast(b"news")
                assert await r2.readexactly(5) == b"news\n"
                assert await reader1.read() == b""
                serving.server.broadcast(b"x", exclude=second)
                with pytest.raises(ValueError, match="contains"):
                    serving.server.broadcast(b"a\nb")
                serving.server.broadcast(b"end", exclude=[first])
                assert await r2.readexactly(4) == b"end\n"

    run(main())


# ---- what it is ----


def test_names_state_server_and_repr(run):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (_, writer):
            conn = await serving.conn()
            peername = writer.get_extra_info("sockname")
            assert conn.peername == peername
            assert conn.sockname == writer.get_extra_info("peername")
            assert conn.server is serving.server
            assert isinstance(conn.state, Held)
            assert str(peername[1]) in repr(conn) and "open" in repr(conn)
            assert conn in serving.server.connections
            conn.abort()
            await conn.state.lost
            assert conn.peername == peername
            assert conn.sockname is None
            assert conn.server is serving.server
            assert conn not in serving.server.connections

    run(main())


def test_ipv6_names_are_four_tuples(run):
    async def main():
        async with Serving(host="::1") as serving:
            async with peer_of(serving.server, "::1") as (_, writer):
                conn = await serving.conn()
                assert conn.peername == writer.get_extra_info("sockname")
                assert conn.sockname == writer.get_extra_info("peername")

    run(main())


def test_peername_is_what_accept_gave_even_if_the_peer_left_at_once(run):
    async def main():
        async with Serving() as serving:
            async with peer_of(serving.server) as (_, writer):
                peername = writer.get_extra_info("sockname")
                reset(writer)
            conn = await serving.conn()
            await conn.state.lost
            assert conn.peername == peername

    run(main())


def test_ids_are_never_used_twice_and_a_stale_one_reaches_nobody(run):
    async def main():
        ids = set()
        async with Serving() as serving:
            for _ in range(50):
                async with peer_of(serving.server) as (reader, writer):
                    conn = await serving.conn()
                    ids.add(conn.id)
                    conn.abort()
                await conn.state.lost
            async with peer_of(serving.server) as (reader, writer):
                fresh = await serving.conn()
                conn.send(b"stale")
                conn.abort()
                conn.close()
                fresh.send(b"fresh")
                assert await reader.readexactly(5) == b"fresh"
                ids.add(fresh.id)
        assert len(ids) == 51

    run(main())


# ---- other threads ----


@pytest.mark.parametrize(
    "use",
    [
        lambda conn: conn.send(b"x"),
        lambda conn: conn.write(b"x"),
        lambda conn: conn.close(),
        lambda conn: conn.abort(),
        lambda conn: conn.pause_reading(),
        lambda conn: conn.resume_reading(),
        lambda conn: conn.buffered,
        lambda conn: conn.sockname,
        lambda conn: conn.server.broadcast(b"x"),
    ],
    ids=["send", "write", "close", "abort", "pause", "resume", "buffered", "sockname", "broadcast"],
)
def test_use_from_another_thread_names_call_soon_threadsafe(run, use):
    async def main():
        async with Serving() as serving, peer_of(serving.server) as (reader, writer):
            conn = await serving.conn()
            conn.pause_reading()
            errors = []

            def elsewhere():
                try:
                    use(conn)
                except RuntimeError as exc:
                    errors.append(str(exc))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
            assert [("call_soon_threadsafe" in error) for error in errors] == [True]
            conn.resume_reading()
            conn.send(b"unharmed")
            assert await reader.readexactly(8) == b"unharmed"
            writer.write(b"still read")
            await until(lambda: conn.state.messages)

    run(main())
