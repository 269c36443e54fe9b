"""Protocols that are state machines: an instance may change its own message_received."""

from __future__ import annotations

import functools

import pytest
from peers import answer, exchange, peer_of, tls_contexts

import pyloop


class Machine(pyloop.Protocol):
    """First a length, then as many messages of body, then a length again."""

    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        self.left = int(message)
        self.conn.send(b"header %d" % self.left)
        self.message_received = self.body

    def body(self, message):
        self.conn.send(b"body " + message)
        self.left -= 1
        if not self.left:
            del self.message_received


DIALOGUE = b"2\n3\n4\n1\n5\n6\n"
ANSWERS = b"header 2\nbody 3\nbody 4\nheader 1\nbody 5\nheader 6\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_method_set_on_the_instance_gets_the_later_messages_of_one_batch(run, tls):
    ours, theirs = tls_contexts() if tls else (None, None)

    async def main():
        server = pyloop.Server(Machine, framing=pyloop.Lines(), ssl=ours)
        async with server, peer_of(server, ssl=theirs) as peer:
            assert await answer(peer, DIALOGUE, len(ANSWERS)) == ANSWERS

    run(main())


def test_method_set_on_the_instance_gets_messages_of_later_turns(run):
    async def main():
        server = pyloop.Server(Machine, framing=pyloop.Lines())
        async with server, peer_of(server) as (reader, writer), peer_of(server) as other:
            for line, reply in zip(
                DIALOGUE.splitlines(True), ANSWERS.splitlines(True), strict=True
            ):
                writer.write(line)
                assert await reader.readline() == reply
            assert await answer(other, b"7\n", 9) == b"header 7\n", "another starts anew"

    run(main())


@pytest.mark.parametrize("how", ["method", "partial", "function"])
def test_method_set_in_connection_made_gets_the_first_message(run, how):
    class Switched(pyloop.Protocol):
        def connection_made(self, conn):
            self.conn = conn
            self.message_received = {
                "method": self.mine,
                "partial": functools.partial(Switched.mine, self),
                "function": lambda message: self.mine(message),
            }[how]

        def message_received(self, message):
            self.conn.send(b"the class's")

        def mine(self, message):
            self.conn.send(b"mine: " + message)

    async def main():
        async with pyloop.Server(Switched, framing=pyloop.Lines()) as server:
            assert await exchange(server, b"a\nb\n") == b"mine: a\nmine: b\n"

    run(main())


def test_method_set_on_a_clients_protocol_is_honoured(run):
    async def main():
        got = []

        class Client(pyloop.Protocol):
            def connection_made(self, conn):
                self.conn = conn

            def message_received(self, message):
                got.append((b"first", message))
                self.message_received = self.rest

            def rest(self, message):
                got.append((b"rest", message))
                self.conn.close()

        async def greet(conn):
            conn.write(b"a\nb\n")
            await conn.receive()

        async with pyloop.Server(greet, framing=pyloop.Lines()) as server:
            conn = await pyloop.connect(
                "127.0.0.1", server.port, framing=pyloop.Lines(), protocol=Client
            )
            await conn.wait_closed()
        assert got == [(b"first", b"a"), (b"rest", b"b")]

    run(main())
