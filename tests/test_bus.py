"""Bus over shared memory: who hears what, in which order, and who is told what he missed."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import open_fds

import pyloop

SECONDS = 60


@pytest.fixture(params=["shm://", "shm://pyloop-test-bus-{}"], ids=["nameless", "named"])
def url(request):
    url = request.param.format(os.getpid())
    yield url
    if url != "shm://":
        pyloop.Bus(url).unlink()


async def take(subscription, count):
    """The next items, so many."""
    async with asyncio.timeout(SECONDS):
        return [await anext(subscription) for _ in range(count)]


def in_child(work):
    """Run `work` in a fork; it must not raise."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


# ---- who hears what ----


def test_message_reaches_subscribers_of_its_prefix_in_order(run, url):
    async def main():
        called = []
        async with pyloop.Bus(url) as bus:
            every = bus.subscribe()
            some = bus.subscribe("room.", lambda *item: called.append(item))
            assert await every.ready() is await some.ready() is None
            sent = [(f"room.{n}" if n % 2 else f"x{n}", b"%d" % n * n) for n in range(100)]
            for topic, message in sent:
                bus.publish(topic, bytearray(message))
            assert called == []  # through the loop, not out of publish
            assert await take(every, 100) == sent
            assert called == [item for item in sent if item[0].startswith("room.")]

    run(main())


def test_topics_and_messages_of_any_characters_come_whole(run, url):
    async def main():
        async with pyloop.Bus(url) as bus, bus.subscribe() as messages:
            sent = [
                ("", b""),
                ("*.>?[x]\0", bytes(range(256))),
                ("schön 🙂", b"\n"),
                ("\ud800", b""),
            ]
            for item in sent:
                bus.publish(*item)
            longest = ("t" * 100, b"x" * (bus.max_message - 100))
            bus.publish(*longest)
            assert await take(messages, 5) == [*sent, longest]

    run(main())


def test_forks_hear_and_are_heard(run, url):
    async def answer(bus):
        messages = bus.subscribe("to child")
        bus.publish("to parent", b"ready")
        assert await take(messages, 1) == [("to child", b"hello")]
        bus.publish("to parent", b"goodbye")

    async def main():
        async with pyloop.Bus(url) as bus, bus.subscribe("to parent") as messages:
            child = multiprocessing.get_context("fork").Process(
                target=lambda: asyncio.run(answer(bus))
            )
            child.start()
            assert await take(messages, 1) == [("to parent", b"ready")]
            bus.publish("to child", b"hello")
            assert await take(messages, 1) == [("to parent", b"goodbye")]
            child.join(SECONDS)
            assert child.exitcode == 0
            child.close()

    run(main())


def test_forks_publish_without_a_loop(run, url):
    async def main():
        async with pyloop.Bus(url) as bus, bus.subscribe() as messages:
            in_child(lambda: [bus.publish("n", b"%d" % n) for n in range(20)])
            assert await take(messages, 20) == [("n", b"%d" % n) for n in range(20)]

    run(main())


def test_threads_publish(run, url):
    async def main():
        def speak(topic):
            for number in range(200):
                bus.publish(topic, b"%d" % number)

        async with pyloop.Bus(url) as bus, bus.subscribe() as messages:
            threads = [threading.Thread(target=speak, args=(name,)) for name in "abc"]
            for thread in threads:
                thread.start()
            heard = await take(messages, 600)
            for thread in threads:
                thread.join(SECONDS)
            for name in "abc":
                spoken = [message for topic, message in heard if topic == name]
                assert spoken == [b"%d" % number for number in range(200)]

    run(main())


def test_programs_meet_by_name():
    name = f"pyloop-test-meet-{os.getpid()}"
    source = f"import pyloop; pyloop.Bus('shm://{name}').publish('greeting', b'from afar')"

    async def main():
        async with pyloop.Bus(f"shm://{name}?capacity=8192") as bus, bus.subscribe() as messages:
            subprocess.run([sys.executable, "-c", source], check=True, timeout=SECONDS)
            assert await take(messages, 1) == [("greeting", b"from afar")]
            assert pyloop.Bus(f"shm://{name}").max_message == 2048  # as its maker chose
            bus.unlink()
            with pytest.raises(FileNotFoundError):
                bus.unlink()

    pyloop.run(main())
    assert not [file for file in os.listdir("/dev/shm") if file.startswith(name)]


def test_any_event_loop_will_do_one_after_the_other():
    before = open_fds()
    bus = pyloop.Bus()

    async def main(bus):
        async with bus.subscribe("x") as messages:
            bus.publish("x", b"1")
            assert await take(messages, 1) == [("x", b"1")]

    asyncio.run(main(bus))
    asyncio.run(main(bus))
    del bus  # without a close
    gc.collect()
    assert open_fds() == before


# ---- what is missed ----


def test_slow_reader_is_told_how_many_it_missed_and_goes_on(run):
    async def main():
        async with pyloop.Bus("shm://?capacity=4096") as bus, bus.subscribe() as messages:
            for number in range(1000):  # the loop does not turn meanwhile
                bus.publish("t", b"%03d" % number)
            missed, *heard = await take(messages, 1 + 127)
            assert missed == pyloop.Missed(1000 - 127)
            assert heard == [("t", b"%03d" % number) for number in range(1000 - 127, 1000)]
            bus.publish("t", b"later")
            assert await take(messages, 1) == [("t", b"later")]

    run(main())


def test_full_queue_of_a_subscriber_is_missed_by_it_alone(run):
    async def main():
        async with pyloop.Bus() as bus, bus.subscribe() as quick:
            slow = bus.subscribe(limit=1000)
            for number in range(100):
                bus.publish("t", b"%02d" % number)
            assert len(await take(quick, 100)) == 100
            *heard, missed = await take(slow, 15)
            assert heard == [("t", b"%02d" % number) for number in range(14)]
            assert missed == pyloop.Missed(86)
            for number in range(100):
                bus.publish("t", b"%02d" % number)
            assert len(await take(quick, 100)) == 100
            await take(slow, 13)
            bus.publish("t", b"after")
            await take(quick, 1)
            assert await take(slow, 3) == [("t", b"13"), pyloop.Missed(86), ("t", b"after")]

    run(main())


def test_message_over_the_limit_of_a_subscriber_is_heard_alone(run):
    async def main():
        async with pyloop.Bus() as bus, bus.subscribe(limit=10) as messages:
            bus.publish("t", b"x" * 100)
            bus.publish("t", b"y")
            assert await take(messages, 2) == [("t", b"x" * 100), pyloop.Missed(1)]

    run(main())


def test_callback_is_told_or_else_it_is_logged(run, caplog):
    async def main():
        async with pyloop.Bus("shm://?capacity=4096") as bus, bus.subscribe() as messages:
            told = []
            bus.subscribe("", lambda topic, message: told.append(message), on_missed=told.append)
            deaf = bus.subscribe("t", lambda topic, message: None)
            for number in range(200):
                bus.publish("t", b"%d" % number)
            await take(messages, 128)
            assert told == [pyloop.Missed(73), *[b"%d" % number for number in range(73, 200)]]
            deaf.close()

    run(main())
    assert "a subscriber of 't' missed 73 messages" in caplog.messages


def test_callback_that_raises_is_logged_and_harms_nobody(run, caplog):
    async def main():
        async with pyloop.Bus() as bus:
            bus.subscribe("t", lambda topic, message: 1 / 0)
            async with bus.subscribe() as messages:
                bus.publish("t", b"1")
                bus.publish("t", b"2")
                assert await take(messages, 2) == [("t", b"1"), ("t", b"2")]

    run(main())
    raised = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(raised) == 2
    assert "of a subscriber of 't' raised" in raised[0].getMessage()
    caplog.clear()  # their tracebacks keep the bus, and its fds


def test_callback_that_asks_a_cancelled_future_does_not_deafen_the_bus(run, caplog):
    async def main():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        async with pyloop.Bus() as bus:
            bus.subscribe("t", lambda topic, message: future.result())
            async with bus.subscribe() as messages:
                bus.publish("t", b"1")
                bus.publish("", b"2")
                assert await take(messages, 2) == [("t", b"1"), ("", b"2")]

    run(main())
    assert "of a subscriber of 't' raised" in caplog.text
    caplog.clear()


def test_publishers_that_are_killed_disturb_nobody(run, url):
    async def main():
        async with pyloop.Bus(url) as bus, bus.subscribe("after") as messages:
            for number in range(5):
                pid = os.fork()
                if pid == 0:
                    while True:
                        bus.publish("noise", b"x" * 500)
                await asyncio.sleep(0.01)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                bus.publish("after", b"%d" % number)
                item = None
                while item != ("after", b"%d" % number):
                    (item,) = await take(messages, 1)
                    assert isinstance(item, pyloop.Missed) or item[0] == "after"

    run(main())


# ---- closing ----


def test_close_ends_iterations_and_refuses_what_comes_later(run):
    async def main():
        bus = pyloop.Bus()
        first, second = bus.subscribe(), bus.subscribe()
        waiting = asyncio.ensure_future(take(first, 1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task is already waiting on this sub"):
            await anext(first)
        first.close()
        first.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        bus.publish("t", b"unheard")
        await asyncio.sleep(0)
        await bus.close()
        await bus.close()
        assert [item async for item in second] == []
        with pytest.raises(RuntimeError, match=r"Bus.publish\(\): the bus is closed"):
            bus.publish("t", b"")
        with pytest.raises(RuntimeError, match=r"Bus.subscribe\(\): the bus is closed"):
            bus.subscribe()

    run(main())


def test_callback_that_closes_the_bus_hears_no_more(run):
    async def main():
        bus, heard, closed = pyloop.Bus(), [], []

        def last(topic, message):
            heard.append(message)
            closed.append(asyncio.ensure_future(bus.close()))
            subscription.close()

        subscription = bus.subscribe("", last)
        bus.publish("t", b"1")
        bus.publish("t", b"2")
        while not closed:
            await asyncio.sleep(0)
        await closed[0]
        assert heard == [b"1"]

    run(main())
