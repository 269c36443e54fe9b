"""A Broker whose messages go through a server on the network: queue, sessions, and what is lost.

    any thread          the loop that opened it
    publish --> queue --> _send ----> Link.send ------+
                                                      +---- server
    listen -------------> _subscribe > Link.subscribe +
    hear  <-------------- _deliver <-- Link.run ------+

A session is the life of one Link: from connecting until anything about it breaks. Then all of it
is given up, and after a pause the next one begins, for ever. So nothing is sent twice: what the
server had not confirmed is given up too, and counted.

What the server is called and how it speaks is for redis_broker.py and nats_broker.py.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pyloop.broker import Broker, Hear, Missed, decode_topic, encode_topic
from pyloop.errors import ConnectionClosed
from pyloop.protocol import log

__all__ = ["Item", "Link", "RemoteBroker"]

Item = tuple[bytes, bytes]
"""A topic in UTF-8, and a message."""

STALL_SECONDS = 5.0
"""A server that lets somebody wait for so long is as good as gone."""

QUEUE_BYTES = 16 << 20
_ITEM_BYTES = 200  # what the objects of a short message take besides its bytes
_BATCH_BYTES = 256 << 10
_CLOSE_SECONDS = 1.0
_REPORT_SECONDS = 1.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
_STABLE_SECONDS = 1.0  # a session that was well for so long ends the doubling of the pause
_NAMESPACE = re.compile("[A-Za-z0-9_-]{1,64}")


class Link(ABC):
    """One life of a connection to the server. Whatever a method raises ends it."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect and introduce oneself; the other methods come after this."""

    @abstractmethod
    async def run(self) -> None:
        """Deliver what comes. Raises when the server is gone, or says nothing any more."""

    @abstractmethod
    async def subscribe(self, prefixes: frozenset[str]) -> None:
        """Return when the server has confirmed that these are listened for, and no others."""

    @abstractmethod
    async def send(self, batch: deque[Item]) -> None:
        """Send in order, and take off the batch what the server has confirmed, which is all."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what was opened, in whatever state, within a second. Does not raise."""


class RemoteBroker(Broker, ABC):
    """What all brokers over a server share.

    Attributes:
        dropped: messages published here that were given up, or may be lost.
    """

    max_message = (1 << 20) - 1024
    """What a NATS server takes unless it is told otherwise, with room for a header."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.dropped = 0
        self._pid = 0
        self._closed = self._ended = False
        self._lock = threading.RLock()  # a signal handler may publish in the middle of publish
        self._queue: deque[Item] = deque()
        self._queue_bytes = 0
        self._unconfirmed: deque[Item] = deque()
        self._lost, self._lost_why, self._reporting = 0, "", False
        self._report_timer: asyncio.TimerHandle | None = None
        self._prefixes: frozenset[str] = frozenset()
        self._work, self._asked, self._settled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._is_hearing = self._was_hearing = False
        self._trouble = ""

    @abstractmethod
    def _new_link(self) -> Link: ...

    # ---- Broker ----

    def open(self, hear: Hear, missed: Missed) -> None:
        """Begin to connect. A server that cannot be reached is tried again, and logged."""
        self._loop = asyncio.get_running_loop()
        self._hear, self._missed = hear, missed
        self._pid = os.getpid()
        self._task = self._loop.create_task(self._run())

    def publish(self, topic: str, message: bytes) -> None:
        """Queue a message. When QUEUE_BYTES are queued, the oldest are dropped for it."""
        if self._pid != os.getpid():
            raise ConnectionClosed(f"the bus over {self._where} is not open in this process")
        item = encode_topic(topic), message
        dropped = 0
        with self._lock:
            if self._closed or self._loop.is_closed():
                raise ConnectionClosed(f"the bus over {self._where} is closed")
            is_first = not self._queue
            self._queue.append(item)
            self._queue_bytes += _bytes_of(item)
            while self._queue_bytes > QUEUE_BYTES:
                self._queue_bytes -= _bytes_of(self._queue.popleft())
                dropped += 1
        if is_first:
            self._in_loop(self._work.set)
        if dropped:
            self._lose(dropped, f"more than {QUEUE_BYTES} bytes were waiting for the server")

    def listen(self, prefixes: frozenset[str]) -> None:
        """Ask the server for these, now or as soon as there is one."""
        self._prefixes = prefixes
        self._settled.clear()
        self._asked.set()

    async def ready(self) -> None:
        """Wait for the server to confirm.

        Raises:
            ConnectionClosed: closed, before it did.
        """
        while not self._settled.is_set() or self._closed:
            if self._closed:
                raise ConnectionClosed(f"the bus over {self._where} is closed")
            await self._settled.wait()

    async def close(self) -> None:
        """Send what is queued for at most a second, and disconnect."""
        if self._pid != os.getpid() or self._ended:
            return
        self._shut()
        try:
            if self._queue or self._unconfirmed:
                await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)
        finally:
            self._end()
            self._task.cancel()
            await asyncio.wait([self._task])
            self._report()

    def _shut(self) -> None:
        """Take no more from the program and tell it no more; end those who wait."""
        with self._lock:
            self._closed = True
        self._is_hearing = False
        self._settled.set()
        self._work.set()

    def _end(self) -> None:
        """Try no more."""
        self._shut()
        self._ended = True
        self._lose(len(self._queue), "closed before they could be sent")
        self._queue.clear()

    # ---- sessions ----

    async def _run(self) -> None:
        try:
            await self._live()
        finally:
            self._end()  # if it was not `close`, somebody ends all tasks of the loop
            self._report()

    async def _live(self) -> None:
        pause = _FIRST_PAUSE
        while not self._ended:
            self._hearing_since = math.inf
            if not (trouble := await self._session()):
                return
            if trouble != self._trouble:
                self._trouble = trouble
                log.warning("bus over %s: %s; trying again", self._where, trouble)
            if self._loop.time() - self._hearing_since > _STABLE_SECONDS:
                pause = _FIRST_PAUSE
            if not self._ended:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # all of a server's clients
            pause = min(2 * pause, _LAST_PAUSE)

    async def _session(self) -> str:
        """Live through one session. Returns what ended it; "" if it was `close`."""
        link = self._new_link()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await link.connect()
            self._asked.set()
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(link.run()), group.create_task(self._subscribe(link))]
                await self._send(link)
                for task in others:
                    task.cancel()
            return ""
        except Exception as exc:  # a client library may raise anything over a server's nonsense
            return _describe(exc)
        finally:
            self._is_hearing = False
            self._settled.clear()
            self._lose(len(self._unconfirmed), "the server was gone before it confirmed them")
            self._unconfirmed.clear()
            await link.close()

    async def _subscribe(self, link: Link) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            prefixes = self._prefixes
            async with asyncio.timeout(STALL_SECONDS):
                await link.subscribe(prefixes)
            if not self._is_hearing and not self._closed:
                self._begin_to_hear()
            if prefixes is self._prefixes:
                self._settled.set()

    def _begin_to_hear(self) -> None:
        """All is in force again; what came earlier in this session counts as missed."""
        self._is_hearing = True
        self._hearing_since = self._loop.time()
        self._trouble = ""
        if self._was_hearing:
            log.warning("bus over %s: connected again; messages may be missed", self._where)
            self._missed(None)
        else:
            log.info("bus over %s: connected", self._where)
        self._was_hearing = True

    async def _send(self, link: Link) -> None:
        """Send what is queued, until `close` and the end of the queue.

        Not before what `listen` asked for is in force: a process hears what it publishes itself,
        and the answers to that.
        """
        while self._queue or not self._closed:
            await self._work.wait()
            await self._settled.wait()
            self._unconfirmed = self._take()
            if self._unconfirmed:
                async with asyncio.timeout(STALL_SECONDS):
                    await link.send(self._unconfirmed)

    def _take(self) -> deque[Item]:
        batch: deque[Item] = deque()
        size = 0
        with self._lock:
            while self._queue and size < _BATCH_BYTES:
                batch.append(self._queue.popleft())
                size += _bytes_of(batch[-1])
            self._queue_bytes -= size
            if not self._queue:
                self._work.clear()
        return batch

    def _deliver(self, topic: bytes, message: bytes) -> None:
        """Hand on what a Link received. What is no topic comes from somebody else, and is not."""
        if self._is_hearing and (text := decode_topic(topic)) is not None:
            self._hear(text, message)

    # ---- losses ----

    def _lose(self, count: int, why: str) -> None:
        """Count messages that are given up, and have it logged, at most once a second."""
        if not count:
            return
        with self._lock:
            self.dropped += count
            self._lost += count
            self._lost_why = why
            is_first, self._reporting = not self._reporting, True
        if is_first:
            self._in_loop(self._report)

    def _report(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        with self._lock:
            lost, self._lost = self._lost, 0
            self._reporting = lost > 0 and not self._ended
        if lost:
            log.warning("bus over %s: %d messages lost: %s", self._where, lost, self._lost_why)
        if self._reporting:
            self._report_timer = self._loop.call_later(_REPORT_SECONDS, self._report)

    def _in_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            raise ConnectionClosed(f"the bus over {self._where} is closed") from None


def take_namespace(url: str) -> tuple[str, str]:
    """Return a URL without `namespace=NAME` in its query, and the name, "pyloop" if there is none.

    Raises:
        ValueError: the name is not one that all servers take.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    namespace = query.pop("namespace", "pyloop")
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"url: expected a namespace of letters, digits, - and _, got {namespace!r}"
        )
    return urlunsplit(parts._replace(query=urlencode(query))), namespace


def abort(writer: asyncio.StreamWriter | None) -> None:
    """Close now: a peer that does not read would keep a closed one, and what it has to send."""
    if writer is None:
        return
    sock = writer.get_extra_info("socket")
    try:
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)  # for all: a forked child has the socket too
    except OSError:
        pass
    writer.transport.abort()


def _bytes_of(item: Item) -> int:
    return len(item[0]) + len(item[1]) + _ITEM_BYTES


def _describe(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, TimeoutError) and not str(exc):
        return "the server does not answer"
    return str(exc).rstrip(".") or type(exc).__name__
