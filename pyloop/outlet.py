"""The half of a served connection that any thread may use: models thread and fork.

    send      own thread: to the kernel, and waits until all is there (ServedConnection)
              others: to the kernel if it takes it, else to _out; the wake tells the own thread

All that is here is done under the lock, and nothing here waits. The fd is closed by the own thread
only, when it no longer waits.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import os
import struct
import threading
import time
from typing import Any

from pyloop.address import Address, decode_sockaddr, local_address, show_address
from pyloop.blocking import BlockingConnection
from pyloop.core import failure, ffi, lib
from pyloop.errors import ConnectionClosed, WriteLimitError, without_frames
from pyloop.framing import as_bytes
from pyloop.mapping import MappedView
from pyloop.outbox import Outbox
from pyloop.protocol import Owner, log

__all__ = ["ABORTED", "CLOSING", "INPUT", "LOST", "OPEN", "ROOM", "Outlet", "Wake"]

OPEN, CLOSING, ABORTED, LOST = range(4)
INPUT, ROOM = lib.PL_CAME_INPUT, lib.PL_CAME_ROOM
_ONE = struct.pack("Q", 1)  # what an eventfd wants; to a pipe any bytes will do


def _above_stdio(fd: int) -> int:
    """Return `fd`, or a copy of it that is not where stdin, stdout or stderr should be."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


class Wake:
    """What ends a wait of another thread: an eventfd, or a pipe, which takes signals too."""

    __slots__ = ("fd", "write_fd")

    def __init__(self, pipe: bool = not hasattr(os, "eventfd")) -> None:
        if pipe:
            self.fd, self.write_fd = map(_above_stdio, os.pipe())
            os.set_blocking(self.fd, False)
            os.set_blocking(self.write_fd, False)
        else:
            flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
            self.fd = self.write_fd = _above_stdio(os.eventfd(0, flags))

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self.write_fd, _ONE)

    def close(self) -> None:
        for fd in {self.fd, self.write_fd}:
            os.close(fd)


class Outlet(BlockingConnection):
    """A peer to send to, from any thread, and to close."""

    __slots__ = (
        "__weakref__",
        "_active",
        "_broken",
        "_context",
        "_counters",
        "_draining",
        "_exc",
        "_failed",
        "_fd",
        "_gate",
        "_lock",
        "_options",
        "_out",
        "_owner",
        "_paused",
        "_queued",
        "_sent",
        "_shut",
        "_thread",
        "_wake",
    )

    def __init__(
        self, owner: Owner, fd: int, peer: bytes, wake: Wake | None, counters: Any, ident: int
    ) -> None:
        self._begin(owner.framing, ident)
        self._owner = owner
        self._fd = fd
        self._wake = wake
        self._counters = counters
        self._options = owner.server._group.options
        self._context: contextvars.Context = owner.context.copy()
        self._lock = threading.RLock()  # a signal handler may come in between
        self._thread = 0
        self._out = Outbox()
        self._queued = self._sent = 0  # bytes, ever
        self._gate = OPEN
        self._exc: BaseException | None = None
        self._active = time.monotonic_ns()  # when a message came or output left
        self._draining = False  # the server is stopping: the last receive is due
        self._paused = False
        self._shut = self._broken = False  # no more output: by us, by the peer
        self._failed = False
        self.peername: Address = decode_sockaddr(peer)

    # ---- what it is ----

    @property
    def server(self) -> Any:
        """The Server that accepted it."""
        return self._owner.server

    @property
    def sockname(self) -> Address | None:  # type: ignore[override]
        """This side's address, or None once the connection is lost."""
        with self._lock:
            return local_address(self._fd) if self._gate <= CLOSING else None

    @property
    def buffered(self) -> int:
        """Bytes queued to send, by other threads."""
        return len(self._out)

    @property
    def is_closing(self) -> bool:
        """Has it been closed, or lost?"""
        return self._gate != OPEN or self._broken

    def __repr__(self) -> str:
        state = "closing" if self.is_closing else "open"
        return f"<{type(self).__name__} {show_address(self.peername)} {state}>"

    # ---- sending ----

    def send(self, message: Any) -> None:
        """Send one message, framed.

        In the connection's own thread it returns when the kernel has it; from another one it queues
        what the kernel does not take at once. Dropped and counted if the connection is closing.

        Raises:
            TypeError: `message` is not bytes-like, or a MappedView under Lines or Delimited.
            ValueError: it does not fit the framing; nothing is sent.
            TimeoutError: the peer took nothing for idle_timeout, 30 seconds if there is none.
            OSError: EFAULT: the file of a MappedView was truncated; the connection is aborted.
        """
        wait = threading.get_ident() == self._thread
        if type(message) is MappedView:
            self._put(message, self._framing._wrap_view(message), wait)
            return
        payload = message if type(message) is bytes else as_bytes(message)
        head, tail = self._framing.wrap(payload)
        self._put(head + payload + tail, None, wait)

    def write(self, data: Any) -> None:
        """Send bytes as they are. As `send` otherwise."""
        data = data if type(data) in (bytes, MappedView) else as_bytes(data)
        self._put(data, None, threading.get_ident() == self._thread)

    def _put(self, data: bytes | MappedView, wrap: Any, wait: bool) -> None:
        """Send bytes of the wire, or a view with `wrap` around it."""
        with self._lock:
            if not self._admit(wait):
                return
            waiting = bool(self._out)
            self._counters.messages_out += 1
            self._enqueue(data, wrap)
            if not self._out and not isinstance(data, MappedView):
                return
            target = self._queued
            if self._out and not waiting:
                self._wake_owner()
        if wait:
            self._wait_sent(target, ROOM)
            if self._gate == ABORTED and isinstance(data, MappedView):
                self._check_torn()

    def _check_torn(self) -> None:
        if self._exc is not None and getattr(self._exc, "errno", 0) == errno.EFAULT:
            raise without_frames(self._exc)

    def _admit(self, wait: bool) -> bool:
        """May more be sent? Who waits may always; for others write_limit holds."""
        if self._gate or self._broken or self._shut:
            self._counters.dropped += 1
            if self._gate == LOST:
                self._owner.forget(self)  # which has added it up already
            return False
        limit = self._options.write_limit
        if wait or not limit or len(self._out) <= limit:
            return True
        self._counters.write_limit_aborts += 1
        where = show_address(self.peername)
        self._abort_now(
            WriteLimitError(
                f"peer {where} does not read: more than write_limit={limit} bytes are queued"
            )
        )
        return False

    def _enqueue(self, data: bytes | MappedView, wrap: Any) -> None:
        if isinstance(data, MappedView):
            self._push_view(data, wrap or ffi.new("struct pl_wrap *"))
        else:
            self._push(data)

    def _push(self, data: bytes) -> None:
        """Hand bytes of the wire to the kernel, or queue what it does not take."""
        self._queued += len(data)
        sent = 0
        if data and not self._out:
            sent = self._took(lib.pl_socket_send(self._fd, data, len(data)))
        if sent < len(data) and not self._broken:
            self._check_pushed(self._out.push(data[sent:]))

    def _push_view(self, view: MappedView, wrap: Any) -> None:
        waiting = len(self._out)
        self._check_pushed(self._out.push_view(view, wrap))
        self._queued += len(self._out) - waiting
        if not waiting:
            self._flush()

    def _check_pushed(self, code: int) -> None:
        """Out of memory: what follows would not be the stream."""
        if code < 0:
            self._abort_now(failure(code))

    def _took(self, sent: int) -> int:
        """Count what the kernel took, or see why it took nothing; return how many bytes."""
        if sent > 0:
            self._sent += sent
            self._counters.bytes_out += sent
            self._active = time.monotonic_ns()
        elif sent == lib.PL_E_TRUNCATED:
            exc = failure(sent)
            log.error("%s; connection of %s aborted", exc.args[-1], show_address(self.peername))
            self._abort_now(exc)  # an end in good order would say that this was all
        elif sent < 0 and sent != -errno.EAGAIN:
            self._break(failure(sent))
        return max(0, sent)

    def _flush(self) -> None:
        """Offer the queue once; when it is empty, half-close if that was wanted."""
        if self._out:
            self._took(self._out.send(self._fd))
            if self._broken:
                self._out.clear()
        if self._shut and not self._out and not self._broken:
            lib.pl_socket_shutdown(self._fd)

    def _break(self, exc: Exception) -> None:
        """The peer takes no more. What it has said is still received, and then this is told."""
        self._broken = True
        if self._exc is None:
            self._exc = exc

    def _wait_sent(self, target: int, wanted: int) -> None:
        """Wait until `target` bytes have left; input that comes, if `wanted`, is thrown away."""
        raise NotImplementedError  # abstract: waiting is ServedConnection's, here nothing waits

    def pause_reading(self) -> None:
        """Stop delivering messages; what has arrived is kept, and the peer is slowed down."""
        self._paused = True

    def resume_reading(self) -> None:
        """Deliver again, starting with what was kept."""
        with self._lock:
            self._paused = False
            self._wake_owner()

    def _drain_input(self) -> None:
        """Take one last receive, then see end of stream: the server is stopping."""
        with self._lock:
            self._draining = True
            self._wake_owner()

    # ---- ending ----

    def _closed_error(self, what: str) -> BaseException:
        """Return what to raise once it is closed: why it was lost, unless we did it."""
        exc = self._exc
        if exc is not None and not isinstance(exc, ConnectionAbortedError):
            return without_frames(exc)
        where = show_address(self.peername)
        error = ConnectionClosed(f"{what}: the connection to {where} is closed")
        error.__cause__ = exc
        return error

    def _wake_owner(self) -> None:
        wake = self._wake
        if wake is not None and self._gate != LOST and threading.get_ident() != self._thread:
            wake.send()

    def close_writing(self) -> None:
        """Half-close: the peer sees end of stream after what was sent; receiving goes on.

        Raises:
            ConnectionClosed: the connection is closing or lost.
        """
        with self._lock:
            if self.is_closing or self._shut:
                raise self._closed_error("close_writing")
            self._shut = True
            self._flush()
            self._wake_owner()
            target = self._queued
        if threading.get_ident() == self._thread:
            self._wait_sent(target, ROOM)

    def close(self) -> None:
        """Close after flushing; messages not yet delivered are dropped."""
        with self._lock:
            self._close_now()

    def _close_now(self) -> None:
        if self._gate:
            return
        self._gate = CLOSING
        self._say_goodbye()
        self._shut = True
        self._flush()
        self._wake_owner()

    def _say_goodbye(self) -> None:
        """Queue what ends the layer above TCP."""

    def abort(self) -> None:
        """Close now: queued output is lost, the peer sees a reset."""
        with self._lock:
            self._abort_now(failure(-errno.ECONNABORTED))

    def _abort_now(self, exc: BaseException) -> None:
        if self._gate > CLOSING:
            return
        self._gate = ABORTED
        self._counters.aborts += 1
        if self._exc is None:
            self._exc = exc
        self._out.clear()
        lib.pl_socket_reset(self._fd)
        self._wake_owner()

    def _fail(self, exc: BaseException) -> None:
        where = show_address(self.peername)
        log.error("handler of %s raised; connection aborted", where, exc_info=exc)
        self._failed = True
        with self._lock:
            self._exc = self._exc or exc
            self._abort_now(exc)
