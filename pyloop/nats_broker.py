"""The bus over NATS: one subject for all topics; the topic stands before the message.

    subject "pyloop.bus"    size of the topic (4 bytes, big-endian) | topic | message

Why not a subject per topic? nats-py hands out each subscription's messages in a task of its own,
so that two of one publisher's come in any order if their topics belong to different subscriptions;
changing a set of subscriptions has a moment in which a message comes twice, or not at all; and a
subject is short and made of tokens, which a topic is not. So a process receives all of its
namespace and keeps what it wants; programs that would disturb each other take different ones.

nats-py's reconnecting is switched off: it hides when it was gone, and sends again what it may have
sent already.

Source: the client protocol of NATS.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import MaxPayloadError, NoServersError

from pyloop import remote_broker
from pyloop.broker import encode_topic
from pyloop.remote_broker import Item, Link, RemoteBroker, abort, take_namespace

__all__ = ["NatsBroker"]

_SIZE_BYTES = 4
_CLOSE_SECONDS = 0.5
_PENDING_BYTES = 8 << 20
"""More than a batch: nats-py loses a cancellation while it waits for room."""


class NatsBroker(RemoteBroker):
    """A Broker over one NATS server.

    Args:
        url: "nats://[user:password@ | token@]host[:port]", or tls:// as nats-py takes it;
            `?namespace=NAME` is the first token of the subject, "pyloop".

    Raises:
        ValueError: the URL is malformed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._url, namespace = take_namespace(url)
        self._subject = f"{namespace}.bus"
        parts = urlsplit(self._url)
        try:
            wrong = "" if parts.hostname else "expected a host"
            wrong = wrong or (f"unknown option {parts.query!r}" if parts.query else "")
            parts.port  # noqa: B018 -- which raises
        except ValueError as exc:
            wrong = str(exc)
        if wrong:
            raise ValueError(f"url {self._where}: {wrong}")

    def _new_link(self) -> Link:
        return _NatsLink(self._url, self._subject, self._deliver, self._lose)


class _NatsLink(Link):
    def __init__(
        self,
        url: str,
        subject: str,
        deliver: Callable[[bytes, bytes], None],
        lose: Callable[[int, str], None],
    ) -> None:
        self._url, self._subject = url, subject
        self._deliver, self._lose = deliver, lose
        self._client = Client()
        self._broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._subscription: Subscription | None = None
        self._prefixes: tuple[bytes, ...] = ()

    async def connect(self) -> None:
        options: dict[str, Any] = {
            "allow_reconnect": False,
            "reconnect_time_wait": 0,
            "max_reconnect_attempts": 1,  # else a server that refuses is tried for ever
            "connect_timeout": remote_broker.STALL_SECONDS,
            "ping_interval": remote_broker.STALL_SECONDS / 2,
            "pending_size": _PENDING_BYTES,
            "name": "pyloop",
        }
        try:
            await self._client.connect(
                [self._url], error_cb=self._failed, closed_cb=self._was_closed, **options
            )
        except NoServersError:
            raise self._broken.result() if self._broken.done() else NoServersError from None

    async def close(self) -> None:
        transport = getattr(self._client, "_transport", None)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.close()
        except Exception:  # it is gone, and how is of no interest any more
            pass
        finally:
            abort(getattr(transport, "_io_writer", None))
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        """When the server is gone in the middle of something, nats-py leaves its tasks behind."""
        names = ("_reading_task", "_flusher_task", "_ping_interval_task")
        tasks = [getattr(self._client, name, None) for name in names]
        tasks.append(getattr(self._subscription, "_wait_for_msgs_task", None))
        for task in filter(None, tasks):
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_SECONDS)
            if task.done() and not task.cancelled():
                task.exception()  # which nobody else looks at

    async def _failed(self, exc: Exception) -> None:
        if not self._broken.done():
            self._broken.set_result(exc)

    async def _was_closed(self) -> None:
        await self._failed(
            self._client.last_error or ConnectionError("the server closed the connection")
        )

    async def run(self) -> None:
        while self._client.is_connected and not self._broken.done():
            await asyncio.wait([self._broken], timeout=remote_broker.STALL_SECONDS)
        await self._was_closed()
        raise self._broken.result()

    async def subscribe(self, prefixes: frozenset[str]) -> None:
        self._prefixes = tuple(map(encode_topic, prefixes))
        if prefixes and self._subscription is None:
            self._subscription = await self._client.subscribe(self._subject, cb=self._received)
            await self._confirm()

    async def _received(self, msg: Msg) -> None:
        end = _SIZE_BYTES + int.from_bytes(msg.data[:_SIZE_BYTES], "big")
        topic = msg.data[_SIZE_BYTES:end]
        if end <= len(msg.data) and topic.startswith(self._prefixes):
            self._deliver(topic, msg.data[end:])

    async def send(self, batch: deque[Item]) -> None:
        for topic, message in batch:
            size = len(topic).to_bytes(_SIZE_BYTES, "big")
            try:
                await self._client.publish(self._subject, size + topic + message)
            except MaxPayloadError:
                self._lose(1, f"the server takes no more than {self._client.max_payload} bytes")
        await self._confirm()
        batch.clear()

    async def _confirm(self) -> None:
        """Wait for the answer to a ping: the server answers in order."""
        client: Any = self._client
        await asyncio.sleep(0)
        while client.pending_data_size:  # which the ping would overtake
            await asyncio.sleep(0.001)
        # Where there is rtt, flush may return without an answer, if the connection broke.
        await getattr(client, "rtt", client.flush)(timeout=remote_broker.STALL_SECONDS)
