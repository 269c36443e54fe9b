"""Context variables: the handlers of each connection run in a context of their own."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from peers import tls_contexts, until

import pyloop

user = contextvars.ContextVar("user", default="nobody")


def answer_with_user(conn, message):
    if message.startswith(b"login "):
        user.set(message[6:].decode())
    conn.send(user.get().encode())


class UserProtocol(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        answer_with_user(self.conn, message)


async def converse(conn):
    async for message in conn:
        answer_with_user(conn, message)


async def answer_async(conn, message):
    answer_with_user(conn, message)


HANDLERS = [answer_with_user, UserProtocol, converse, answer_async]


async def connected(server, **options):
    return await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines(), **options)


async def ask(conn, message):
    conn.send(message)
    return await conn.receive()


@pytest.fixture(autouse=True)
def nobody_is_logged_in_afterwards():
    yield
    assert user.get() == "nobody"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_variable_set_for_one_connection_is_not_seen_by_another(run, handler, tls):
    ours, theirs = tls_contexts() if tls else (None, None)

    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines(), ssl=ours) as server:
            early = await connected(server, ssl=theirs)
            alice = await connected(server, ssl=theirs)
            assert await ask(alice, b"login alice") == b"alice"
            late = await connected(server, ssl=theirs)
            assert [await ask(conn, b"who") for conn in (early, late)] == [b"nobody"] * 2
            assert await ask(late, b"login bob") == b"bob"
            assert await ask(alice, b"who") == b"alice", "it lasts as long as the connection"
            assert user.get() == "nobody"
            for conn in (early, alice, late):
                conn.close()

    run(main())
    assert user.get() == "nobody"


def test_callbacks_of_one_connection_share_its_context(run):
    async def main():
        seen = asyncio.get_running_loop().create_future()

        class Sharing(pyloop.Protocol):
            calls = 0

            def at(self, name):
                assert user.get() == str(self.calls or "nobody"), name
                self.calls += 1
                user.set(str(self.calls))

            def connection_made(self, conn):
                self.conn = conn
                self.at("made")

            def message_received(self, message):
                self.at("message")

            def eof_received(self):
                self.at("eof")

            def connection_lost(self, exc):
                self.at("lost")
                seen.set_result((self.calls, exc))

        async with pyloop.Server(Sharing, framing=pyloop.Lines()) as server:
            conn = await connected(server)
            conn.write(b"one\ntwo\n")
            conn.close_writing()
            assert await seen == (5, None)
            conn.close()

    run(main())


@pytest.mark.parametrize("handler", [UserProtocol, converse])
def test_variable_set_before_start_is_seen_by_handlers(run, handler):
    async def main():
        user.set("owner")
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            conn = await connected(server)
            assert await ask(conn, b"who") == b"owner"
            assert await ask(conn, b"login alice") == b"alice"
            conn.close()
        assert user.get() == "owner"

    run(main())


def test_task_made_in_a_handler_has_the_context_of_its_connection(run):
    async def main():
        tasks = []

        async def later(conn):
            conn.send(b"later " + user.get().encode())

        def handler(conn, message):
            user.set(message.decode())
            tasks.append(asyncio.create_task(later(conn)))

        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            conns = [await connected(server) for _ in range(3)]
            for number, conn in enumerate(conns):
                conn.send(b"%d" % number)
            answers = [await conn.receive() for conn in conns]
            assert answers == [b"later %d" % number for number in range(3)]
            for conn in conns:
                conn.close()

    run(main())


def test_client_protocols_have_contexts_of_their_own(run):
    async def main():
        made = []

        class Client(UserProtocol):
            def connection_made(self, conn):
                super().connection_made(conn)
                made.append(self)
                self.got = []

            def message_received(self, message):
                user.set(message.decode())
                self.got.append(user.get())

        def name(conn, message):
            conn.send(message)

        async with pyloop.Server(name, framing=pyloop.Lines()) as server:
            conns = [await connected(server, protocol=Client) for _ in range(2)]
            for number, conn in enumerate(conns):
                conn.send(b"client %d" % number)
            await until(lambda: all(client.got for client in made))
            assert [client.got for client in made] == [["client 0"], ["client 1"]]
            assert user.get() == "nobody"
            for conn in conns:
                conn.close()
                await conn.wait_closed()

    run(main())
