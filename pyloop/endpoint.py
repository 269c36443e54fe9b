"""What is hot in a connection and in a transport: the fields of the walk, sending, receiving.

    _call(_target, message) in _context, unless _gate says why not    <- the walk
    send, write -> pl_conn_send, pl_conn_write -> the next flush
    receive, async for -> Inbox (inbox.py), in _target

csrc/fastpath/endpoint.c and awaiting.c have their twins.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any, Self

from pyloop.core import ffi, lib
from pyloop.fast import fastpath
from pyloop.seams import FlowControlMixin

__all__ = ["ConnectionBase", "TransportBase"]

_send, _write = lib.pl_conn_send, lib.pl_conn_write


class ConnectionBase:
    """A conn of the core to which messages are sent."""

    __slots__ = (
        *("_call", "_context", "_gate", "_id", "_ptr", "_target"),
        *("_closed", "_exc", "_owner", "_peer", "_writable", "state"),
    )

    _call: Any
    _context: Context
    _gate: int
    _id: int
    _ptr: Any
    _target: Any
    _closed: Any
    _exc: BaseException | None
    _owner: Any
    _peer: Any
    _writable: asyncio.Event | None
    state: Any

    def send(self, message: Any, /) -> None:
        """Queue one message, framed; it leaves with the loop's next turn.

        Args:
            message: bytes-like, taken as it is now; or a MappedView, taken when it is flushed.

        Raises:
            TypeError: `message` is neither, or a MappedView under Lines or Delimited.
            ValueError: it does not fit the framing; nothing is sent.
        """
        if type(message) is not bytes:
            return self._send_other(message, True)
        code = _send(self._ptr, self._id, message, len(message))
        if code:
            self._sent(code, len(message))

    def write(self, data: Any, /) -> None:
        """Queue bytes as they are, without framing.

        Raises:
            TypeError: `data` is not bytes-like.
        """
        if type(data) is not bytes:
            return self._send_other(data, False)
        code = _write(self._ptr, self._id, data, len(data))
        if code:
            self._sent(code, len(data))

    async def drain(self) -> None:
        """Wait until no more than 16 KiB are queued, if more than 64 KiB were.

        Raises:
            ConnectionClosed: the connection is closing or lost.
        """
        if self._gate or self._writable is not None:
            await self._drained()

    async def receive(self) -> bytes | None:
        """Wait for the next message; None at the peer's end of stream.

        For coroutine handlers and for clients without a protocol.

        Raises:
            ConnectionClosed: this side has closed it.
            OSError, FramingError, TimeoutError: why it was lost.
            RuntimeError: another receive() is waiting, or messages go elsewhere.
        """
        message: bytes | None = await self._inbox().get()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message: bytes | None = await self._inbox().get()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _drained(self) -> None:
        """Wait for room to send, or raise that the connection is closed."""
        raise NotImplementedError  # abstract: the end, and its reason, are Connection's

    def _inbox(self) -> Any:
        """Return the Inbox, or raise why there is none."""
        raise NotImplementedError  # abstract: Connection knows where messages go

    def _send_other(self, data: Any, framed: bool) -> None:
        """Send what is not simply bytes."""
        raise NotImplementedError  # abstract: mapped views are Connection's

    def _sent(self, code: int, length: int) -> None:
        """Act on what the core said to a send that was not simply queued."""
        raise NotImplementedError  # abstract: limits and refusals are Connection's


class TransportBase(FlowControlMixin):
    """A conn of the core to which bytes are written."""

    __slots__ = ("_call", "_context", "_gate", "_id", "_ptr", "_target", "_write_id")

    _call: Any
    _context: Context
    _gate: int
    _id: int
    _ptr: Any
    _target: Any
    _write_id: int

    def write(self, data: Any) -> None:
        """Queue bytes as they are now; they leave with the loop's next turn.

        Raises:
            TypeError: `data` is not bytes, a bytearray or a memoryview.
            RuntimeError: after write_eof(), or while sendfile() is in progress.
        """
        if type(data) is not bytes:
            return self._write_other(data)
        code = _write(self._ptr, self._write_id, data, len(data))
        if code:
            self._written(code, data)

    def _write_other(self, data: Any) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            kind = type(data).__name__
            raise TypeError(f"data argument must be a bytes-like object, not {kind!r}")
        if isinstance(data, memoryview) and not data.c_contiguous:
            data = bytes(data)
        with ffi.from_buffer(data) as span:
            code = _write(self._ptr, self._write_id, span, len(span))
        if code:
            self._written(code, data)

    def _written(self, code: int, data: Any) -> None:
        """Act on what the core said to a write that was not simply queued."""
        raise NotImplementedError  # abstract: flow control is CoreTransport's


if fastpath is not None:
    _write_other = TransportBase._write_other

    class _TransportBase(fastpath.TransportBase):  # type: ignore[misc]
        __slots__ = ()
        _write_other = _write_other

    ConnectionBase = fastpath.ConnectionBase  # type: ignore[misc]
    TransportBase = _TransportBase  # type: ignore[misc]
