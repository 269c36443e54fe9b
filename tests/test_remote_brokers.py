"""The bus's carriers over real servers of Redis and NATS: the same promises, tested on both."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import os
import threading

import pytest
import trustme
from brokers import (
    BROKERS,
    Hearing,
    NatsServer,
    RedisServer,
    SecureRedisServer,
    broker_of,
    hearing,
    leaving_no_task,
    logged,
    numbers,
    until,
)

from pyloop import remote_broker

KINDS = pytest.mark.parametrize("kind", BROKERS, ids=lambda kind: kind.scheme)
_names = itertools.count()


@pytest.fixture(scope="module", params=BROKERS, ids=lambda kind: kind.scheme)
def server(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp(request.param.scheme)) as server:
        yield server


@pytest.fixture
def own_server(request, tmp_path, kind):
    with kind(tmp_path) as server:
        yield server


@pytest.fixture
def url(server):
    """The server's, with a namespace that nobody else has."""
    return f"{server.url}?namespace=test-{os.getpid()}-{next(_names)}"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(remote_broker, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(remote_broker, "_CLOSE_SECONDS", 0.01)


@pytest.fixture
def run(run):
    """As everywhere; and at the end no task is left, as no fd is."""
    return lambda coro: run(leaving_no_task(coro))


# ---- delivery ----


def test_messages_of_threads_and_loops_reach_every_process_in_order(run, url):
    async def main():
        async with hearing(url, "") as one, hearing(url, "t") as other:
            brokers = {"t.one": one.broker, "t.other": other.broker, "t.thread": one.broker}

            def publish(topic):
                for number in numbers(300):
                    brokers[topic].publish(topic, number)

            thread = threading.Thread(target=publish, args=["t.thread"])
            thread.start()
            publish("t.one")
            publish("t.other")
            for each in (one, other):
                await each.until(lambda heard: len(heard) >= 900)
                by_topic = collections.defaultdict(list)
                for topic, message in each.heard:
                    by_topic[topic].append(message)
                assert by_topic == {topic: numbers(300) for topic in brokers}
            thread.join()
            assert one.broker.dropped == other.broker.dropped == 0

    run(main())


def test_only_topics_under_the_prefixes_arrive_whatever_is_in_them(run, url):
    prefixes = ("a*", "b?", "[c]", "d\\", "é", "\ud800", "x y\r\n", "\0")
    outside = ("", "a", "ab", "bb", "b", "c", "d", "e", "e\u0301", "x", "y", "A*")
    message = bytes(range(256))

    async def main():
        async with hearing(url, *prefixes) as hears, hearing(url) as speaks:
            inside = [prefix + rest for prefix in prefixes for rest in ("", "z", "\0*", ".b?>")]
            for topic in (*outside, *inside):
                speaks.broker.publish(topic, message)
            await hears.until(lambda heard: len(heard) >= len(inside))
            assert hears.heard == [(topic, message) for topic in inside]
            assert speaks.heard == []
            hears.heard.clear()
            await hears.listen("")
            await hears.listen("é")
            speaks.broker.publish("e", b"")
            speaks.broker.publish("é", b"")
            await hears.until(lambda heard: heard)
            assert hears.heard == [("é", b"")]

    run(main())


def test_prefixes_that_change_under_way_lose_and_double_nothing(run, url):
    async def main():
        async with hearing(url, "abc") as hears, hearing(url) as speaks:
            count = itertools.count()
            ended = False

            async def speak():
                while not ended:
                    speaks.broker.publish("abcd", b"%d" % next(count))
                    await asyncio.sleep(0)

            task = asyncio.create_task(speak())
            for prefix in ("ab", "a", "", "abcd", "abc", "a") * 5:
                await hears.listen(prefix)
            ended = True
            await task
            total = next(count)
            await hears.until(lambda heard: len(heard) >= total)
            assert hears.heard == [("abcd", number) for number in numbers(total)]

    run(main())


def test_message_of_another_namespace_or_program_is_not_heard(run, url):
    async def main():
        async with hearing(url, "") as hears, hearing(url + "x") as stranger:
            stranger.broker.publish("t", b"strange")
            strange = (b"\xff\xff", b"topics are UTF-8")
            hears.broker._queue.append(strange)
            hears.broker.publish("t", b"ours")
            hears.broker._work.set()
            await hears.until(lambda heard: heard)
            assert hears.heard == [("t", b"ours")]

    run(main())


# ---- servers that come and go ----


@KINDS
def test_server_that_starts_late_is_waited_for_and_then_gets_what_was_queued(
    run, kind, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "pyloop")

    async def main():
        with kind(tmp_path) as server:
            server.stop()
            async with hearing(server.url) as hears:
                hears.broker.listen(frozenset(["t"]))
                ready = asyncio.create_task(hears.broker.ready())
                hears.broker.publish("t", b"early")
                await until(lambda: logged(caplog))
                assert not ready.done()
                assert server.start()
                await ready
                await hears.until(lambda heard: heard)
                assert hears.heard == [("t", b"early")]
            trouble, connected = logged(caplog)
            assert trouble.startswith(f"bus over {server.url}: ")
            assert trouble.endswith("; trying again")
            assert connected == f"bus over {server.url}: connected"

    run(main())


@KINDS
def test_restart_of_the_server_is_told_where_the_gap_is_and_doubles_nothing(
    run, kind, own_server, caplog
):
    async def main():
        async with hearing(own_server.url, "t") as hears, hearing(own_server.url, "t") as speaks:
            count = itertools.count()
            ended = False

            async def speak():
                while not ended:
                    speaks.broker.publish("t", b"%d" % next(count))
                    await asyncio.sleep(0.001)

            task = asyncio.create_task(speak())
            for each in (hears, speaks):
                await each.until(lambda heard: len(heard) >= 10)
            await asyncio.to_thread(own_server.restart)
            for each in (hears, speaks):
                await each.until(lambda heard: heard.count(None) == 1 and heard[-1] is not None)
            ended = True
            await task
            last = ("t", b"%d" % (next(count) - 1))
            for each in (hears, speaks):
                await each.until(lambda heard: heard[-1] == last)
                gap = each.heard.index(None)
                before = [int(message) for _, message in each.heard[:gap]]
                after = [int(message) for _, message in each.heard[gap + 1 :]]
                assert before == list(range(len(before)))
                assert after == list(range(after[0], int(last[1]) + 1))
                assert after[0] >= len(before)
        again = f"bus over {own_server.url}: connected again; messages may be missed"
        assert logged(caplog).count(again) == 2

    run(main())


def test_server_that_stands_still_is_given_up_and_its_messages_counted(
    run, server, url, impatient, monkeypatch, caplog
):
    async def main():
        async with hearing(url, "t") as hears:
            with server.standing_still():
                hears.broker.publish("t", b"lost, or late")
                await until(lambda: hears.broker.dropped == 1)
                monkeypatch.setattr(remote_broker, "STALL_SECONDS", 30.0)
            await hears.until(lambda heard: None in heard)
            hears.broker.publish("t", b"after")
            await hears.until(lambda heard: ("t", b"after") in heard)
            assert hears.heard == [None, ("t", b"after")]
        lost = "1 messages lost: the server was gone before it confirmed them"
        assert f"bus over {server.url}: {lost}" in logged(caplog)
        assert f"bus over {server.url}: the server does not answer; trying again" in logged(caplog)

    run(main())


@pytest.mark.parametrize("server", [NatsServer], indirect=True, ids=["nats"])
def test_nats_that_falls_silent_is_noticed_without_a_message(run, server, url, impatient):
    async def main():
        async with hearing(url, "t") as hears:
            with server.standing_still():
                await until(lambda: hears.broker._trouble)
            await hears.until(lambda heard: heard == [None])

    run(main())


# ---- what is lost, and the end ----


def test_full_queue_drops_the_oldest_and_says_so(run, url, monkeypatch, caplog):
    monkeypatch.setattr(remote_broker, "QUEUE_BYTES", 10 * (200 + 1 + 1))

    async def main():
        async with hearing(url) as hears:
            hears.broker.listen(frozenset(["t"]))
            for number in range(30):
                hears.broker.publish("t", b"%d" % (number % 10))
            hears.broker.publish("t", b"!")
            await hears.until(lambda heard: heard and heard[-1][1] == b"!")
            assert [message for _, message in hears.heard] == [*numbers(10)[1:], b"!"]
            assert hears.broker.dropped == 21
        lost = "21 messages lost: more than 2020 bytes were waiting for the server"
        assert [line.partition(": ")[2] for line in logged(caplog)] == [lost]

    run(main())


def test_close_sends_what_is_queued(run, url):
    async def main():
        async with hearing(url, "t") as hears:
            speaks = Hearing(url)
            await speaks.listen("t")
            for number in numbers(500):
                speaks.broker.publish("t", number)
            await speaks.broker.close()
            assert speaks.heard == []
            await hears.until(lambda heard: len(heard) >= 500)
            assert hears.heard == [("t", number) for number in numbers(500)]

    run(main())


# ---- what a server refuses ----


@pytest.mark.parametrize("server", [NatsServer], indirect=True, ids=["nats"])
def test_message_over_the_limit_of_nats_is_lost_alone(run, url, caplog):
    async def main():
        async with hearing(url, "t") as hears:
            largest = bytes(hears.broker.max_message - 1)
            for message in (largest, bytes(1 << 20), b"next"):
                hears.broker.publish("t", message)
            await hears.until(lambda heard: len(heard) == 2)
            assert hears.heard == [("t", largest), ("t", b"next")]
        lost = "1 messages lost: the server takes no more than 1048576 bytes"
        assert [line.partition(": ")[2] for line in logged(caplog)] == [lost]

    run(main())


@pytest.mark.parametrize("server", [RedisServer], indirect=True, ids=["redis"])
def test_message_to_a_channel_that_redis_forbids_is_lost_alone(run, server, url, caplog):
    channels = f"&{url.partition('=')[2]}:t*"

    async def main():
        admin = broker_of(url).connection()
        rights = ("on", "nopass", "+@all", "resetchannels", channels)
        await admin.send_command("ACL", "SETUSER", "narrow", *rights)
        assert await admin.read_response() == b"OK"
        await admin.disconnect()
        async with hearing(url.replace("//", "//narrow:word@"), "t") as hears:
            largest = bytes(hears.broker.max_message - 1)
            for topic, message in (("t", largest), ("x", b""), ("t", b"next")):
                hears.broker.publish(topic, message)
            await hears.until(lambda heard: len(heard) == 2)
            assert hears.heard == [("t", largest), ("t", b"next")]
        (line,) = logged(caplog)
        assert line.startswith(f"bus over {server.url}: 1 messages lost: the server refused them: ")

    run(main())


def test_tls_and_a_password_take_no_more_than_the_url(run, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "server.pem"
    )

    async def main():
        with SecureRedisServer(tmp_path) as server:
            where = server.url.replace("//", "//:word@")
            async with hearing(f"{where}?ssl_ca_certs={tmp_path / 'ca.pem'}", "t") as hears:
                hears.broker.publish("t", b"secret")
                await hears.until(lambda heard: heard)
                assert hears.heard == [("t", b"secret")]

    run(main())
