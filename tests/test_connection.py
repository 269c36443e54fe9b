"""Connection: sending, closing, names, use after the end and from other threads."""

from __future__ import annotations

import asyncio
import threading

import pytest
from peers import Held, Serving, exchange, peer_of, reset, until

import pyloop

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
                async with peer_of(serving.server):
                    conn = await serving.conn()
                    ids.add(conn.id)
                    conn.abort()
                await conn.state.lost
            async with peer_of(serving.server) as (reader, _):
                fresh = await serving.conn()
                conn.send(b"stale")
                conn.abort()
                conn.close()
                fresh.send(b"fresh")
                assert await reader.readexactly(5) == b"fresh"
                ids.add(fresh.id)
        assert len(ids) == 51

    run(main())


# ---- what is awaited of it: see test_receive.py ----


def test_receive_says_only_when_awaited_whose_the_messages_are(run):
    seen = []

    def handler(conn, message):
        seen.append(conn.receive())
        with pytest.raises(RuntimeError) as refused:
            seen[0].send(None)
        conn.send(str(refused.value).encode())

    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"x\n") == (
                b"receive() is for coroutine handlers and clients without a protocol: "
                b"the messages of this connection go to its handler\n"
            )

    run(main())


def test_tasks_are_named_for_what_they_await(run):
    async def main():
        async with pyloop.Server(lambda conn, line: None, framing=pyloop.Lines()) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines())
            waiting = conn.receive(), conn.__anext__(), conn.drain()
            names = [(one.__qualname__.partition(".")[2], one.__name__) for one in waiting]
            assert names == [(name, name) for name in ("receive", "__anext__", "drain")]
            task = asyncio.create_task(waiting[0])
            await asyncio.sleep(0)
            assert ".receive()" in repr(task)
            for one in waiting[1:]:
                one.close()
            conn.close()
            with pytest.raises(pyloop.ConnectionClosed, match=r"^receive: the connection to"):
                await task
            with pytest.raises(pyloop.ConnectionClosed, match=r"^drain: the connection to"):
                await conn.drain()

    run(main())


def test_drain_waits_for_room_also_as_a_task_that_is_cancelled(loop, run):
    async def handler(conn):
        conn.write(bytes(4 << 20))
        task = asyncio.create_task(conn.drain())
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting.set_result(conn.buffered)
        await conn.drain()
        assert conn.buffered <= 16 * 1024
        ended.set_result(None)

    async def main():
        async with pyloop.Server(handler) as server, peer_of(server) as (reader, _):
            assert await waiting > 64 * 1024
            assert len(await reader.readexactly(4 << 20)) == 4 << 20
            await ended

    waiting, ended = loop.create_future(), loop.create_future()
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
