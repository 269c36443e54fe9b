"""One connection as handlers see it, and what its messages go to.

A Connection names its conn in the core by id; every method is one call of the core, which refuses
an id that is stale. Dispatch calls the methods with a leading underscore.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pyloop.address import Address, decode_sockaddr, local_address
from pyloop.core import failure, ffi, lib
from pyloop.errors import ConnectionClosed, WriteLimitError
from pyloop.framing import refusal

if TYPE_CHECKING:
    from pyloop.framing import Framing

__all__ = ["Connection", "Inbox", "Owner", "Protocol", "log"]

log = logging.getLogger("pyloop")

# Why messages are not delivered now: bits of Connection._gate.
PAUSED, FULL, CLOSED = 1, 2, 4

_send, _write = lib.pl_conn_send, lib.pl_conn_write
_GONE = (-errno.ESTALE, -errno.EPIPE)


class Protocol:
    """Base of protocol classes: one instance serves one connection. Override any of these.

    The order is connection_made, message_received in wire order, eof_received, connection_lost
    exactly once.
    """

    def connection_made(self, conn: Connection) -> None:
        """Keep `conn`; it is ready to send."""

    def message_received(self, message: bytes) -> None:
        """Handle one message."""

    def eof_received(self) -> bool | None:
        """Handle the peer's end of stream; true keeps the write side open, else it closes."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go; `exc` is None after end of stream, close or stop, else why it was lost."""

    def pause_writing(self) -> None:
        """Stop sending: more than 64 KiB are queued."""

    def resume_writing(self) -> None:
        """Go on sending: no more than 16 KiB are queued."""


class Owner:
    """What a Connection belongs to: a server, or the call that dialled it."""

    __slots__ = ("framing", "loop", "read_limit", "server", "write_limit")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, framing: Framing, read_limit: int, write_limit: int
    ) -> None:
        self.loop = loop
        self.framing = framing
        self.read_limit = read_limit
        self.write_limit = write_limit
        self.server: Any = None

    def accepted(self, ident: int, peer: bytes) -> Connection:
        """Make the Connection of a conn that the core accepted."""
        raise RuntimeError("this owner does not listen")

    def forget(self, conn: Connection) -> None:
        """Drop `conn`, whose connection_lost has been called."""


def as_bytes(data: Any) -> bytes:
    """Return what is to be sent as bytes, taken as it is now.

    Raises:
        TypeError: `data` is not bytes-like.
    """
    if isinstance(data, str):
        raise TypeError(f"expected bytes-like, got str: {data[:40]!r} (encode it first)")
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"expected bytes-like, got {type(data).__name__}") from None


def _ignore(target: Any, message: bytes) -> None:
    """Take the messages of a connection that has been lost."""


class Connection:
    """One peer: send to it, receive from it, close it.

    Belongs to the loop's thread; from another, use loop.call_soon_threadsafe.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_exc",
        "_gate",
        "_id",
        "_owner",
        "_peer",
        "_ptr",
        "_target",
        "_writers",
        "state",
    )

    state: Any

    def __init__(self, ptr: Any, ident: int, owner: Owner, peer: Any) -> None:
        self._ptr = ptr
        self._id = ident
        self._owner = owner
        self._peer = peer
        self._gate = 0
        self._call: Callable[[Any, bytes], object] = _ignore
        self._target: Any = None
        self._exc: BaseException | None = None
        self._writers: deque[asyncio.Future[None]] | bool | None = None
        self.state = None

    # ---- what it is ----

    @property
    def id(self) -> int:
        """A 64-bit number that no other connection of this loop ever has."""
        return self._id

    @property
    def server(self) -> Any:
        """The Server that accepted it, or None."""
        return self._owner.server

    @property
    def peername(self) -> Address:
        """The peer's address as accept gave it: (host, port) and more for IPv6, or a path."""
        if type(self._peer) is bytes:
            self._peer = decode_sockaddr(self._peer)
        return self._peer  # type: ignore[no-any-return]

    @property
    def sockname(self) -> Address | None:
        """This side's address, or None once the connection is lost."""
        fd = lib.pl_conn_fd(self._ptr, self._id)
        return local_address(fd) if fd >= 0 else None

    @property
    def buffered(self) -> int:
        """Bytes queued to send."""
        return max(0, lib.pl_conn_queued(self._ptr, self._id))

    @property
    def is_closing(self) -> bool:
        """Has it been closed, or lost?"""
        return bool(self._gate & CLOSED)

    def __repr__(self) -> str:
        state = "closing" if self.is_closing else "open"
        return f"<{type(self).__name__} {self.peername} {state}>"

    # ---- sending ----

    def send(self, message: Any) -> None:
        """Queue one message, framed; it leaves with the loop's next turn.

        Args:
            message: bytes-like, taken as it is now.

        Raises:
            TypeError: `message` is not bytes-like.
            ValueError: it does not fit the framing; nothing is sent.
        """
        if type(message) is not bytes:
            message = as_bytes(message)
        code = _send(self._ptr, self._id, message, len(message))
        if code:
            self._sent(code, len(message))

    def write(self, data: Any) -> None:
        """Queue bytes as they are, without framing.

        Raises:
            TypeError: `data` is not bytes-like.
        """
        if type(data) is not bytes:
            data = as_bytes(data)
        code = _write(self._ptr, self._id, data, len(data))
        if code:
            self._sent(code, len(data))

    def _sent(self, code: int, length: int) -> None:
        """Act on what the core said to a send that was not simply queued."""
        if code == 1:
            self._pause_writing()
        elif code == lib.PL_E_WRITE_LIMIT:
            self._gate |= CLOSED
            self._exc = WriteLimitError(
                f"peer {self.peername} does not read: more than write_limit="
                f"{self._owner.write_limit} bytes are queued"
            )
        elif code in (lib.PL_E_TOO_LONG, lib.PL_E_TERMINATOR, lib.PL_E_RANGE, lib.PL_E_SIZE):
            raise refusal(self._owner.framing, code, length)
        elif code not in _GONE:
            raise failure(code)

    def _pause_writing(self) -> None:
        if self._writers is None:
            self._writers = True
        if isinstance(self._target, Protocol):
            self._guard(self._target.pause_writing)

    def _resume_writing(self) -> None:
        writers, self._writers = self._writers, None
        self._wake_writers(writers, None)
        if isinstance(self._target, Protocol):
            self._guard(self._target.resume_writing)

    @staticmethod
    def _wake_writers(writers: Any, exc: Exception | None) -> None:
        for future in writers if isinstance(writers, deque) else ():
            if not future.done():
                future.set_result(None) if exc is None else future.set_exception(exc)

    async def drain(self) -> None:
        """Wait until no more than 16 KiB are queued, if more than 64 KiB were.

        Raises:
            ConnectionClosed: the connection is closing or lost.
        """
        if self._gate & CLOSED:
            raise self._closed_error("drain")
        if self._writers is None:
            return
        if not isinstance(self._writers, deque):
            self._writers = deque()
        future = self._owner.loop.create_future()
        self._writers.append(future)
        await future

    def _closed_error(self, what: str) -> Exception:
        if isinstance(self._exc, Exception):
            return self._exc
        return ConnectionClosed(f"{what}: the connection to {self.peername} is closed")

    # ---- receiving ----

    def pause_reading(self) -> None:
        """Stop delivering messages; what has arrived is kept, and the peer is slowed down."""
        self._pause(PAUSED)

    def resume_reading(self) -> None:
        """Deliver again, starting with what was kept."""
        self._resume(PAUSED)

    def _pause(self, why: int) -> None:
        if not self._gate:
            lib.pl_conn_pause(self._ptr, self._id)
        self._gate |= why

    def _resume(self, why: int) -> None:
        if self._gate & why:
            self._gate &= ~why
            if not self._gate:
                lib.pl_conn_resume(self._ptr, self._id)

    async def receive(self) -> bytes | None:
        """Wait for the next message; None at the peer's end of stream.

        For coroutine handlers and for clients without a protocol.

        Raises:
            ConnectionClosed: this side has closed it.
            OSError, FramingError, TimeoutError: why it was lost.
            RuntimeError: another receive() is waiting, or messages go elsewhere.
        """
        return await self._inbox().get()

    def _inbox(self) -> Inbox:
        if isinstance(self._target, Inbox):
            return self._target
        raise RuntimeError(
            "receive() is for coroutine handlers and clients without a protocol: "
            "the messages of this connection go to its handler"
        )

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> bytes:
        message = await self._inbox().get()
        if message is None:
            raise StopAsyncIteration
        return message

    # ---- ending ----

    def close(self) -> None:
        """Close after flushing; messages not yet delivered are dropped."""
        if not self._gate & CLOSED:
            self._gate |= CLOSED
            self._close_input(None)
            self._close_core()

    def _close_core(self) -> None:
        lib.pl_conn_close(self._ptr, self._id)

    def abort(self) -> None:
        """Close now: queued output is lost, the peer sees a reset."""
        self._gate |= CLOSED
        lib.pl_conn_abort(self._ptr, self._id, -errno.ECONNABORTED)

    async def wait_closed(self) -> None:
        """Wait until the socket is closed, all queued output handed over or lost."""
        if self._ptr == ffi.NULL:
            return
        waiter = self._owner.loop.create_future()
        waiters = _CLOSE_WAITERS.setdefault(self, [])
        waiters.append(waiter)
        await waiter

    def _close_input(self, exc: BaseException | None) -> None:
        """End what waits for messages or for room to write."""
        writers, self._writers = self._writers, None
        if isinstance(self._target, Inbox):
            self._target.end(exc)
        if isinstance(writers, deque):
            self._wake_writers(writers, self._closed_error("drain"))

    # ---- called by dispatch and servers ----

    def _attach(self, call: Callable[[Any, bytes], object], target: Any) -> None:
        self._call, self._target = call, target

    def _start_protocol(self, protocol: Any) -> None:
        self._attach(type(protocol).message_received, protocol)
        self._guard(protocol.connection_made, self)

    def _start_conversation(self, handler: Callable[[Connection], Coroutine[Any, Any, Any]]) -> Any:
        """Give it an inbox, and a task that runs `handler`."""
        self._attach(Inbox.push, Inbox(self))
        return self._owner.loop.create_task(self._converse(handler))

    async def _converse(self, handler: Callable[[Connection], Coroutine[Any, Any, Any]]) -> None:
        try:
            await handler(self)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception as exc:
            if exc is not self._exc:
                self._fail(exc)
        else:
            self.close()

    def _drain_input(self) -> None:
        """Take one last receive, then see end of stream: the server is stopping."""
        lib.pl_conn_drain(self._ptr, self._id)

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the user's code; what it raises ends this connection only."""
        try:
            return call(*args)
        except Exception as exc:
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        log.error("handler of %s raised; connection aborted", self.peername, exc_info=exc)
        if self._exc is None:
            self._exc = exc
        self._gate |= CLOSED
        lib.pl_conn_abort(self._ptr, self._id, -errno.ECONNABORTED)

    def _received_eof(self) -> None:
        if self._gate & CLOSED:
            return
        if isinstance(self._target, Inbox):
            self._target.end(None)
        elif not (isinstance(self._target, Protocol) and self._guard(self._target.eof_received)):
            self.close()

    def _faulted(self, reason: int) -> None:
        """The core stopped reading: a framing error or a time-out."""
        if self._gate & CLOSED:
            return
        exc = failure(reason)
        timed_out = isinstance(exc, TimeoutError)
        self._exc = exc
        self._gate |= CLOSED
        self._close_input(exc)
        if timed_out and self.buffered:
            lib.pl_conn_abort(self._ptr, self._id, reason)
        else:
            self._close_core()

    def _lost(self, reason: int) -> None:
        """The core closed the socket: tell everyone, once, and break all cycles."""
        if self._exc is None and reason < 0:
            self._exc = failure(reason)
        self._gate |= CLOSED
        self.peername  # noqa: B018 -- decoded while it is cheap to say whose it was
        target, self._target, self._call = self._target, None, _ignore
        self._ptr = ffi.NULL
        if isinstance(target, Inbox):
            self._target = target
        self._close_input(self._exc)
        if isinstance(target, Protocol):
            try:
                target.connection_lost(self._exc)
            except Exception as exc:
                log.error("connection_lost of %s raised", self.peername, exc_info=exc)
        for waiter in _CLOSE_WAITERS.pop(self, ()):
            if not waiter.done():
                waiter.set_result(None)
        self._owner.forget(self)


_CLOSE_WAITERS: dict[Connection, list[asyncio.Future[None]]] = {}


class Inbox:
    """Messages that a coroutine has not taken yet: at most read_limit bytes, or one message."""

    __slots__ = ("conn", "ended", "exc", "messages", "size", "waiter")

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.messages: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.exc: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def push(self, message: bytes) -> None:
        """Take a message from dispatch; when full, the core holds the rest."""
        self.messages.append(message)
        self.size += len(message)
        if self.size >= self.conn._owner.read_limit:
            self.conn._pause(FULL)
        self._wake()

    def end(self, exc: BaseException | None) -> None:
        """No more messages will come, because of `exc` or in good order."""
        if not self.ended:
            self.ended, self.exc = True, exc
        elif self.exc is None:
            self.exc = exc
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> bytes | None:
        """Wait for a message; see Connection.receive."""
        if self.waiter is not None:
            raise RuntimeError("another receive() is already waiting on this connection")
        while not self.messages:
            if self.ended:
                return self._at_end()
            self.waiter = self.conn._owner.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.size -= len(message)
        if self.conn._gate & FULL and self.size * 2 <= self.conn._owner.read_limit:
            self.conn._resume(FULL)
        return message

    def _at_end(self) -> None:
        if self.exc is not None:
            raise self.exc
        if self.conn._gate & CLOSED and self.conn._ptr != ffi.NULL:
            raise self.conn._closed_error("receive")
