"""Connections that have ended are freed by reference counts: nothing waits for the collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import sys
import weakref

import pytest
from peers import peer_of, reset, tls_contexts, until

import pyloop

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython counts references"
)
COUNT = 5


@pytest.fixture
def no_collector(monkeypatch):
    """No garbage collection, and no log records that keep tracebacks alive."""
    monkeypatch.setattr(logging.getLogger("pyloop"), "disabled", True)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Born(list):
    """Weak references to connections."""

    def add(self, conn):
        self.append(weakref.ref(conn))

    def alive(self):
        return [ref() for ref in self if ref() is not None]


def handlers(born):
    """Each kind of handler, good and bad, by name."""

    def function(conn, message):
        born.add(conn)
        conn.send(message)

    def raising(conn, message):
        born.add(conn)
        conn.send(message)
        raise LookupError("a fault")

    class Echo(pyloop.Protocol):
        def connection_made(self, conn):
            born.add(conn)
            self.conn = conn

        def message_received(self, message):
            self.conn.send(message)

    async def conversation(conn):
        born.add(conn)
        async for message in conn:
            conn.send(message)

    async def receiving(conn):
        born.add(conn)
        try:
            while message := await conn.receive():
                conn.send(message)
        except OSError:
            pass

    async def failing(conn):
        born.add(conn)
        conn.send(await conn.receive())
        await conn.receive()
        raise LookupError("a fault")

    async def per_message(conn, message):
        born.add(conn)
        conn.send(message)

    every = (function, raising, Echo, conversation, receiving, failing, per_message)
    return {handler.__name__: handler for handler in every}


HANDLERS = [*handlers(None)]


async def settled(server, born):
    """Wait for the end of the connections and let the loop drop what it holds."""
    await until(lambda: not server.connections)
    await server.stop()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(born) >= COUNT
    assert born.alive() == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("name", HANDLERS)
def test_connection_of_each_handler_is_freed_when_it_ends(run, name, how):
    async def visit(server):
        async with peer_of(server) as (reader, writer):
            writer.write(b"x\n")
            try:
                assert await reader.readline() in (b"x\n", b"")
            except ConnectionResetError:
                assert name == "raising"
            if how == "reset" and name != "raising":  # that one has been reset
                reset(writer)

    async def main():
        born = Born()
        server = pyloop.Server(handlers(born)[name], framing=pyloop.Lines())
        await server.start()
        for _ in range(COUNT):
            await visit(server)
        await settled(server, born)

    run(main())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["close", "abort", "eof", "reset"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_client_is_freed_when_it_ends(run, tls, how):
    ours, theirs = tls_contexts() if tls else (None, None)

    def end(conn, message):
        conn.send(message)
        if how == "eof":
            conn.close()
        elif message == b"again" and how == "reset":
            conn.abort()

    async def visit(server, born):
        conn = await pyloop.connect("127.0.0.1", server.port, ssl=theirs, framing=pyloop.Lines())
        born.add(conn)
        conn.send(b"x")
        assert await conn.receive() == b"x"
        conn.send(b"again")
        if how in ("eof", "reset"):
            try:
                while await conn.receive() is not None:
                    pass
            except OSError:
                pass
        (conn.abort if how == "abort" else conn.close)()
        await conn.wait_closed()

    async def main():
        born = Born()
        server = pyloop.Server(end, framing=pyloop.Lines(), ssl=ours)
        await server.start()
        for _ in range(COUNT):
            await visit(server, born)
        await settled(server, born)

    run(main())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["close", "cut"])
@pytest.mark.parametrize("name", ["function", "Echo", "conversation"])
def test_tls_connection_is_freed_when_it_ends(run, name, how):
    async def main():
        ours, theirs = tls_contexts()
        born = Born()
        server = pyloop.Server(handlers(born)[name], framing=pyloop.Lines(), ssl=ours)
        await server.start()
        for _ in range(COUNT):
            async with peer_of(server, ssl=theirs) as (reader, writer):
                writer.write(b"x\n")
                assert await reader.readline() == b"x\n"
                if how == "cut":  # without notice
                    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ssl.SSLError):  # what OpenSSL has to say about it
                        await reader.read()
        await settled(server, born)

    run(main())
