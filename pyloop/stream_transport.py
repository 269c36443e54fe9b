"""The transport of stream sockets on the asyncio face."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import socket
from asyncio import trsock
from typing import Any

from pyloop.address import decode_sockaddr, family_of
from pyloop.core import ffi, lib
from pyloop.fast import own
from pyloop.inbox import CLOSED
from pyloop.seams import SendfileMode, SSLProtocol, attach, detach
from pyloop.tls_protocol import share_room
from pyloop.transports import LOST, NOBODY, CoreTransport

__all__ = ["DECODED", "StreamTransport", "close_lent"]


@own
class StreamTransport(CoreTransport):
    """The transport of a TCP or Unix stream socket.

    Its socket object owns the fd. That of an accepted conn is made when somebody asks for it: until
    then `_file` is the fd itself. get_extra_info() gives "socket", "sockname" and "peername", also
    when the transport is closed.
    """

    __slots__ = ("_local", "_peer", "_sending", "_server", "_sockaddr", "_sockname")

    _flags = lib.PL_NODELAY
    _start_tls_compatible = True
    _sendfile_compatible = SendfileMode.TRY_NATIVE

    def __init__(
        self,
        loop: Any,
        file: socket.socket | int,
        protocol: Any,
        server: Any = None,
        extra: dict[str, Any] | None = None,
        context: contextvars.Context | None = None,
        sockaddr: bytes | None = None,
        peer: Any = None,
    ) -> None:
        self._peer = peer
        self._sockaddr = sockaddr  # what accept gave, until somebody asks for the peer
        self._local: bytes | None = None  # the like, of its own end
        self._sockname: Any = None
        self._sending: Any = None  # a Future, then a socket, while sendfile is in progress
        self._server: Any = None
        CoreTransport.__init__(self, loop, file, protocol, extra, context)
        if server is not None:
            try:
                attach(server, self)
            except BaseException:
                self._gate = CLOSED | LOST  # for __del__
                raise
            self._server = server

    def _shared_room(self, protocol: Any) -> Any:
        return share_room(protocol, self._loop) if isinstance(protocol, SSLProtocol) else None

    def _receive(self) -> int:
        if self._room is None:
            return super()._receive()
        room = self._room  # known, so the protocol need not be asked each time
        return self._received(lib.pl_conn_receive(self._ptr, self._id, room, len(room)))

    # ---- its socket ----

    def _fileno(self) -> int:
        return self._file if isinstance(self._file, int) else super()._fileno()

    def _socket(self) -> socket.socket:
        """Return the socket, whose object owns the fd from now on."""
        if isinstance(self._file, int):
            if self._file < 0:  # closed, as the object will be
                raw = self._local or b""
                sock = socket.socket(family_of(raw) or socket.AF_UNIX)
                sock.close()
            else:
                sock = socket.socket(fileno=self._file)
                sock.setblocking(False)
            self._file = sock
        return self._file  # type: ignore[no-any-return]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return "socket", "sockname", "peername", or what else is known about it."""
        if self._extra is not None and name in self._extra:
            return self._extra[name]
        if name == "socket":
            with contextlib.suppress(OSError):  # others have closed its fd; or too many are open
                return trsock.TransportSocket(self._socket())
            return default
        if name == "sockname":
            self._learn_sockname()
            return self._sockname
        if name == "peername":
            self._learn_peer()
            return self._peer
        return default

    def _learn_sockname(self) -> None:
        if self._sockname is not None:
            return
        if self._local:
            self._sockname = decode_sockaddr(self._local)
        else:
            with contextlib.suppress(OSError):
                self._sockname = self._socket().getsockname()

    def _learn_peer(self) -> None:
        raw, self._sockaddr = self._sockaddr, None
        if raw is None:
            return
        if family_of(raw) in DECODED:
            self._peer = decode_sockaddr(raw)
        else:
            with contextlib.suppress(OSError):
                self._peer = self._socket().getpeername()

    def write_eof(self) -> None:
        """Half-close: after what is queued the peer sees end of stream; reading goes on."""
        code = lib.pl_conn_shutdown(self._ptr, self._id)
        if code != -errno.EPIPE:
            self._check(code)

    # ---- its end ----

    def _lost(self, reason: int) -> None:
        if self._sending is not None:
            self._lose_sendfile()
        if reason == -errno.EBADF:  # others have closed it: the number may be somebody else's
            if isinstance(self._file, int):
                self._file = -1
            else:
                self._file.detach()
        CoreTransport._lost(self, reason)

    def _let_go(self) -> None:
        if not isinstance(self._file, int):
            self._learn_sockname()
            CoreTransport._let_go(self)
        elif self._file >= 0:
            fd, self._file = self._file, -1
            self._local = close_lent(fd)
        server, self._server = self._server, None
        if server is not None:
            detach(server, self)

    # ---- sendfile ----

    async def _begin_sendfile(self) -> socket.socket:
        """Let what is queued leave, and refuse writes from now on. Returns a copy of the socket."""
        if self._sending is not None:
            raise RuntimeError("unable to sendfile; another one is in progress")
        self._write_id = NOBODY
        self._sending = self._loop.create_future()
        if self._set_marks(0, 0) == 0:
            self._sending.set_result(None)
        try:
            await self._sending
            self._sending = self._socket().dup()  # which the loop may wait for
        except BaseException:
            self._end_sendfile()
            raise
        return self._sending  # type: ignore[no-any-return]

    def _end_sendfile(self) -> None:
        self._sending = None
        if not self._gate & LOST:
            self._write_id = self._id
            self._set_marks(self._high_water, self._low_water)

    def _lose_sendfile(self) -> None:
        sending, self._sending = self._sending, None
        if isinstance(sending, socket.socket):
            with contextlib.suppress(OSError):  # ends the sendfile as well
                sending.shutdown(socket.SHUT_RDWR)
            # Of a Unix socket select does not say so.
            self._loop._fd_ready(sending.fileno(), lib.PL_WRITE)
        elif not sending.done():
            sending.set_exception(ConnectionError("Connection is closed by peer"))

    def _set_marks(self, high: int, low: int) -> int:
        return super()._set_marks(*((high, low) if self._sending is None else (0, 0)))

    def _resume_writing(self) -> None:
        if isinstance(self._sending, asyncio.Future) and not self._sending.done():
            if self.get_write_buffer_size():  # it was due before, at other marks
                return
            self._sending.set_result(None)
        super()._resume_writing()


DECODED = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
_NAME = ffi.typeof("uint8_t[128]")


def close_lent(fd: int) -> bytes:
    """Close an fd of ours; return the local address that it had."""
    name = ffi.new(_NAME)
    return ffi.buffer(name, lib.pl_lent_close(fd, name, len(name)))[:]  # type: ignore[no-any-return]
