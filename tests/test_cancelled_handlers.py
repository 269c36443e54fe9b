"""CancelledError out of a handler, of a future that was cancelled: it ends one connection only."""

from __future__ import annotations

import asyncio

import pytest
from peers import answer, peer_of, tls_contexts, until

import pyloop


def cancelled_result():
    """Raise CancelledError as the result of a cancelled future does."""
    future = asyncio.get_running_loop().create_future()
    future.cancel("nobody wants it")
    return future.result()


def function(conn, message):
    conn.send(cancelled_result() if message == b"bad" else message)


class OnMessage(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        function(self.conn, message)


async def conversation(conn):
    async for message in conn:
        function(conn, message)


async def per_message(conn, message):
    function(conn, message)


HANDLERS = [function, OnMessage, conversation, per_message]


async def expect_abort(peer):
    """Send what makes the handler raise; the connection is reset."""
    reader, writer = peer
    writer.write(b"bad\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()


@pytest.mark.parametrize("handler", HANDLERS)
def test_cancelled_error_aborts_its_connection_only(run, handler):
    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as good, peer_of(server) as bad:
                assert await answer(good, b"before\n") == b"before\n"
                await expect_abort(bad)
                assert await answer(good, b"after\n") == b"after\n"
            async with peer_of(server) as late:
                assert await answer(late, b"late\n") == b"late\n"
            assert server.stats().aborts == 1

    run(main())


@pytest.mark.parametrize("handler", HANDLERS[:2])
def test_cancelled_error_is_logged_with_the_address(run, caplog, handler):
    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            async with peer_of(server) as bad:
                host, port = bad[1].get_extra_info("sockname")
                await expect_abort(bad)
        [record] = [entry for entry in caplog.records if entry.name == "pyloop"]
        assert record.getMessage() == f"handler of {host}:{port} raised; connection aborted"
        assert isinstance(record.exc_info[1], asyncio.CancelledError)

    run(main())


def test_cancelled_error_over_tls_aborts_its_connection_only(run):
    ours, theirs = tls_contexts()

    class OnMade(pyloop.Protocol):
        def connection_made(self, conn):
            if not conn.server.stats().aborts:
                cancelled_result()
            self.conn = conn

        def message_received(self, message):
            self.conn.send(message)

    async def main():
        async with pyloop.Server(OnMade, framing=pyloop.Lines(), ssl=ours) as server:
            async with peer_of(server, ssl=theirs) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            async with peer_of(server, ssl=theirs) as good:
                assert await answer(good, b"x\n") == b"x\n"

    run(main())


def test_cancelled_error_from_a_maker_of_protocols_aborts_its_connection_only(run):
    async def main():
        outcomes = [cancelled_result, OnMessage]
        server = pyloop.Server(lambda: outcomes.pop(0)(), framing=pyloop.Lines())
        async with server:
            with pytest.raises(ConnectionResetError):  # as early as in connect
                async with peer_of(server) as (reader, _):
                    await reader.read()
            async with peer_of(server) as good:
                assert await answer(good, b"x\n") == b"x\n"

    run(main())


@pytest.mark.parametrize("place", ["connection_made", "message_received", "connection_lost"])
def test_cancelled_error_from_a_clients_protocol_ends_that_client_only(run, caplog, place):
    class Client(pyloop.Protocol):
        def connection_made(self, conn):
            conn.write(b"hello\n")
            if place == "connection_made":
                cancelled_result()

        def message_received(self, message):
            if place == "message_received":
                cancelled_result()

        def connection_lost(self, exc):
            if place == "connection_lost":
                cancelled_result()

    async def main():
        async with pyloop.Server(function, framing=pyloop.Lines()) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, protocol=Client)
            if place == "connection_lost":
                conn.close()
            async with asyncio.timeout(20):
                await conn.wait_closed()
                await until(lambda: not server.connections)
            async with peer_of(server) as good:
                assert await answer(good, b"x\n") == b"x\n"
        assert [entry.name for entry in caplog.records if entry.levelname == "ERROR"] == ["pyloop"]

    run(main())
