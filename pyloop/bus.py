"""Bus: publish and subscribe, between all processes that share it.

    publish(topic, message) --> Broker ==> each process's Broker --> its Subscriptions

Which broker it is the URL says. A bus that was made before a fork is the child's too: there it
has no subscribers yet, and opens its broker anew when it needs one.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import weakref
from collections.abc import Callable
from typing import Any

from pyloop.broker import Broker, encode_topic
from pyloop.errors import ExtraMissingError
from pyloop.framing import as_bytes
from pyloop.options import check_size
from pyloop.shm_broker import Feed, ShmBroker
from pyloop.subscription import LIMIT_BYTES, Missed, Subscription

__all__ = ["Bus", "check_url"]

CAPACITY = 1 << 20
"""Bytes of a ring in shared memory."""
_LEAST, _MOST = 4096, 1 << 30
_SCHEMES = "shm://, redis://, rediss:// or nats://"
_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def _shm(url: str) -> tuple[str, int]:
    """Return the name, "" for none, and the capacity."""
    name, _, query = url.removeprefix("shm://").partition("?")
    if "/" in name or "\0" in name:
        raise ValueError(f"{url!r}: expected shm:// or shm://NAME, where NAME has no slash or NUL")
    capacity = CAPACITY
    for option in filter(None, query.split("&")):
        key, _, value = option.partition("=")
        if key != "capacity" or not (value.isascii() and value.isdigit()):
            raise ValueError(f"{url}: expected ?capacity=BYTES, got {option!r}")
        capacity = check_size(f"{url}: capacity", int(value), _LEAST, _MOST)
    return name, capacity


_REMOTE = {
    "redis": ("redis_broker", "RedisBroker", "redis", "redis"),
    "rediss": ("redis_broker", "RedisBroker", "redis", "redis"),
    "nats": ("nats_broker", "NatsBroker", "nats", "nats-py"),
}
"""Of a scheme: our module and class; the extra, which is what is imported too, and its package."""


def _remote(url: str) -> Broker:
    module, name, extra, package = _REMOTE[url.partition("://")[0]]
    try:
        kind = getattr(importlib.import_module(f"pyloop.{module}"), name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] != extra:
            raise
        raise ExtraMissingError(
            f'a bus over {extra}:// needs {package}: pip install "pyloop-io[{extra}]"'
        ) from None
    broker: Broker = kind(url)
    return broker


def _shown(url: str) -> str:
    """Return a URL as texts may show it: without passwords."""
    return url if url.startswith("shm:") else re.sub("//.*@", "//", url.partition("?")[0])


def check_url(url: Any) -> str:
    """Return a bus's URL. Raises TypeError or ValueError that says what is expected."""
    if not isinstance(url, str):
        raise TypeError(f"bus: expected a URL, {_SCHEMES}, got {url!r}")
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in ("shm", *_REMOTE):
        raise ValueError(f"bus: expected a URL, {_SCHEMES}, got {_shown(url)!r}")
    if scheme == "shm":
        _shm(url)
    return url


class Bus:
    """Publish and subscribe, between all processes that have the same bus.

    Args:
        url: "shm://" is one for this process and its forks, "shm://NAME" one for all programs of
            this user on this machine; "?capacity=BYTES" sizes its ring (1 MiB). "redis://HOST:PORT"
            and "nats://HOST:PORT" go through a server, on many machines.

    Attributes:
        url: the same.
        max_message: bytes of a topic and a message together, at most.

    Raises:
        ExtraMissingError: what the URL needs is not installed.
        OSError: there is no memory for it, or it is another user's.
        TypeError, ValueError: naming the URL and what is expected.
    """

    def __init__(self, url: str = "shm://") -> None:
        self._start(url, None)

    def _start(self, url: str, feed: Feed | None) -> None:
        self.url = check_url(url)
        self._is_local = url.startswith("shm:")
        self._feed = feed or (Feed.make(*_shm(url)) if self._is_local else None)
        self._broker: Broker | None = self._new_broker()
        self.max_message = self._broker.max_message
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: tuple[Subscription, ...] = ()
        _buses.add(self)

    @classmethod
    def _adopt(cls, url: str, fds: tuple[int, int] | None) -> Bus:
        """Return a bus that another process made; `fds` are those of a nameless one."""
        bus = cls.__new__(cls)
        bus._start(url, None if fds is None else Feed.adopt(fds))
        return bus

    @property
    def _fds(self) -> tuple[int, int] | None:
        """What another process needs to adopt it, beside the URL."""
        return self._feed.fds if self._feed is not None and not self._feed.name else None

    def _new_broker(self) -> Broker:
        return _remote(self.url) if self._feed is None else ShmBroker(self._feed)

    def __repr__(self) -> str:
        return f"<pyloop.Bus {_shown(self.url)}{'' if self._broker else ' closed'}>"

    # ---- publish, subscribe ----

    def publish(self, topic: str, message: Any) -> None:
        """Send a message to all who subscribe to its topic, this process too. Never waits for them.

        Any thread may call it. Over shared memory no event loop is needed; else the bus must have
        been used on one before, in this process.

        Args:
            topic: any str.
            message: bytes-like.

        Raises:
            OSError, PyloopError: the bus is broken; TimeoutError: a process that holds its lock
                was stopped.
            RuntimeError: it is closed, or there is no event loop.
            TypeError, ValueError: naming what was passed; ValueError also for what is over
                max_message.
        """
        broker = self._broker
        if not isinstance(topic, str):
            raise TypeError(f"topic: expected a str, got {topic!r}")
        payload = as_bytes(message)
        size = len(encode_topic(topic)) + len(payload)
        if size > self.max_message:
            raise ValueError(
                f"{size} bytes of topic and message are more than the {self.max_message} "
                f"that {_shown(self.url)} takes"
            )
        if broker is None or not (self._is_local or self._is_open()):
            broker = self._begin("publish")
        broker.publish(topic, payload)

    def subscribe(
        self,
        prefix: str = "",
        callback: Callable[[str, bytes], object] | None = None,
        *,
        on_missed: Callable[[Missed], object] | None = None,
        limit: int = LIMIT_BYTES,
    ) -> Subscription:
        """Hear all topics that begin with `prefix`, on the running event loop.

        Args:
            prefix: "" is all topics.
            callback: called with topic and message; else the subscription is an async iterator.
                What it raises is logged.
            on_missed: called with a Missed; without it a callback's are logged.
            limit: bytes that may wait for the iteration; what does not fit is missed.

        Raises:
            OSError: the bus cannot be used.
            RuntimeError: it is closed, no event loop is running, or it is in use on another one.
            TypeError, ValueError: naming the argument.
        """
        subscription = Subscription(prefix, callback, on_missed, limit, self._leave, self._ready)
        self._begin("subscribe")
        self._change((*self._subscriptions, subscription))
        return subscription

    async def close(self) -> None:
        """Hear and publish no more, in this process; iterations end."""
        for subscription in self._subscriptions:
            subscription._end()
        self._subscriptions = ()
        if not self._is_open():
            self._forget()
        broker, self._broker = self._broker, None
        self._feed = None
        if broker is not None and self._loop is not None:
            await broker.close()

    def unlink(self) -> None:
        """Take the name of a "shm://NAME" away: who has the bus goes on, who comes makes a new one.

        Raises:
            FileNotFoundError: it was gone.
            ValueError: it has none.
        """
        if self._feed is None or not self._feed.name:
            raise ValueError(f"{self!r}: only an open one of shm://NAME has a name to take away")
        self._feed.unlink()

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # ---- the broker ----

    def _begin(self, what: str) -> Broker:
        """Open the broker on the running loop, if it is not."""
        if self._broker is None:
            raise RuntimeError(f"Bus.{what}(): the bus is closed")
        loop = asyncio._get_running_loop()
        if loop is None:
            where = _shown(self.url)
            raise RuntimeError(f"Bus.{what}(): needs a running event loop, over {where}")
        if not self._is_open():
            self._forget()
            self._broker.open(self._hear, self._miss)
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(f"Bus.{what}(): the bus is in use on another event loop")
        return self._broker

    def _is_open(self) -> bool:
        """Is it in use on an event loop that there still is?"""
        return self._loop is not None and not self._loop.is_closed()

    def _started(self) -> None:
        """A server has started on this loop: from now on its threads may publish."""
        if not self._is_local:
            self._begin("publish")

    def _forget(self) -> None:
        """Begin anew, in a forked child or after a loop: what was opened is gone."""
        if self._broker is not None and self._loop is not None:
            if isinstance(self._broker, ShmBroker):
                self._broker.forget()
            self._broker = self._new_broker()
        self._loop = None
        self._subscriptions = ()

    def _change(self, subscriptions: tuple[Subscription, ...]) -> None:
        self._subscriptions = subscriptions
        prefixes = {subscription.prefix for subscription in subscriptions}
        least = (p for p in prefixes if not any(p != q and p.startswith(q) for q in prefixes))
        if self._broker is not None:
            self._broker.listen(frozenset(least))

    def _leave(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._change(tuple(s for s in self._subscriptions if s is not subscription))

    async def _ready(self) -> None:
        if self._broker is not None:
            await self._broker.ready()

    def _hear(self, topic: str, message: bytes) -> None:
        for subscription in self._subscriptions:
            if topic.startswith(subscription.prefix):
                subscription._take(topic, message)

    def _miss(self, count: int | None) -> None:
        for subscription in self._subscriptions:
            subscription._miss(count)


def _after_fork() -> None:
    for bus in tuple(_buses):
        bus._forget()


os.register_at_fork(after_in_child=_after_fork)
