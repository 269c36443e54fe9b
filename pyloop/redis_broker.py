"""The bus over Redis: a channel per topic, a pattern per prefix.

    topic "chat"   channel "pyloop:chat"      PUBLISH
    prefix "ch"    pattern "pyloop:ch*"       PSUBSCRIBE

Two connections, since one that listens takes no other commands. Both are redis-py's bare ones: its
clients and pools repeat a command when the connection broke, and a message may come only once.

Source: the commands PUBLISH, PSUBSCRIBE and PING of Redis, RESP2.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from pyloop import remote_broker
from pyloop.broker import encode_topic
from pyloop.remote_broker import Item, Link, RemoteBroker, abort, take_namespace

__all__ = ["RedisBroker"]

_GLOB = re.compile(rb"([*?\[\]\\])")


class RedisBroker(RemoteBroker):
    """A Broker over one Redis server.

    Args:
        url: "redis://[[user]:password@]host[:port]", rediss:// for TLS, or unix://, as redis-py
            takes them, with its options; `?namespace=NAME` begins all channels, "pyloop".

    Raises:
        ValueError: the URL is malformed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        bare, namespace = take_namespace(url)
        self._channels = f"{namespace}:".encode()
        try:
            self._options: dict[str, Any] = dict(parse_url(bare))
            self._connect_by = self._options.pop("connection_class", Connection)
            self.connection()
        except (TypeError, ValueError, RedisError) as exc:
            raise ValueError(f"url {self._where}: {exc}") from None

    def connection(self) -> Any:
        """Return one that is not connected yet. Time-outs are for whoever uses it."""
        ours = {
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "socket_connect_timeout": remote_broker.STALL_SECONDS,
            "socket_timeout": None,
        }
        return self._connect_by(**{**self._options, **ours})

    def _new_link(self) -> Link:
        return _RedisLink(self, self._channels, self._deliver, self._lose)


class _RedisLink(Link):
    def __init__(
        self,
        broker: RedisBroker,
        channels: bytes,
        deliver: Callable[[bytes, bytes], None],
        lose: Callable[[int, str], None],
    ) -> None:
        self._channels, self._deliver, self._lose = channels, deliver, lose
        self._listener = broker.connection()
        self._publisher = broker.connection()
        self._publishing = asyncio.Lock()
        self._in_force: dict[bytes, bytes] = {}  # patterns and their prefixes, of channels
        self._asked: dict[bytes, bytes] = {}
        self._answered = asyncio.Event()
        self._is_changing = False
        self._is_alive = True

    async def connect(self) -> None:
        await self._listener.connect()
        await self._publisher.connect()

    async def close(self) -> None:
        for conn in (self._listener, self._publisher):
            abort(getattr(conn, "_writer", None))
            try:
                await conn.disconnect(nowait=True)
            except (OSError, RedisError):
                pass
        await asyncio.sleep(0)  # in which their transports close

    # ---- listening ----

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pulse())
            while True:
                reply = await self._listener.read_response()
                self._is_alive = True
                if isinstance(reply, list):
                    self._receive(*reply)

    async def _pulse(self) -> None:
        """See to it that a server which is gone without a word is missed, on both connections."""
        while True:
            await asyncio.sleep(remote_broker.STALL_SECONDS)
            if not self._is_alive:
                raise TimeoutError
            self._is_alive = False
            async with asyncio.timeout(remote_broker.STALL_SECONDS):
                await self._listener.send_command("PING", check_health=False)
                await self.send(deque())

    def _receive(self, kind: bytes, pattern: bytes, *rest: bytes) -> None:
        if kind == b"pmessage":
            channel, message = rest
            if not (self._is_changing and self._is_copy(pattern)):
                self._deliver(channel[len(self._channels) :], message)
        elif kind == b"psubscribe":
            self._in_force[pattern] = self._asked.pop(pattern)
        elif kind == b"punsubscribe":
            del self._asked[pattern], self._in_force[pattern]
        if not self._asked:
            self._answered.set()

    def _is_copy(self, pattern: bytes) -> bool:
        """Does a message of this pattern come by a wider one too?

        The server sends one for each pattern that it knows at that time, and its confirmations
        stand in the same stream, so this is exact.
        """
        prefix = self._in_force[pattern]
        return any(prefix.startswith(p) and p != prefix for p in self._in_force.values())

    async def subscribe(self, prefixes: frozenset[str]) -> None:
        wanted = {}
        for prefix in prefixes:
            name = self._channels + encode_topic(prefix)
            wanted[_GLOB.sub(rb"\\\1", name) + b"*"] = name
        self._is_changing = True
        await self._ask("PSUBSCRIBE", wanted, wanted.keys() - self._in_force.keys())
        await self._ask("PUNSUBSCRIBE", self._in_force, self._in_force.keys() - wanted.keys())
        self._is_changing = False

    async def _ask(self, command: str, names: dict[bytes, bytes], which: Iterable[bytes]) -> None:
        self._asked = {pattern: names[pattern] for pattern in which}
        if self._asked:
            self._answered.clear()
            await self._listener.send_command(command, *self._asked, check_health=False)
            await self._answered.wait()

    # ---- publishing ----

    async def send(self, batch: deque[Item]) -> None:
        """As Link says; an empty batch asks whether the server is there."""
        commands: list[tuple[str | bytes, ...]] = [
            ("PUBLISH", self._channels + topic, message) for topic, message in batch
        ] or [("PING",)]
        conn = self._publisher
        async with self._publishing:
            await conn.send_packed_command(conn.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    await conn.read_response()
                except ResponseError as exc:
                    self._lose(1, f"the server refused them: {exc}")
                if batch:
                    batch.popleft()
