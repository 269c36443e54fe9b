"""Monitors: slow callbacks are told of, to a hook and in debug mode."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time

import pytest
from peers import answer, exchange, peer_of, until

import pyloop


class Slow:
    """A hook that is told of every callback, and keeps what it is told."""

    def __init__(self, loop):
        self.told = []
        loop.slow_callback_duration = 0
        loop.slow_callback_hook = self

    def __call__(self, name, seconds, handle):
        assert seconds >= 0
        self.told.append((name, handle))

    @property
    def names(self):
        return [name for name, _ in self.told]


def run_once(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def plain(*args):
    pass


def echo(conn, message):
    conn.send(message)


# ---- the hook ----


def test_hook_is_told_of_each_slow_callback_with_its_handle(loop):
    slow = Slow(loop)
    handles = [
        loop.call_soon(plain),
        loop.call_soon(functools.partial(functools.partial(plain, 1), 2)),
        loop.call_soon([].append, 1),
        loop.call_later(0, plain, 1),
    ]
    run_once(loop)
    stop = slow.told.pop(3)
    assert stop[0].endswith(".stop")
    assert slow.told == list(zip(["plain", "plain", "list.append", "plain"], handles, strict=True))


def test_hook_that_a_thread_sets_while_the_loop_waits_is_told_of_what_the_wait_brings(loop):
    def hook_in():
        while not loop._waiting:
            time.sleep(0.001)
        hooks.append(Slow(loop))
        loop.call_soon_threadsafe(plain)
        loop.call_soon_threadsafe(loop.stop)

    hooks = []
    thread = threading.Thread(target=hook_in)
    thread.start()
    loop.run_forever()
    thread.join()
    assert hooks[0].names[0] == "plain"


def test_coroutine_is_named_and_not_the_machinery_of_tasks(loop):
    async def coroutine():
        await asyncio.sleep(0.001)

    slow = Slow(loop)
    loop.run_until_complete(coroutine())
    name = coroutine.__qualname__
    assert slow.names.count(name) == 2 and slow.told[0][0] == name
    assert isinstance(slow.told[0][1], asyncio.Handle)


class Chat(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        self.conn.send(message)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (echo, ["echo", "echo", "echo", "echo"]),
        (
            Chat,
            [
                "Chat.connection_made",
                "Chat.message_received",
                "Chat.eof_received",
                "Chat.connection_lost",
            ],
        ),
    ],
)
def test_handlers_of_connections_are_told_of_without_a_handle(run, loop, handler, expected):
    async def main():
        async with pyloop.Server(handler, framing=pyloop.Lines()) as server:
            slow = Slow(loop)
            assert await exchange(server, b"hello\n") == b"hello\n"
            await until(lambda: server.stats().open == 0)
            loop.slow_callback_hook = None
            names = [name for name, handle in slow.told if handle is None]
            others = "Dispatch.deliver", "StreamReaderProtocol."  # the latter are the peer's
            return [name for name in names if not name.startswith(others)]

    assert run(main()) == expected


def test_callback_below_the_threshold_is_not_told_of(loop):
    slow = Slow(loop)
    loop.slow_callback_duration = math.inf
    loop.call_soon(plain)
    run_once(loop)
    loop.slow_callback_duration = 0
    loop.slow_callback_hook = None
    run_once(loop)
    assert slow.told == []


def test_hook_that_raises_is_reported_and_ends_nothing(run, loop):
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context))

    def hook(name, seconds, handle):
        raise LookupError(name)

    async def main():
        async with pyloop.Server(echo, framing=pyloop.Lines()) as server:
            async with peer_of(server) as peer:
                loop.slow_callback_duration = 0
                loop.slow_callback_hook = hook
                for _ in range(3):
                    assert await answer(peer, b"hello\n") == b"hello\n"
                loop.slow_callback_hook = None
            assert server.stats().aborts == 0

    run(main())
    echoes = [context for context in told if str(context["exception"]) == "echo"]
    assert len(echoes) == 3
    assert {context["message"] for context in echoes} == {
        "Exception in slow_callback_hook, told of echo"
    }
    assert all(type(context["exception"]) is LookupError for context in told)


def test_exit_out_of_a_hook_leaves_run(loop):
    def hook(name, seconds, handle):
        loop.slow_callback_hook = None
        raise KeyboardInterrupt

    Slow(loop)
    loop.slow_callback_hook = hook
    loop.call_soon(plain)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    run_once(loop)


def test_hook_that_cannot_be_called_is_refused(loop):
    with pytest.raises(
        TypeError, match=r"^slow_callback_hook: expected None or a callable, got 1$"
    ):
        loop.slow_callback_hook = 1
    assert loop.slow_callback_hook is None


def test_callback_that_raises_is_reported_under_a_hook_too(loop):
    told = []
    loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
    Slow(loop)
    loop.call_soon(lambda: 1 / 0)
    run_once(loop)
    assert told == [ZeroDivisionError]


def test_debug_mode_reports_handlers_of_connections_as_well(run, loop, caplog):
    async def main():
        loop.set_debug(True)
        async with pyloop.Server(Chat, framing=pyloop.Lines()) as server:
            loop.slow_callback_duration = 0
            assert await exchange(server, b"hello\n") == b"hello\n"
            loop.slow_callback_duration = math.inf

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    texts = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert any(text.startswith("Executing <Chat.message_received> took 0.") for text in texts)
    assert any(text.startswith("Executing <Task ") for text in texts)
    assert any(text.startswith("Executing <Handle ") for text in texts)
