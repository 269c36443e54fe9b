"""asyncio's transports over conns of the core: what streams and pipes share.

    write -> pl_conn_write -> the next flush     data_received <- the walk <- PL_EV_MESSAGE
                                                 buffer_updated <- pl_conn_receive <- PL_EV_READABLE

The socket object owns the fd, and the core has the use of it until PL_EV_LOST. Dispatch calls what
it calls of a Connection: `_gate`, `_context`, `_call` and `_target` are read by its walk.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import warnings
from types import MethodType
from typing import Any

from pyloop.core import failure, ffi, lib
from pyloop.endpoint import TransportBase
from pyloop.fast import fastpath
from pyloop.groups import MARKS
from pyloop.inbox import CLOSED, PAUSED
from pyloop.protocol import deliver, ignore
from pyloop.seams import LOG_THRESHOLD_FOR_CONNLOST_WRITES, feed_buffered

__all__ = ["LOST", "NOBODY", "CoreTransport"]

LOST = 8
"""A bit of `_gate`, beside PAUSED and CLOSED: connection_lost has been called."""

NOBODY = (1 << 64) - 1
"""The id of no conn."""

_log = logging.getLogger("asyncio")


def _call_it(received: Any, data: bytes) -> None:
    received(data)


if fastpath is not None:
    fastpath.use_calls(deliver, _call_it, feed_buffered)


class CoreTransport(TransportBase):
    """What transports of all kinds share: a conn of the core, a protocol, flow control, the end.

    Belongs to the loop's thread, as asyncio's transports do.
    """

    __slots__ = (
        "__weakref__",
        "_exc",
        "_file",
        "_lost_writes",
        "_protocol",
        "_room",
    )

    _flags = 0
    """enum pl_flag of its conns, beside PL_BORROWED."""

    def __init__(
        self,
        loop: Any,
        file: Any,
        protocol: Any,
        extra: dict[str, Any] | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._loop = loop
        self._file = file  # owns the fd
        self._extra = extra
        self._protocol_paused = False
        self._high_water, self._low_water = MARKS
        self._ptr = ffi.NULL
        self._id = self._write_id = NOBODY
        self._gate = 0
        self._context = context or contextvars.copy_context()  # in which the protocol is called
        self._exc: BaseException | None = None
        self._lost_writes = 0
        self._call = ignore
        self._target = None
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        if self._gate & LOST:
            return f"<{type(self).__name__} closed>"
        state = "closing" if self._gate & CLOSED else "paused" if self._gate else "open"
        size = self.get_write_buffer_size()
        try:
            fd = self._fileno()
        except ValueError:  # closed by somebody else
            fd = -1
        return f"<{type(self).__name__} {state} fd={fd} write=<bufsize={size}>>"

    def _fileno(self) -> int:
        return self._file.fileno()  # type: ignore[no-any-return]

    # ---- its beginning ----

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        """Enter the core, and tell the protocol, then the waiter. Runs in the context."""
        try:
            if not self._gate & CLOSED:
                self._open()
        except (OSError, ValueError, RuntimeError) as exc:
            self._gate |= CLOSED | LOST
            self._let_go()
            if waiter is None or waiter.done():
                raise
            waiter.set_exception(exc)
            return
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "Exception in protocol.connection_made()")
        finally:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            if self._ptr == ffi.NULL:  # it was closed before it began
                self._loop.call_soon(self._lost, 0)

    def _open(self) -> None:
        core = self._loop._core
        ident = ffi.new("uint64_t *")
        fd = self._fileno()
        group = self._loop._groups.number(self._flags)
        core.watches.vacate(fd)
        core.check_fd(lib.pl_conn_open(core.ptr, group, fd, ident), fd)
        self._enter(core, ident[0])

    def _enter(self, core: Any, ident: int) -> None:
        """Be the transport of a conn."""
        self._ptr, self._id, self._write_id = core.ptr, ident, ident
        core.dispatch.put(ident & 0xFFFFFFFF, self)
        if self._call is feed_buffered:
            lib.pl_conn_readiness(self._ptr, ident, True)
        if self._gate:
            lib.pl_conn_pause(self._ptr, ident)
        if self._high_water != MARKS[0] or self._low_water != MARKS[1]:
            self._set_marks(self._high_water, self._low_water)

    # ---- its protocol ----

    def set_protocol(self, protocol: Any) -> None:
        """Give what arrives from now on, and what was held back, to another protocol."""
        received = getattr(protocol, "data_received", None)
        call, target = _call_it, received
        if isinstance(protocol, asyncio.BufferedProtocol):
            call, target = feed_buffered, protocol
        elif type(received) is MethodType:  # saves a call for each message
            call, target = received.__func__, received.__self__
        is_buffered = call is feed_buffered
        if is_buffered != (self._call is feed_buffered):
            self._check(lib.pl_conn_readiness(self._ptr, self._id, is_buffered))
        self._protocol, self._call, self._target = protocol, call, target
        self._room = self._shared_room(protocol) if is_buffered else None

    def _shared_room(self, protocol: Any) -> Any:
        """Return where a BufferedProtocol receives without being asked; None: ask it."""
        return None

    def get_protocol(self) -> Any:
        return self._protocol

    # ---- reading ----

    def is_reading(self) -> bool:
        return not self._gate

    def pause_reading(self) -> None:
        """Stop delivering; what has arrived is kept, and the peer is slowed down."""
        if not self._gate:
            self._check(lib.pl_conn_pause(self._ptr, self._id))
            self._gate = PAUSED

    def resume_reading(self) -> None:
        """Deliver again, starting with what was kept."""
        if self._gate == PAUSED:
            self._check(lib.pl_conn_resume(self._ptr, self._id))
            self._gate = 0

    def _check(self, code: int) -> int:
        if code < 0 and code != -errno.ESTALE:
            raise failure(code, self._ptr)
        return code

    def _readable(self) -> None:
        """Called by dispatch: receive into the protocol's own buffer, if it still has one."""
        if self._call is feed_buffered and not self._gate and self._context.run(self._receive) == 0:
            self._received_eof()

    def _receive(self) -> int:
        try:
            with ffi.from_buffer("uint8_t[]", self._protocol.get_buffer(-1), True) as room:
                if not len(room):
                    raise RuntimeError("get_buffer() returned an empty buffer")
                count: int = lib.pl_conn_receive(self._ptr, self._id, room, len(room))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.get_buffer() call failed.")
            return -1
        return self._received(count)

    def _received(self, count: int) -> int:
        try:
            if count > 0:
                self._protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")
        return count

    def _fail(self, exc: BaseException) -> None:
        """Called by dispatch when data_received raised."""
        self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")

    def _received_eof(self) -> None:
        if self._gate & CLOSED:
            return
        keep = False
        try:
            keep = self._context.run(self._protocol.eof_received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
        finally:
            if not keep:
                self.close()

    # ---- writing ----

    def _written(self, code: int, data: Any) -> None:
        """Act on what the core said to a write that was not simply queued."""
        if code == 1:
            self._maybe_pause_protocol()  # type: ignore[attr-defined]
        elif code not in (-errno.ESTALE, -errno.EPIPE):
            raise failure(code, self._ptr)
        elif self._write_id == NOBODY and not self._gate & CLOSED:
            began = self._ptr != ffi.NULL
            why = "sendfile is in progress" if began else "connection_made was not called yet"
            raise RuntimeError(f"unable to write; {why}")
        elif code == -errno.EPIPE and not self._gate & CLOSED:
            raise RuntimeError("Cannot call write() after write_eof()")
        elif len(data):
            if self._ptr != ffi.NULL:
                self._gate |= CLOSED  # the next turn tells the loss: until then, drain() waits
            if self._lost_writes >= LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                _log.warning("socket.send() raised exception.")
            self._lost_writes += 1

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes queued and not yet taken by the kernel."""
        queued: int = lib.pl_conn_queued(self._ptr, self._id)
        return max(0, queued)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks, in bytes, at which the protocol is paused and resumed."""
        self._check(lib.pl_conn_queued(self._ptr, self._id))
        self._set_write_buffer_limits(high=high, low=low)  # type: ignore[attr-defined]
        if self._set_marks(self._high_water, self._low_water) == 1:
            self._maybe_pause_protocol()  # type: ignore[attr-defined]

    def _set_marks(self, high: int, low: int) -> int:
        if self._ptr == ffi.NULL:
            return 0
        return self._check(self._loop._groups.set_marks(self._id, self._flags, high, low))

    def _resume_writing(self) -> None:
        """Called by dispatch. What was written since is above the low mark perhaps, and no second
        event follows; above the high one, it does."""
        if not self._protocol_paused or self.get_write_buffer_size() > self._high_water:
            return
        self._protocol_paused = False
        try:
            self._context.run(self._protocol.resume_writing)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "protocol.resume_writing() failed")

    # ---- its end ----

    def is_closing(self) -> bool:
        return bool(self._gate & CLOSED)

    def close(self) -> None:
        """Close once what is queued is with the kernel; nothing more is delivered."""
        if not self._gate & CLOSED:
            code = lib.pl_conn_close(self._ptr, self._id)
            if code < 0:
                self._check(code)
            self._gate |= CLOSED
            if code == 1 or self._loop._closed:
                self._forget()
            elif code == 2:
                self._loop.call_soon(self._lost, 0)  # before the event, as asyncio

    def abort(self) -> None:
        """Close now; what is queued is lost."""
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        code = lib.pl_conn_abort(self._ptr, self._id, 0)
        self._check(code)
        self._gate |= CLOSED
        if self._exc is None:
            self._exc = exc
        if code == 1 or self._loop._closed:
            self._forget()
        elif code == 0:
            self._loop.call_soon(self._lost, 0)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if not isinstance(exc, OSError):
            self._report(exc, message)
        elif self._loop.get_debug():
            _log.debug("%r: %s", self, message, exc_info=True)
        self._force_close(exc)

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    def _lost(self, reason: int) -> None:
        """Called by dispatch, or before it: the core no longer knows the conn."""
        if self._gate & LOST:
            return
        if self._exc is None and reason < 0:
            self._exc = failure(reason)
        self._gate |= CLOSED | LOST
        self._ptr = ffi.NULL
        self._write_id = NOBODY
        protocol, self._protocol = self._protocol, None
        self._call, self._target = ignore, None
        try:
            self._context.run(protocol.connection_lost, self._exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "Fatal error: protocol.connection_lost() call failed.")
        finally:
            self._exc = None  # and with it the frames that it may hold
            self._let_go()

    def _let_go(self) -> None:
        """Close what owns the fd. Linux has closed it whatever close(2) says; or others have."""
        try:  # cheaper than contextlib.suppress
            self._file.close()
        except OSError:
            pass

    def _forget(self) -> None:
        """Cut it off from a core that is about to be freed, or is the parent's; tell nobody."""
        self._ptr = ffi.NULL
        if self._gate & CLOSED and not self._gate & LOST:  # nothing will follow
            self._gate |= LOST
            self._let_go()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if not self._gate & LOST:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._gate |= CLOSED | LOST
            self._let_go()
