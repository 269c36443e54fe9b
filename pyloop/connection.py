"""One connection as handlers see it.

A Connection names its conn in the core by id; every method is one call of the core, which refuses
an id that is stale. Dispatch calls the methods with a leading underscore.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from pyloop.address import Address, decode_sockaddr, local_address, show_address
from pyloop.core import failure, ffi, lib
from pyloop.endpoint import ConnectionBase
from pyloop.errors import ConnectionClosed, WriteLimitError, without_frames
from pyloop.fast import own
from pyloop.framing import REFUSALS, as_bytes, refusal
from pyloop.inbox import CLOSED, PAUSED, Inbox
from pyloop.mapping import MappedView
from pyloop.protocol import Owner, Protocol, deliver, ignore, log

__all__ = ["Connection"]


@own
class Connection(ConnectionBase):
    """One peer: send to it, receive from it, close it.

    Belongs to the loop's thread; from another, use loop.call_soon_threadsafe.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, ptr: Any, ident: int, owner: Owner, peer: Any) -> None:
        self._ptr = ptr
        self._id = ident
        self._owner = owner
        self._peer = peer
        self._gate = 0
        self._context = owner.context.copy()  # in which all its callbacks run
        self._call = ignore
        self._target = None
        self._exc = None
        self._writable = None  # there while output is over high water
        self._closed = None  # there while somebody waits for the end
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
        self._check_caller()
        fd = lib.pl_conn_fd(self._ptr, self._id)
        return local_address(fd) if fd >= 0 else None

    @property
    def buffered(self) -> int:
        """Bytes queued to send."""
        self._check_caller()
        queued: int = lib.pl_conn_queued(self._ptr, self._id)
        return max(0, queued)

    @property
    def is_closing(self) -> bool:
        """Has it been closed, or lost?"""
        return bool(self._gate & CLOSED)

    def __repr__(self) -> str:
        state = "closing" if self.is_closing else "open"
        return f"<{type(self).__name__} {show_address(self.peername)} {state}>"

    def _check_caller(self, letting_go: bool = False) -> None:
        """Raise RuntimeError in another thread than the loop's, or process (which may let go)."""
        code = lib.pl_conn_fd(self._ptr, self._id)
        if code == lib.PL_E_THREAD or (code == lib.PL_E_FORKED and not letting_go):
            raise failure(code, self._ptr)

    # ---- sending ----

    def _send_other(self, data: Any, framed: bool) -> None:
        if type(data) is MappedView:
            code = data._queue(self._ptr, self._id, framed)
        else:
            data = as_bytes(data)
            queue = lib.pl_conn_send if framed else lib.pl_conn_write
            code = queue(self._ptr, self._id, data, len(data))
        if code:
            self._sent(code, len(data))

    def _sent(self, code: int, length: int) -> None:
        """Act on what the core said to a send that was not simply queued."""
        if code == 1:
            self._pause_writing()
        elif code == lib.PL_E_WRITE_LIMIT:
            self._gate |= CLOSED
            self._exc = WriteLimitError(
                f"peer {show_address(self.peername)} does not read: more than write_limit="
                f"{self._owner.write_limit} bytes are queued"
            )
        elif code in REFUSALS:
            raise refusal(self._owner.framing, code, length)
        elif code == -errno.ESTALE:
            self._owner.counters.dropped += 1  # the core no longer knows whose it was
        elif code != -errno.EPIPE:
            raise failure(code, self._ptr)

    def _pause_writing(self) -> None:
        if self._writable is None and not self._gate & CLOSED:  # TLS has more to send then
            self._writable = asyncio.Event()
            if isinstance(self._target, Protocol):
                self._guard(self._target.pause_writing)  # in the context of who sends

    def _resume_writing(self) -> None:
        self._wake_writers()
        if isinstance(self._target, Protocol):
            self._guard(self._context.run, self._target.resume_writing)

    def _wake_writers(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    async def _drained(self) -> None:
        if self._writable is not None:
            await self._writable.wait()
        if self._gate & CLOSED:
            raise self._closed_error("drain")

    def _closed_error(self, what: str) -> ConnectionClosed:
        if isinstance(self._exc, ConnectionClosed):
            return without_frames(self._exc)
        where = show_address(self.peername)
        error = ConnectionClosed(f"{what}: the connection to {where} is closed")
        error.__cause__ = self._exc
        return error

    # ---- receiving ----

    def pause_reading(self) -> None:
        """Stop delivering messages; what has arrived is kept, and the peer is slowed down."""
        self._check_caller()
        self._pause(PAUSED)

    def resume_reading(self) -> None:
        """Deliver again, starting with what was kept."""
        self._check_caller()
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

    def _inbox(self) -> Inbox:
        if isinstance(self._target, Inbox):
            return self._target
        raise RuntimeError(
            "receive() is for coroutine handlers and clients without a protocol: "
            "the messages of this connection go to its handler"
        )

    # ---- ending ----

    def close_writing(self) -> None:
        """Half-close: after what is queued the peer sees end of stream; receiving goes on.

        Raises:
            ConnectionClosed: the connection is closing or lost.
        """
        self._check_caller()
        if lib.pl_conn_shutdown(self._ptr, self._id) < 0:
            raise self._closed_error("close_writing")

    def close(self) -> None:
        """Close after flushing; messages not yet delivered are dropped."""
        self._check_caller(letting_go=True)
        if not self._gate & CLOSED:
            self._gate |= CLOSED
            self._drop_input()
            self._close_input(None)
            self._close_core()

    def _drop_input(self) -> None:
        if isinstance(self._target, Inbox):
            self._target.drop(self._closed_error("receive"))

    def _close_core(self) -> None:
        lib.pl_conn_close(self._ptr, self._id)

    def abort(self) -> None:
        """Close now: queued output is lost, the peer sees a reset."""
        self._check_caller(letting_go=True)
        self._gate |= CLOSED
        self._drop_input()
        lib.pl_conn_abort(self._ptr, self._id, -errno.ECONNABORTED)

    async def wait_closed(self) -> None:
        """Wait until the socket is closed, all queued output handed over or lost."""
        if self._ptr != ffi.NULL:
            self._closed = self._closed or asyncio.Event()
            await self._closed.wait()

    def _close_input(self, exc: BaseException | None) -> None:
        """End what waits for messages or for room to write."""
        self._wake_writers()
        if isinstance(self._target, Inbox):
            self._target.end(exc)

    # ---- called by dispatch and servers ----

    def _attach(self, call: Callable[[Any, bytes], object], target: Any) -> None:
        self._call, self._target = call, target

    def _start_protocol(self, protocol: Protocol) -> None:
        self._attach(deliver, protocol)
        self._guard(self._context.run, protocol.connection_made, self)

    def _drain_input(self) -> None:
        """Take one last receive, then see end of stream: the server is stopping."""
        lib.pl_conn_drain(self._ptr, self._id)

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the user's code; what it raises ends this connection only."""
        try:
            return call(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        where = show_address(self.peername)
        log.error("handler of %s raised; connection aborted", where, exc_info=exc)
        if self._exc is None:
            self._exc = exc
        self._gate |= CLOSED
        lib.pl_conn_abort(self._ptr, self._id, -errno.ECONNABORTED)

    def _received_eof(self) -> None:
        if self._gate & CLOSED:
            return
        if isinstance(self._target, Inbox):
            self._target.end(None)
            return
        keep = False
        try:
            if isinstance(self._target, Protocol):
                keep = self._guard(self._context.run, self._target.eof_received)
        finally:
            if not keep:
                self.close()

    def _faulted(self, reason: int) -> None:
        """The core stopped reading: a framing error or a time-out."""
        if self._gate & CLOSED:
            return
        exc = failure(reason)
        self._exc = exc
        if isinstance(self._target, Inbox) and self._target.messages:
            self._target.end(exc)  # what came before the fault can still be answered
        elif isinstance(exc, TimeoutError) and self.buffered:
            self._gate |= CLOSED
            self._close_input(exc)
            lib.pl_conn_abort(self._ptr, self._id, reason)
        else:
            self._end(exc)

    def _end(self, exc: BaseException) -> None:
        """Close because of `exc`, unless that was done."""
        if not self._gate & CLOSED:
            self._gate |= CLOSED
            self._close_input(exc)
            self._close_core()

    def _forget(self) -> None:
        """Cut it off from a core that is about to be freed, and tell nobody."""
        self._gate |= CLOSED
        self._ptr = ffi.NULL

    def _lost(self, reason: int) -> None:
        """The core closed the socket: tell everyone, once, and break all cycles."""
        if self._exc is None and reason < 0:
            self._exc = failure(reason)
        self._gate |= CLOSED
        self.peername  # noqa: B018 -- decoded while it is cheap to say whose it was
        target, self._target, self._call = self._target, None, ignore
        self._ptr = ffi.NULL
        if isinstance(target, Inbox):
            self._target = target
        self._close_input(self._exc)
        if isinstance(target, Inbox):
            target.conn = None
        try:
            if isinstance(target, Protocol):
                self._context.run(target.connection_lost, self._exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            where = show_address(self.peername)
            log.error("connection_lost of %s raised", where, exc_info=exc)
        finally:
            if self._exc is not None:
                self._exc = without_frames(self._exc)
            if self._closed is not None:
                self._closed.set()
            self._owner.forget(self)
