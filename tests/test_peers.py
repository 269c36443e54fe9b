"""Peers that misbehave: it ends their own connection, in good order, and nobody else's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faults import constant, open_fds
from peers import RESET, answer, peer_of, reset, until

import pyloop

Connection = pyloop.Connection
IDLE = 0.4
"""An idle_timeout: long beside a turn of a busy loop, short for a test."""


class Witness(pyloop.Protocol):
    """Echoes, and remembers whom it saw come and go, and why."""

    made: int
    lost: list[BaseException | None]
    conns: list[Connection]

    def __init__(self, log: Log) -> None:
        self.log = log

    def connection_made(self, conn: Connection) -> None:
        self.conn = conn
        self.log.made.append(conn)

    def message_received(self, message: bytes) -> None:
        self.log.messages.append((self.conn, message))
        self.conn.send(message)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.log.lost.append(exc)


class Log:
    """What Witnesses have seen."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.lost: list[BaseException | None] = []
        self.messages: list[tuple[Connection, bytes]] = []


@asynccontextmanager
async def witnessed(
    framing: Any = None, **options: Any
) -> AsyncIterator[tuple[pyloop.Server, Log]]:
    """A server of Witnesses, and what they saw."""
    log = Log()
    framing = pyloop.Lines() if framing is None else framing
    async with pyloop.Server(lambda: Witness(log), framing=framing, **options) as server:
        yield server, log


# ---- peers that go ----


def test_reset_in_the_middle_of_a_message_is_told_and_harms_nobody(run: Any) -> None:
    async def main() -> None:
        async with witnessed() as (server, log), peer_of(server) as good:
            async with peer_of(server) as bad:
                await answer(bad, b"whole\n")
                bad[1].write(b"only half of a mess")
                await until(lambda: server.stats().bytes_in == 6 + 19)
                reset(bad[1])
                await until(lambda: log.lost)
            assert isinstance(log.lost[0], ConnectionResetError)
            assert [message for _, message in log.messages] == [b"whole"]
            assert await answer(good, b"well\n") == b"well\n"
            assert server.stats().framing_errors == 0

    run(main())


def test_peer_that_sends_nothing_and_goes_is_lost_without_an_error(run: Any) -> None:
    async def main() -> None:
        async with witnessed() as (server, log):
            async with peer_of(server):
                await until(lambda: log.made)
                assert not log.lost
            await until(lambda: log.lost)
            async with peer_of(server):
                pass  # closed at once, perhaps before it was accepted
            await until(lambda: len(log.lost) == 2)
            assert log.lost == [None, None] and log.messages == []

    run(main())


def test_half_close_gets_all_answers_and_then_end_of_stream(run: Any) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(5000))

    async def main() -> None:
        async with witnessed() as (server, log), peer_of(server) as (reader, writer):
            writer.write(lines)
            writer.write_eof()
            assert await reader.read() == lines
            await until(lambda: log.lost)
            assert log.lost == [None]

    run(main())


def test_thousand_connections_reset_at_once_leave_nothing_behind(run: Any) -> None:
    async def main() -> None:
        async with witnessed(backlog=4096) as (server, log), peer_of(server) as good:
            await answer(good, b"before\n")
            fds = 0
            for round_ in range(1, 11):
                socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
                for number, sock in enumerate(socks):
                    sock.sendall(b"half" if number % 2 else b"whole\n")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    sock.close()
                await until(lambda: server.stats().accepted == 1 + 100 * round_)  # noqa: B023
                await until(lambda: server.stats().open == 1)
                fds = fds or len(open_fds())  # by now, auto has moved
            await until(lambda: len(log.lost) == len(log.made) - 1)
            assert len(log.made) == 1001 == server.stats().accepted
            assert await answer(good, b"after\n") == b"after\n"
            assert len(open_fds()) == fds and len(server.connections) == 1

    run(main())


# ---- peers that are slow ----


async def drip(sock: socket.socket, server: pyloop.Server, log: Log) -> None:
    """Send a message that never ends, a byte at a time, each taken before the next, until lost."""
    loop, sent = asyncio.get_running_loop(), server.stats().bytes_in
    while not log.lost:
        try:
            await loop.sock_sendall(sock, b"x")
        except ConnectionError:
            return
        sent += 1
        await until(lambda: server.stats().bytes_in == sent or log.lost)  # noqa: B023


@pytest.mark.parametrize("limit", ["idle_timeout", "message_timeout"])
def test_message_that_never_ends_is_timed_out_while_its_bytes_come(run: Any, limit: str) -> None:
    async def main() -> None:
        options = {limit: IDLE, "linger": 0.0}
        async with witnessed(pyloop.Lines(1 << 30), **options) as (server, log):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.setblocking(False)
                await drip(sock, server, log)
            await until(lambda: log.lost)
            assert [type(exc) for exc in log.lost] == [TimeoutError]
            assert str(log.lost[0]) == f"{limit} passed"
            assert server.stats().timeouts == 1 and log.messages == []

    run(main())


def test_receive_raises_the_time_out(run: Any) -> None:
    raised: list[BaseException] = []

    async def handler(conn: Connection) -> None:
        try:
            await conn.receive()
        except TimeoutError as exc:
            raised.append(exc)

    async def main() -> None:
        server = pyloop.Server(handler, framing=pyloop.Lines(), idle_timeout=IDLE)
        async with server, peer_of(server) as (reader, _):
            assert await reader.read() == b""
            assert str(raised[0]) == "idle_timeout passed"

    run(main())


async def outlive(server: pyloop.Server, turn: Callable[[], Any]) -> None:
    """Take turns while two silent peers, one after the other, are timed out."""
    for number in (1, 2):
        async with peer_of(server):
            while server.stats().timeouts < number:
                await turn()


def test_whole_messages_keep_a_peer_from_idling(run: Any) -> None:
    async def main() -> None:
        async with witnessed(idle_timeout=IDLE) as (server, log), peer_of(server) as busy:
            await outlive(server, lambda: answer(busy, b"ping\n"))
            assert await answer(busy, b"still here\n") == b"still here\n"
            assert [type(exc) for exc in log.lost] == [TimeoutError] * 2

    run(main())


def test_output_that_is_taken_keeps_a_peer_from_idling(run: Any) -> None:
    async def main() -> None:
        async with witnessed(idle_timeout=IDLE) as (server, log), peer_of(server) as (reader, _):
            await until(lambda: log.made)
            listener = log.made[0]

            async def push() -> None:
                listener.send(b"news")
                assert await reader.readexactly(5) == b"news\n"

            await outlive(server, push)
            await push()
            assert listener in server.connections

    run(main())


# ---- peers that send nonsense ----

BAD = {
    "line too long": (pyloop.Lines(10), b"x" * 11),
    "separator never comes": (pyloop.Delimited(b"||", 10), b"x" * 13),
    "prefix over the limit": (pyloop.LengthPrefixed(4, max_size=100), b"\0\0\0\x65"),
    "prefix of 8 bytes": (pyloop.LengthPrefixed(8), b"\xff" * 8),
    "varint without an end": (pyloop.LengthPrefixed("varint"), b"\xff" * 11),
    "netstring over the limit": (pyloop.Netstring(100), b"101:"),
    "netstring without a length": (pyloop.Netstring(), b"abc:"),
    "netstring without a comma": (pyloop.Netstring(), b"3:abc;"),
}


@pytest.mark.parametrize(("framing", "nonsense"), BAD.values(), ids=BAD)
def test_nonsense_ends_its_connection_after_the_replies(
    run: Any, framing: Any, nonsense: bytes
) -> None:
    head, tail = framing.wrap(b"good")
    good = head + b"good" + tail

    async def main() -> None:
        async with witnessed(framing) as (server, log), peer_of(server) as other:
            assert await answer(other, good) == good
            async with peer_of(server) as (reader, writer):
                writer.write(good * 3 + nonsense + b"more of it" * 1000)
                assert await reader.read() == good * 3
            await until(lambda: log.lost)
            assert [type(exc) for exc in log.lost] == [pyloop.FramingError]
            assert [message for _, message in log.messages] == [b"good"] * 4
            assert await answer(other, good) == good
            stats = server.stats()
            assert (stats.framing_errors, stats.aborts, stats.open) == (1, 0, 1)

    run(main())


def test_receive_raises_the_framing_error_behind_the_messages(run: Any) -> None:
    got: list[Any] = []

    async def handler(conn: Connection) -> None:
        try:
            async for message in conn:
                got.append(message)
                conn.send(message)
        except pyloop.FramingError as exc:
            got.append(str(exc))

    async def main() -> None:
        server = pyloop.Server(handler, framing=pyloop.Netstring(9))
        async with server, peer_of(server) as (reader, writer):
            assert await answer((reader, writer), b"1:a,2:bc,") == b"1:a,2:bc,"
            writer.write(b"1:d,10:")
            assert await reader.read() == b"1:d,", "what came before the fault is answered"
            assert got == [b"a", b"bc", b"d", "message over max_size"]

    run(main())


def test_message_cut_off_by_the_end_of_stream_is_a_framing_error(run: Any) -> None:
    async def main() -> None:
        async with witnessed(pyloop.Netstring()) as (server, log):
            async with peer_of(server) as (reader, writer):
                writer.write(b"1:a,5:abc")
                writer.write_eof()
                assert await reader.read() == b"1:a,"
            await until(lambda: log.lost)
            assert [str(exc) for exc in log.lost] == ["incomplete message"]

    run(main())


# ---- peers that are greedy ----


def test_segment_of_empty_lines_does_not_starve_others(run: Any) -> None:
    count = constant("READ_BUDGET_BYTES")

    async def main() -> None:
        async with witnessed() as (server, log):
            async with peer_of(server) as greedy, peer_of(server) as modest:
                await answer(greedy, b"one\n")
                await answer(modest, b"two\n")
                del log.messages[:]
                greedy[1].write(b"\n" * count)
                modest[1].write(b"me too\n")
                assert await modest[0].readexactly(7) == b"me too\n"
                await until(lambda: len(log.messages) == count + 1)
                place = [message for _, message in log.messages].index(b"me too")
                assert place <= 2 * constant("CONN_BUDGET_EVENTS")
                assert await greedy[0].readexactly(count) == b"\n" * count

    run(main())


async def flood(sock: socket.socket, done: asyncio.Event) -> None:
    """Send lines as fast as they are taken, until `done`."""
    lines = b"flood\n" * 20000
    while not done.is_set():
        await asyncio.get_running_loop().sock_sendall(sock, lines)


def test_flood_on_one_connection_does_not_starve_another(run: Any) -> None:
    gaps: list[int] = []

    def count(conn: Connection, message: bytes) -> None:
        gaps[-1] += message == b"flood"
        if message == b"ping":
            conn.send(message)

    async def main() -> None:
        done = asyncio.Event()
        server = pyloop.Server(count, framing=pyloop.Lines())
        with socket.socket() as sock:
            async with server, peer_of(server) as modest:
                gaps.append(0)
                sock.connect(("127.0.0.1", server.port))
                sock.setblocking(False)
                flooding = asyncio.create_task(flood(sock, done))
                await until(lambda: gaps[-1])
                for _ in range(50):
                    gaps.append(0)
                    await answer(modest, b"ping\n")
                assert max(gaps[1:]) <= 8 * constant("CONN_BUDGET_EVENTS")
                done.set()
                await flooding
                sock.close()
                await until(lambda: server.stats().open == 1)

    run(main())
    assert sum(gaps[1:]) > 50, "the flood went on meanwhile"


def test_stop_delivers_a_long_segment_to_its_end(run: Any) -> None:
    count = constant("READ_BUDGET_BYTES")  # messages of one byte: more than one tick delivers
    got: list[bytes] = []
    lost: list[BaseException | None] = []

    class Handler(pyloop.Protocol):
        def message_received(self, message: bytes) -> None:
            if not got:
                stopping.append(asyncio.ensure_future(server.stop()))
            got.append(message)

        def connection_lost(self, exc: BaseException | None) -> None:
            lost.append(exc)

    async def main() -> None:
        async with server, peer_of(server) as (reader, writer):
            writer.write(b"\n" * count)
            assert await reader.read() == b""
            await until(lambda: lost)
            await stopping[0]

    stopping: list[asyncio.Future[None]] = []
    server = pyloop.Server(Handler, framing=pyloop.Lines(), drain_timeout=3.0)
    run(main())
    assert len(got) == count and lost == [None]
