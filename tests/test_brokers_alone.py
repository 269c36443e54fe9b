"""Brokers of the bus without a server to talk to: absent, silent, or out of its mind."""

from __future__ import annotations

import asyncio

import pytest
from brokers import BROKERS, Hearing, answering, broker_of, hearing, leaving_no_task, logged, until

import pyloop
from pyloop import remote_broker
from pyloop.errors import ConnectionClosed

KINDS = pytest.mark.parametrize("kind", BROKERS, ids=lambda kind: kind.scheme)
NOBODY = "127.0.0.1:1"
NONSENSE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\xff" * 200_000,
    b"+OK\r\n*3\r\n$8\r\npmessage\r\n:1\r\n*1\r\n:2\r\n",
    b"+OK\r\n" * 5 + b"*3\r\n$10\r\npsubscribe\r\n$1\r\nx\r\n:1\r\n",
    b"*1\r\n" * 5000,
    b"INFO {}\r\nPONG\r\nMSG a\r\nMSG a b c d e f\r\n-ERR 'no'\r\n",
    b"INFO [1]\r\nPONG\r\n",
]


@pytest.fixture
def run(run):
    """As everywhere; and at the end no task is left, as no fd is."""
    return lambda coro: run(leaving_no_task(coro))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(remote_broker, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(remote_broker, "_CLOSE_SECONDS", 0.01)


# ---- servers that are none ----


@KINDS
def test_server_that_never_says_a_word_is_tried_again(run, kind, impatient, caplog):
    async def main():
        async with answering(b"") as silent:
            where = f"{kind.scheme}://127.0.0.1:{silent.port}"
            async with hearing(where) as hears:
                hears.broker.publish("t", b"")
                await until(lambda: silent.met >= 2)
            assert f"bus over {where}: the server does not answer; trying again" in logged(caplog)
            assert hears.broker.dropped == 1

    run(main())


@KINDS
def test_server_that_talks_nonsense_is_tried_again(run, kind, impatient):
    async def meet(nonsense):
        async with answering(nonsense) as server:
            async with hearing(f"{kind.scheme}://127.0.0.1:{server.port}") as hears:
                hears.broker.listen(frozenset(["t"]))
                await until(lambda: server.met >= 3)  # two a session, over Redis
                assert hears.heard == []

    async def main():
        await asyncio.gather(*map(meet, NONSENSE))

    run(main())


def test_redis_connection_that_only_listens_is_missed_when_it_goes_silent(run, impatient):
    """As behind a gateway that has forgotten it: the other one is well."""

    def answer(number, data):
        if b"PSUBSCRIBE" in data:
            return b"*3\r\n$10\r\npsubscribe\r\n$9\r\npyloop:t*\r\n:1\r\n"
        if b"PING" in data:
            return b"+PONG\r\n" if number % 2 == 0 else b""
        return b"+OK\r\n" * data.count(b"SETINFO")

    async def main():
        async with answering(answer) as server:
            async with hearing(f"redis://127.0.0.1:{server.port}", "t") as hears:
                await hears.until(lambda heard: heard == [None])

    run(main())


# ---- losses, and the end ----


@KINDS
def test_losses_are_logged_once_a_second_and_none_is_left_out(
    run, kind, impatient, monkeypatch, caplog
):
    monkeypatch.setattr(remote_broker, "QUEUE_BYTES", 0)

    async def main():
        async with hearing(f"{kind.scheme}://{NOBODY}") as hears:
            for _ in range(3):
                for _ in range(10):
                    hears.broker.publish("t", b"")
                await asyncio.sleep(0.01)
        lines = [line for line in logged(caplog) if "lost" in line]
        lost = "messages lost: more than 0 bytes were waiting for the server"
        assert lines == [f"bus over {kind.scheme}://{NOBODY}: {n} {lost}" for n in (10, 20)]

    run(main())


@KINDS
def test_close_without_a_server_gives_up_and_ends_those_who_wait(run, kind, impatient, caplog):
    where = f"{kind.scheme}://{NOBODY}"

    async def main():
        broker = Hearing(where).broker
        broker.listen(frozenset(["t"]))
        ready = asyncio.create_task(broker.ready())
        broker.publish("t", b"")
        await until(lambda: logged(caplog))
        await broker.close()
        await broker.close()
        for use in (ready, broker.ready()):
            with pytest.raises(ConnectionClosed, match=f"^the bus over {where} is closed$"):
                await use
        with pytest.raises(ConnectionClosed, match=f"^the bus over {where} is closed$"):
            broker.publish("t", b"")
        lost = f"bus over {where}: 1 messages lost: closed before they could be sent"
        assert logged(caplog)[-1] == lost

    run(main())


@KINDS
def test_broker_whose_loop_ended_without_close_counts_and_refuses(kind, backend, caplog):
    where = f"{kind.scheme}://{NOBODY}"

    async def main():
        broker = Hearing(where).broker
        broker.publish("t", b"")
        await until(lambda: logged(caplog))
        return broker

    with asyncio.Runner(loop_factory=lambda: pyloop.new_event_loop(backend)) as runner:
        broker = runner.run(main())
    lost = f"bus over {where}: 1 messages lost: closed before they could be sent"
    assert logged(caplog)[1:] == [lost]
    with pytest.raises(ConnectionClosed, match=f"^the bus over {where} is closed$"):
        broker.publish("t", b"")


@KINDS
def test_broker_that_is_not_open_here_refuses(run, kind):
    where = f"{kind.scheme}://{NOBODY}"
    expected = f"^the bus over {where} is not open in this process$"

    async def main():
        with pytest.raises(ConnectionClosed, match=expected):
            BROKERS[kind](where).publish("t", b"")
        async with hearing(where) as hears:
            hears.broker._pid += 1  # as a forked child finds it
            with pytest.raises(ConnectionClosed, match=expected):
                hears.broker.publish("t", b"")
            hears.broker._pid -= 1

    run(main())


# ---- what a program says wrong ----


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:secret@h:port", "url redis://h:port: Port could not be cast"),
        ("redis://h?colour=red", "url redis://h: .*unexpected keyword argument 'colour'"),
        ("redis://h?socket_timeout=soon", "url redis://h: Invalid value for 'socket_timeout'"),
        ("redis://h?namespace=a.b", "url: expected a namespace of letters, digits, - and _, got"),
        ("nats://", "url nats://: expected a host"),
        ("nats://:secret@h:port", "url nats://h:port: Port could not be cast"),
        ("nats://h?colour=red", "url nats://h: unknown option 'colour=red'"),
        ("nats://h?namespace=", "url: expected a namespace of letters, digits, - and _, got ''"),
    ],
)
def test_url_that_is_malformed_is_refused_without_its_password(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        broker_of(url)
    assert "secret" not in str(caught.value)


@KINDS
def test_password_is_not_logged(run, kind, impatient, caplog):
    async def main():
        async with hearing(f"{kind.scheme}://me:secret@{NOBODY}"):
            await until(lambda: logged(caplog))
        assert logged(caplog)[0].startswith(f"bus over {kind.scheme}://{NOBODY}: ")
        assert "secret" not in caplog.text

    run(main())
