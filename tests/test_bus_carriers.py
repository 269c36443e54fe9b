"""What Bus asks of a carrier that is not shared memory, and what it says where one is missing."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import types

import pytest

import pyloop
from pyloop.broker import Broker
from pyloop.errors import ExtraMissingError


class FakeBroker(Broker):
    """Writes down what it is asked."""

    max_message = 100

    def __init__(self, url):
        self.url, self.asked = url, []

    def open(self, hear, missed):
        self.hear, self.missed = hear, missed
        self.asked.append("open")

    def publish(self, topic, message):
        self.asked.append((topic, message))

    def listen(self, prefixes):
        self.asked.append(sorted(prefixes))

    async def ready(self):
        self.asked.append("ready")

    async def close(self):
        self.asked.append("close")


@pytest.fixture
def bus(monkeypatch):
    module = types.SimpleNamespace(RedisBroker=FakeBroker)
    monkeypatch.setattr(importlib, "import_module", {"pyloop.redis_broker": module}.get)
    return pyloop.Bus("redis://somewhere:1")


def test_no_text_shows_a_password(bus):
    secret = pyloop.Bus("redis://:secret@somewhere:1?password=secret")
    assert repr(secret) == "<pyloop.Bus redis://somewhere:1>"
    with pytest.raises(
        RuntimeError, match=r"needs a running event loop, over redis://somewhere:1$"
    ):
        secret.subscribe()
    with pytest.raises(ValueError, match="the 100 that redis://somewhere:1 takes"):
        secret.publish("t", bytes(100))
    with pytest.raises(ValueError, match=r"got 'http://somewhere:1'$"):
        pyloop.Bus("http://me:secret@somewhere:1")


def test_broker_is_asked_for_the_fewest_prefixes(bus):
    async def main():
        broker = bus._broker
        assert broker.url == "redis://somewhere:1"
        first = bus.subscribe("a.b")
        second = bus.subscribe("a.")
        async with bus.subscribe("b"), bus.subscribe("b"):
            assert broker.asked[-1] == "ready"
        second.close()
        first.close()
        await bus.close()
        assert [asked for asked in broker.asked if asked != "ready"] == [
            "open",
            *(["a.b"], ["a."], ["a.", "b"], ["a.", "b"]),
            *(["a.", "b"], ["a."], ["a.b"], []),
            "close",
        ]

    pyloop.run(main())


def test_what_a_broker_says_reaches_those_whom_it_concerns(bus):
    async def main():
        some, every, seen = bus.subscribe("a"), bus.subscribe(), []
        bus.subscribe("b", lambda *item: seen.append(item), on_missed=seen.append)
        bus._broker.hear("ab", b"1")
        bus._broker.missed(None)
        bus._broker.missed(3)
        bus._broker.hear("b", b"2")
        assert [await anext(some) for _ in range(2)] == [("ab", b"1"), pyloop.Missed(None)]
        assert [await anext(every) for _ in range(3)] == [
            ("ab", b"1"),
            pyloop.Missed(None),
            ("b", b"2"),
        ]
        assert seen == [pyloop.Missed(None), pyloop.Missed(3), ("b", b"2")]

    pyloop.run(main())


def test_first_publish_needs_the_loop_and_later_ones_do_not(bus):
    with pytest.raises(RuntimeError, match=r"publish\(\): needs a running event loop, over redis:"):
        bus.publish("t", b"1")

    async def main():
        broker = bus._broker
        bus.publish("t", b"2")
        thread = threading.Thread(target=bus.publish, args=("t", b"3"))
        thread.start()
        thread.join()
        assert broker.asked == ["open", ("t", b"2"), ("t", b"3")]
        with pytest.raises(ValueError, match="101 bytes of topic and message are more than the 1"):
            bus.publish("t", b"x" * 100)

    pyloop.run(main())


def test_bus_whose_loop_has_ended_is_opened_on_the_next(bus):
    async def publish():
        bus.publish("t", b"")
        return bus._broker

    async def close():
        broker = bus._broker
        await bus.close()
        return broker

    first, second = asyncio.run(publish()), asyncio.run(publish())
    assert first is not second
    assert first.asked == second.asked == ["open", ("t", b"")]
    with pytest.raises(RuntimeError, match="needs a running event loop, over redis://somewh"):
        bus.publish("t", b"")
    assert asyncio.run(close()) is second
    assert second.asked == ["open", ("t", b"")]  # what that had opened is gone


def test_bus_is_closed_after_a_loop_that_left_somebody_waiting(bus):
    async def wait():
        task = asyncio.ensure_future(anext(bus.subscribe()))
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(wait())
    task._log_destroy_pending = False
    loop.close()
    asyncio.run(bus.close())
    assert repr(bus) == "<pyloop.Bus redis://somewhere:1 closed>"


def test_fork_opens_a_broker_of_its_own(bus):
    async def in_fork(parents):
        assert bus._broker is not parents
        bus.publish("t", b"child")
        assert bus._broker.asked == ["open", ("t", b"child")]
        assert bus._subscriptions == ()

    async def main():
        bus.subscribe()
        parents = bus._broker
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            try:
                asyncio.run(in_fork(parents))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert bus._broker is parents
        assert parents.asked == ["open", [""]]

    pyloop.run(main())


@pytest.mark.parametrize(
    ("url", "extra", "package"),
    [
        ("redis://x", "redis", "redis"),
        ("rediss://x", "redis", "redis"),
        ("nats://x", "nats", "nats-py"),
    ],
)
def test_missing_extra_is_named(monkeypatch, url, extra, package):
    def fail(name):
        raise ModuleNotFoundError(f"No module named '{extra}'", name=f"{extra}.asyncio")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ExtraMissingError) as caught:
        pyloop.Bus(url)
    assert str(caught.value) == (
        f'a bus over {extra}:// needs {package}: pip install "pyloop-io[{extra}]"'
    )


def test_module_that_is_missing_elsewhere_is_told_as_it_is(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="No module named 'other'"):
        pyloop.Bus("nats://x")
