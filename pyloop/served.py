"""A connection that a server gives a thread or a process of its own: models thread and fork.

    receive   pl_reader_receive waits for the socket and the wake, pl_reader_next cuts

All that is here belongs to the own thread: it alone waits, and the reader is its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import Any

from pyloop.address import show_address
from pyloop.core import failure, ffi, lib
from pyloop.errors import without_frames
from pyloop.outlet import ABORTED, CLOSING, INPUT, LOST, OPEN, ROOM, Outlet, Wake
from pyloop.protocol import Owner, Protocol, log

__all__ = ["ServedConnection"]

_AGAIN = (-errno.EINTR, -errno.EAGAIN)
_LOOK_AGAIN = lib.PL_CAME_WAKE
_SLICE_NS = 100_000_000


class ServedConnection(Outlet):
    """A peer, as handlers of models thread and fork see it. Every method is thread-safe."""

    __slots__ = (
        "_at_end",
        "_drained",
        "_hung",
        "_pushes",
        "_raw",
        "_raw_ended",
        "_received",
        "_since",
    )

    def __init__(
        self, owner: Owner, fd: int, peer: bytes, wake: Wake | None, counters: Any, ident: int
    ) -> None:
        super().__init__(owner, fd, peer, wake, counters, ident)
        self._raw = self._reader  # what is received into
        self._received = ffi.new("size_t *")
        self._since = 0  # when the unfinished message was first seen
        self._drained = False  # the last receive has been
        self._raw_ended = self._hung = False
        self._pushes = self._at_end = False

    # ---- receiving ----

    def receive(self) -> bytes | None:
        """Return the next message; None at the peer's end of stream, or when the server stops.

        For conversations, in the thread that runs them.

        Raises:
            ConnectionClosed: this side has closed it.
            OSError, FramingError, TimeoutError: why it was lost.
            RuntimeError: called in another thread, or messages go to the handler.
        """
        if self._pushes:
            raise RuntimeError(
                "receive() is for conversations, def (conn): "
                "the messages of this connection go to its handler"
            )
        if threading.get_ident() != self._thread:
            raise RuntimeError("receive() is for the thread that runs the connection's handler")
        return self._next()

    def _next(self) -> bytes | None:
        while True:
            if self._gate:
                raise self._closed_error("receive")
            if not self._paused:
                message = self._cut(lib.pl_reader_next)
                if message is not None:
                    return self._arrived(message)
                if self._ended:
                    return self._last()
                if self._drained:
                    self._at_end = True
                    return None
            self._fill()

    def _arrived(self, message: bytes) -> bytes:
        self._counters.messages_in += 1
        self._active = time.monotonic_ns()
        self._since = 0
        return message

    def _last(self) -> bytes | None:
        message = self._cut(lib.pl_reader_finish)
        if message is not None:
            return self._arrived(message)
        if self._broken:
            raise self._closed_error("receive")
        self._at_end = True
        return None

    def _bad_input(self, code: int) -> Exception:
        self._counters.framing_errors += 1
        return self._fault(failure(code))

    def _fill(self) -> None:
        """Wait once: for input unless paused, for room if something is queued, for the wake."""
        last = self._draining and not self._paused
        wanted = (0 if self._paused else INPUT) | (ROOM if self._out else 0)
        code = self._wait(wanted, 0 if last else self._time_left())
        if code < 0:
            raise self._lose(failure(code))
        if code & ROOM:
            with self._lock:
                self._flush()
        if code & lib.PL_CAME_HANGUP:
            self._hung = True  # what it has said is received when it is wanted
        if code & INPUT:
            self._absorb()
        if code & lib.PL_CAME_END:
            self._end_input()
        if last:
            self._drained = True
        elif code == 0:
            self._expire()

    def _absorb(self) -> None:
        """Make plaintext of what was received."""

    def _end_input(self) -> None:
        self._ended = self._raw_ended = True

    def _time_left(self) -> int:
        """Return nanoseconds until the peer is late, -1 for never."""
        now, options = time.monotonic_ns(), self._options
        dues = []
        if options.idle_timeout:
            dues.append(self._active + options.idle_timeout)
        if options.message_timeout and not self._ended:
            if self._paused or not lib.pl_reader_len(self._reader):
                self._since = 0  # nothing is unfinished, or it could not be finished
            else:
                self._since = self._since or now
                dues.append(self._since + options.message_timeout)
        return max(0, min(dues) - now) if dues else -1

    def _expire(self) -> None:
        now, options = time.monotonic_ns(), self._options
        if options.idle_timeout and self._active + options.idle_timeout <= now:
            reason = lib.PL_E_IDLE
        elif self._since and self._since + options.message_timeout <= now:
            reason = lib.PL_E_MESSAGE_TIME
        else:
            return  # another thread has sent something meanwhile
        self._counters.timeouts += 1
        raise self._fault(failure(reason))

    def _wait(self, wanted: int, timeout_ns: int) -> int:
        fd = -1 if self._hung and not wanted else self._fd  # a hangup would be told again at once
        blind = self._wake is None  # who wanted to end this wait a moment ago could not
        limit, wake, got = timeout_ns, self._has_wake(), self._received
        if blind and not 0 <= timeout_ns < _SLICE_NS:
            limit = _SLICE_NS
        code: int = lib.pl_reader_receive(self._raw, fd, wanted, wake, limit, got)
        self._counters.bytes_in += got[0]
        early = code in _AGAIN or (code == 0 and limit != timeout_ns)
        return _LOOK_AGAIN if early else code

    def _has_wake(self) -> int:
        """Return the fd of the wake; -1 when fds are short."""
        if self._wake is None:
            with self._lock, contextlib.suppress(OSError):
                self._wake = Wake()
        return self._wake.fd if self._wake is not None else -1

    # ---- ending ----

    def _fault(self, exc: Exception) -> Exception:
        """Close because of what the peer did, or did not do in time; return what to raise."""
        with self._lock:
            if self._exc is None:
                self._exc = exc
            if isinstance(exc, TimeoutError) and self._out:
                self._abort_now(exc)
            else:
                self._close_now()
        return without_frames(exc)

    def _lose(self, exc: Exception) -> BaseException:
        """The socket has failed: return what to raise."""
        with self._lock:
            if self._gate == OPEN:
                self._gate = ABORTED
                self._exc = self._exc or exc
        return self._closed_error("receive")

    def _wait_sent(self, target: int, wanted: int) -> None:
        """Wait until `target` bytes have left; input that comes, if `wanted`, is thrown away."""
        began = time.monotonic_ns()
        while self._sent < target and self._gate <= CLOSING and not self._broken:
            due = max(began, self._active) + self._options.close_timeout
            code = self._wait(wanted, max(0, due - time.monotonic_ns()))
            with self._lock:
                if code == 0 and self._gate <= CLOSING and time.monotonic_ns() >= due:
                    raise self._stalled()
                if code < 0:
                    self._break(failure(code))
                    self._out.clear()
                elif code & ROOM:
                    self._flush()
            if wanted & INPUT:
                wanted = self._discard(code)

    def _stalled(self) -> TimeoutError:
        seconds = self._options.close_timeout / 1e9
        where = show_address(self.peername)
        exc = TimeoutError(f"send: {where} took nothing for {seconds:g} seconds")
        self._counters.timeouts += 1
        self._abort_now(exc)
        return without_frames(exc)

    # ---- called by who serves it ----

    def _shake_hands(self, timeout: float) -> bool:
        """Prepare the layer above TCP: true when the handler may begin."""
        return True

    def _wait_end(self) -> None:
        """Keep the write side open after the peer's end of stream, until somebody closes it."""
        while not self._gate and not self._broken:
            code = self._wait(ROOM if self._out else 0, self._time_left())
            if self._shut and code & lib.PL_CAME_HANGUP:
                return  # both sides have ended
            if code < 0 or code & lib.PL_CAME_HANGUP:
                self._lose(failure(-errno.ECONNRESET))
            elif code & ROOM:
                with self._lock:
                    self._flush()
            elif code == 0:
                with contextlib.suppress(TimeoutError):
                    self._expire()

    def _finish(self, protocol: Protocol | None) -> None:
        """Close in good order, unless it was aborted, and tell the protocol. In the own thread."""
        self.close()
        with contextlib.suppress(TimeoutError):
            self._wait_sent(self._queued, ROOM | (0 if self._raw_ended else INPUT))
            self._linger()
        with self._lock:
            self._gate = LOST
            self._out.clear()
            os.close(self._fd)
            if self._wake is not None:
                self._wake.close()
        self._exc = self._exc and without_frames(self._exc)
        try:
            if protocol is not None:
                protocol.connection_lost(self._exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            where = show_address(self.peername)
            log.error("connection_lost of %s raised", where, exc_info=exc)

    def _linger(self) -> None:
        """Throw input away until the peer closes too: unread input would reset it at our close."""
        due = time.monotonic_ns() + self._options.linger
        while not self._raw_ended and self._gate == CLOSING and not self._broken:
            left = due - time.monotonic_ns()
            code = self._wait(INPUT, left) if left > 0 else 0
            if code <= 0:
                return
            self._discard(code)

    def _discard(self, code: int) -> int:
        """Throw away what was received; return what to want next."""
        if code >= 0 and code & lib.PL_CAME_END:
            self._raw_ended = True
        lib.pl_reader_consume(self._raw, lib.pl_reader_len(self._raw))
        wanted: int = ROOM | (0 if self._raw_ended else INPUT)
        return wanted
