"""The datagram transport of pyloop.Loop: a face over a dgram of the core, which it names by id.

`datagram_calls.py` makes it, and calls the methods with a leading underscore. What is hot, of both,
has its twin in csrc/fastpath/datagram.c.
"""

from __future__ import annotations

import asyncio
import asyncio.trsock
import collections
import contextlib
import errno
import socket
import warnings
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from pyloop.core import failure, ffi, is_foreign, lib
from pyloop.fast import fastpath, own
from pyloop.protocol import log
from pyloop.sockaddr import AddressBook

__all__ = ["HEAD_BYTES", "DatagramTransport"]

_send = lib.pl_dgram_send
_HIGH_WATER = 64 * 1024
_DROPS_LOGGED = 5  # as asyncio: its constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
_NETLINK = getattr(socket, "AF_NETLINK", None)

HEAD_BYTES: int = lib.PL_DATAGRAM_HEAD
# The most that a datagram has, and how much of the head before it tells its sender.
_SIZES: dict[int, tuple[int, int]] = {
    socket.AF_INET: (65536, 4 + 16),
    socket.AF_INET6: (65536, 4 + 28),
}
_OTHER_SIZES: tuple[int, int] = (lib.PL_DATAGRAM_MAX, HEAD_BYTES)

# What becomes of a datagram that has been received: it is delivered, kept, or dropped.
_OPEN, _HELD, _CLOSING, _ABORTED = range(4)


class DatagramBase(asyncio.DatagramTransport):
    """What is hot in a datagram transport: the fields of the walk, and sending."""

    __slots__ = (
        *("_context", "_id", "_protocol", "_ptr", "_senders", "_state", "_unread"),
        *("_address", "_packed", "_to"),
    )

    _ptr: Any
    _id: int
    _context: Context
    _protocol: Any
    _state: int
    _senders: dict[bytes, Any]
    _unread: int
    _address: Any
    _packed: dict[Any, bytes]
    _to: bytes | None

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Queue one datagram; it leaves with the loop's next turn.

        What the kernel says against it, and a host that is not known, goes to the protocol's
        error_received.

        Args:
            data: bytes-like, taken as it is now; may be empty.
            addr: as socket.sendto takes it; None: the address that the transport was made with.
                A host name is looked up here, which blocks, as in asyncio.

        Raises:
            TypeError, OverflowError: `data` is not bytes-like, or `addr` no address.
            ValueError: another address than the transport was made with.
            RuntimeError: called from another thread, or in a forked child.
        """
        if type(data) is not bytes or (addr is not None and self._address is not None):
            return self._send_other(data, addr)
        to = self._to
        if to is None:
            try:
                to = self._packed[addr]
            except (KeyError, TypeError):
                return self._send_other(data, addr)
        code = _send(self._ptr, self._id, data, len(data), to, len(to))
        if code:
            self._sent(code)

    def _send_other(self, data: Any, addr: Any = None) -> None:
        """Send what is not simply bytes, or not to an address met before."""
        raise NotImplementedError  # abstract: addresses are DatagramTransport's

    def _sent(self, code: int) -> None:
        """Act on what the core said to a datagram that was not simply queued."""
        raise NotImplementedError  # abstract: flow control is DatagramTransport's


if fastpath is not None:
    DatagramBase = fastpath.DatagramBase  # type: ignore[misc]


@own
class DatagramTransport(DatagramBase, asyncio.Transport):
    """A datagram socket of a pyloop.Loop: what create_datagram_endpoint returns.

    What `sendto` queues leaves with the loop's next turn, in as few system calls as there are
    64 datagrams.
    """

    __slots__ = (
        "__weakref__",
        *("_book", "_drops", "_family", "_full", "_held", "_limits", "_loop", "_paused", "_sock"),
    )

    def __init__(
        self,
        loop: Any,
        book: AddressBook,
        sock: socket.socket,
        protocol: Any,
        address: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._sock: socket.socket | None = None  # for __del__, should a line below raise
        super().__init__(extra)
        self._loop = loop
        self._ptr = loop._core.ptr
        self._book = book
        self._packed, self._senders = book.packed[sock.family], book.senders
        self._protocol = protocol
        self._context = copy_context()  # in which the protocol is called
        self._state = _HELD  # until connection_made has been called
        self._held: collections.deque[tuple[bytes, Any]] = collections.deque()
        self._paused = False
        self._full = False  # the protocol was told to pause writing
        self._drops = 0
        self._limits = (_HIGH_WATER // 4, _HIGH_WATER)
        self._family = sock.family
        self._address = address or None
        self._to = self._destination(sock)
        most, head = _SIZES.get(sock.family, _OTHER_SIZES)
        self._unread = HEAD_BYTES - head
        fd, ident = sock.fileno(), ffi.new("uint64_t *")
        loop._core.check_fd(lib.pl_dgram_open(self._ptr, fd, most, ident), fd)
        self._id = ident[0]
        self._sock = sock

    def _destination(self, sock: socket.socket) -> bytes | None:
        """Note who is at both ends; return where all datagrams go, None if not all to one."""
        self._extra: dict[str, Any]
        self._extra["socket"] = asyncio.trsock.TransportSocket(sock)
        self._extra["sockname"] = self._extra["peername"] = None
        with contextlib.suppress(OSError):
            self._extra["sockname"] = sock.getsockname()
        try:
            self._extra["peername"] = sock.getpeername()
        except OSError:
            return self._book.pack(sock.family, self._address) if self._address else None
        # The kernel knows. (A netlink socket has a peer, the kernel, also if it is not connected.)
        return None if sock.family == _NETLINK else b""

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else "closing" if self.is_closing() else "open"
        ends = f"sockname={self._extra['sockname']!r} peername={self._extra['peername']!r}"
        fd = -1 if self._sock is None else self._sock.fileno()
        queued = self.get_write_buffer_size()
        return f"<{type(self).__name__} {state} fd={fd} {ends} queued={queued}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._sock.close()

    # ---- sending ----

    def _send_other(self, data: Any, addr: Any = None) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            kind = type(data).__name__
            raise TypeError(f"data argument must be a bytes-like object, not {kind!r}")
        address = self._address
        if address is not None and addr is not None and addr != address:
            raise ValueError(f"Invalid address: must be None or {address}")
        to = self._encode(addr) if self._to is None else self._to
        if to is None:
            return
        data = bytes(data)
        code = _send(self._ptr, self._id, data, len(data), to, len(to))
        if code:
            self._sent(code)

    def _encode(self, addr: Any) -> bytes | None:
        """Return the struct sockaddr of an address; None if that cannot be, which is told."""
        if addr is None and self._extra["peername"] is not None:
            return b""
        if addr is None:
            raise TypeError("sendto() needs an address: the transport is not connected")
        with contextlib.suppress(KeyError, TypeError):
            return self._packed[addr]
        try:
            return self._book.pack(self._family, addr)
        except OSError as exc:
            self._loop.call_soon(self._failed, exc)
            return None

    def _sent(self, code: int) -> None:
        if code == 1:
            self._pause_writing()
        elif code in (-errno.EPIPE, -errno.ESTALE):
            self._drops += 1
            if self._drops == _DROPS_LOGGED:
                log.warning("sendto() on a closed transport: %r", self)
        else:
            raise failure(code, self._ptr)

    def _pause_writing(self) -> None:
        if self._full:
            return
        self._full = True
        try:
            self._protocol.pause_writing()  # in the context of who sends
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report("pause_writing", exc)

    def _resume_writing(self) -> None:
        """Called for an event; if it is above the high mark again by now, another one follows."""
        if self._full and self.get_write_buffer_size() <= self._limits[1]:
            self._full = False
            self._tell_open("resume_writing")

    def get_write_buffer_size(self) -> int:
        """Return the bytes that are queued, and eight more for each datagram."""
        queued: int = lib.pl_dgram_queued(self._ptr, self._id)
        return max(0, queued)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low- and the high-water mark."""
        return self._limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which pause_writing and resume_writing are called.

        Raises:
            ValueError: not 0 <= low <= high.
        """
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._limits = low, high
        most = 1 << 63
        code = lib.pl_dgram_limit(self._ptr, self._id, min(high, most), min(low, most))
        if code and code != -errno.ESTALE:
            self._sent(code)

    # ---- receiving ----

    def is_reading(self) -> bool:
        """Are datagrams delivered, as far as this side is concerned?"""
        return not self._paused and not self.is_closing()

    def pause_reading(self) -> None:
        """Deliver no more; the kernel keeps what comes while it has room for it."""
        if self.is_reading():
            self._check(lib.pl_dgram_read(self._ptr, self._id, 0))
            self._paused, self._state = True, _HELD

    def resume_reading(self) -> None:
        """Deliver again."""
        if self._paused and not self.is_closing():
            self._paused = False
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Deliver what the batch still had when reading was paused, then have the core read."""
        if self._paused or self._state != _HELD:
            return
        if self._held:
            self._loop.call_soon(self._catch_up)
            self._tell("datagram_received", *self._held.popleft())
        else:
            self._state = _OPEN
            self._check(lib.pl_dgram_read(self._ptr, self._id, 1))

    def _unpack(self, head: bytes) -> Any:
        """Return a sender that was not met lately, from what stands before the datagram."""
        return self._book.unpack(self._family, head)

    def _received(self, data: bytes, sender: Any) -> None:
        """Take a datagram while the state is not open."""
        if self._state == _HELD:
            self._held.append((data, sender))

    # ---- ending ----

    def is_closing(self) -> bool:
        """Has it been closed, or lost?"""
        return self._state >= _CLOSING

    def close(self) -> None:
        """Close after flushing; no more is received."""
        if not self.is_closing():
            self._end(lib.pl_dgram_close, _CLOSING)

    def abort(self) -> None:
        """Close now; what is queued is dropped."""
        self._end(lib.pl_dgram_abort, _ABORTED)

    def _end(self, call: Callable[[Any, int], int], state: int) -> None:
        ptr = self._ptr
        self._check(call(ptr, self._id))
        self._state = state
        if self._sock is not None and (ptr == ffi.NULL or is_foreign(ptr)):
            self._sock.close()  # the loop is closed, or the parent's: it will never tell
            self._sock = None

    def _check(self, code: int) -> None:
        if code < 0 and code != -errno.ESTALE:
            raise failure(code, self._ptr)

    # ---- the protocol ----

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol called from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol; None once its connection_lost has been called."""
        return self._protocol  # type: ignore[no-any-return]

    def _tell_open(self, what: str, *args: Any) -> None:
        """As _tell, unless the transport was aborted, or is lost."""
        if self._state != _ABORTED:
            self._tell(what, *args)

    def _tell(self, what: str, *args: Any) -> None:
        """Call a method of the protocol; what it raises ends nothing."""
        try:
            self._context.run(getattr(self._protocol, what), *args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(what, exc)

    def _report(self, what: str, exc: BaseException) -> None:
        context = {
            "message": f"protocol.{what}() failed",
            "exception": exc,
            "transport": self,
            "protocol": self._protocol,
        }
        self._loop.call_exception_handler(context)

    def _fail(self, exc: BaseException) -> None:
        """The protocol raised it when it got a datagram."""
        self._report("datagram_received", exc)

    def _failed(self, exc: Exception) -> None:
        """A datagram was not sent, or could not be received."""
        self._tell_open("error_received", exc)

    def _lost(self, reason: int) -> None:
        """The core let go of the socket: tell the protocol, once, and close it."""
        self._state = _ABORTED
        sock, self._sock = self._sock, None
        try:
            self._tell("connection_lost", failure(reason) if reason else None)
        finally:
            self._protocol = None
            self._ptr = ffi.NULL
            if sock is not None and reason == -errno.EBADF:
                sock.detach()  # the number may be another file's by now
            elif sock is not None:
                sock.close()
