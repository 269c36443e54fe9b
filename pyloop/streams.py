"""Stream sockets of the asyncio face: their transports, who accepts them, Loop's way to both."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import socket
from asyncio import trsock
from typing import Any

from pyloop.address import decode_sockaddr, family_of
from pyloop.core import beyond_select, ffi, lib
from pyloop.fast import own
from pyloop.inbox import CLOSED
from pyloop.seams import SendfileMode, SSLProtocol, attach, detach
from pyloop.tls_protocol import TLSProtocol, share_room
from pyloop.transports import LOST, NOBODY, CoreTransport

__all__ = ["Acceptor", "StreamTransport", "Streams"]


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
        raw, self._local = self._local, None
        if raw:
            self._sockname = decode_sockaddr(raw)
        elif self._sockname is None:
            with contextlib.suppress(OSError):
                self._sockname = self._socket().getsockname()

    def _learn_peer(self) -> None:
        raw, self._sockaddr = self._sockaddr, None
        if raw is None:
            return
        if family_of(raw) in _DECODED:
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
            if self._sockname is None:
                self._learn_sockname()
            CoreTransport._let_go(self)
        elif self._file >= 0:
            fd, self._file = self._file, -1
            self._local = _close(fd)
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


_DECODED = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
_NAME = ffi.typeof("uint8_t[128]")


def _close(fd: int) -> bytes:
    """Close an fd of ours; return the local address that it had."""
    name = ffi.new(_NAME)
    return ffi.buffer(name, lib.pl_lent_close(fd, name, len(name)))[:]  # type: ignore[no-any-return]


_SHORTAGE_SECONDS = 1.0
_NOT_MADE = "Error on transport creation for incoming connection"


class Acceptor:
    """Makes transports of the conns that the core accepts on one listening socket."""

    def __init__(self, loop: Any, sock: socket.socket, factory: Any, server: Any, tls: Any) -> None:
        self.loop, self.factory, self.server = loop, factory, server
        self.tls = tls  # the arguments of _make_tls_protocol, or None
        self.family, self.proto = sock.family, sock.proto
        self.is_decoded = sock.family in _DECODED
        self.context = contextvars.copy_context()
        self._tell_again = 0.0
        self._core = loop._core
        self._fd = sock.fileno()
        self._core.watches.vacate(self._fd)
        self._group = loop._groups.make_default(lib.PL_NODELAY)
        code = lib.pl_listener_open(self._core.ptr, self._group, self._fd)
        try:
            self._core.check_fd(code, self._fd)
        except BaseException:
            lib.pl_group_free(self._core.ptr, self._group)
            raise
        self._core.dispatch.owners[self._group] = self

    def accepted(self, ident: int, peer: bytes) -> None:
        """Called by dispatch: a conn that has not been told to anybody."""
        file: Any = lib.pl_conn_lend(self._core.ptr, ident)
        if not self.is_decoded:
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            file = socket.socket(self.family, kind, self.proto, fileno=file)
        context = self.context.copy()
        protocol = None
        try:
            protocol = wire = context.run(self.factory)
            if self.tls is not None:
                waiter = self._shaking_hands(protocol) if self.loop.get_debug() else None
                wire = context.run(self.loop._make_tls_protocol, protocol, waiter, *self.tls)
            transport = StreamTransport(self.loop, -1, wire, self.server, None, context, peer)
            transport._file = file  # which _refuse closes, if there is no transport
        except (SystemExit, KeyboardInterrupt):
            self._refuse(ident, file)
            raise
        except BaseException as exc:
            self._refuse(ident, file)
            self._report(_NOT_MADE, exc, protocol)
            return
        transport._enter(self._core, ident)
        try:
            context.run(wire.connection_made, transport)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report("Exception in protocol.connection_made()", exc, protocol)

    def _shaking_hands(self, protocol: Any) -> asyncio.Future[None]:
        """Return what ends with the handshake: in debug mode asyncio reports those that fail."""

        def ended(waiter: asyncio.Future[None]) -> None:
            if (exc := waiter.exception()) is not None:
                self._report(_NOT_MADE, exc, protocol)

        waiter: asyncio.Future[None] = self.loop.create_future()
        waiter.add_done_callback(ended)
        return waiter

    def _refuse(self, ident: int, file: socket.socket | int) -> None:
        self._core.dispatch.add(ident, None)
        lib.pl_conn_abort(self._core.ptr, ident, 0)
        if isinstance(file, int):
            _close(file)
        else:
            file.close()

    def _report(self, message: str, exc: BaseException, protocol: Any) -> None:
        context = {"message": message, "exception": exc}
        if protocol is not None:
            context["protocol"] = protocol
        self.loop.call_exception_handler(context)

    def refused(self, code: int, waits: bool) -> None:
        """Called by dispatch: the core closed a conn that it cannot watch, or lets it wait.

        That it waits is told once a second, which is how long asyncio's server lets it wait.
        """
        if waits:
            now = self.loop.time()
            if now < self._tell_again:
                return
            self._tell_again = now + _SHORTAGE_SECONDS
        why = beyond_select("its fd") if code == -errno.ERANGE else os.strerror(-code)
        exc = OSError(-code, why)
        self._report("socket.accept() out of system resource", exc, None)

    def close(self) -> None:
        """Accept no more. The listening socket stays its owner's."""
        if self._core.ptr != ffi.NULL:
            self._core.dispatch.owners.pop(self._group, None)
            lib.pl_listener_close(self._core.ptr, self._fd)
            lib.pl_group_free(self._core.ptr, self._group)

    def cut_off(self) -> None:
        """Called by dispatch: the core is about to be freed."""


class Streams:
    """The part of Loop that makes stream transports, and servers of them."""

    _core: Any
    _acceptors: dict[int, Acceptor]
    _tls_room: Any = None

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        super()._ensure_fd_no_transport(fd)  # type: ignore[misc]
        conn = self._core.dispatch.owner_of(fd if isinstance(fd, int) else int(fd.fileno()))
        if conn is not None and not conn._gate & CLOSED:
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {conn!r}")

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        waiter: Any = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        **_ignored: Any,
    ) -> StreamTransport:
        self._ensure_fd_no_transport(sock)
        peer = None
        if extra is None or "peername" not in extra:
            with contextlib.suppress(OSError):
                peer = sock.getpeername()
        transport = StreamTransport(self, sock, protocol, server, extra, peer=peer)
        self.call_soon(transport._begin, waiter, context=transport._context)  # type: ignore[attr-defined]
        return transport

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        **_ignored: Any,
    ) -> Any:
        wire = TLSProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        began: asyncio.Future[None] = asyncio.Future(loop=self)  # type: ignore[arg-type]
        began.add_done_callback(wire.began)
        self._make_socket_transport(rawsock, wire, began, extra=extra, server=server)
        return wire._app_transport

    def _make_tls_protocol(
        self, protocol: Any, waiter: Any, context: Any, handshake: Any, end: Any
    ) -> Any:
        return TLSProtocol(
            self,
            protocol,
            context,
            waiter,
            True,
            ssl_handshake_timeout=handshake,
            ssl_shutdown_timeout=end,
        )

    def _start_serving(
        self,
        protocol_factory: Any,
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        **_ignored: Any,
    ) -> None:
        tls = (sslcontext, ssl_handshake_timeout, ssl_shutdown_timeout) if sslcontext else None
        acceptor = Acceptor(self, sock, protocol_factory, server, tls)
        self._acceptors[sock.fileno()] = acceptor

    def _stop_serving(self, sock: socket.socket) -> None:
        acceptor = self._acceptors.pop(sock.fileno(), None)
        if acceptor is not None:
            acceptor.close()
        super()._stop_serving(sock)  # type: ignore[misc]

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int) -> int:
        resume = transp.is_reading()
        transp.pause_reading()
        try:
            with await transp._begin_sendfile() as sock:
                try:
                    return await self.sock_sendfile(sock, file, offset, count, fallback=False)  # type: ignore[attr-defined,no-any-return]
                finally:
                    transp._end_sendfile()
        finally:
            if resume:
                transp.resume_reading()
