"""Stream sockets of the asyncio face: their transports, who accepts them, Loop's way to both."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import socket
from typing import Any

from pyloop.core import beyond_select, ffi, lib
from pyloop.inbox import CLOSED
from pyloop.stream_transport import DECODED, StreamTransport, close_lent
from pyloop.tls_protocol import TLSProtocol

__all__ = ["Acceptor", "StreamTransport", "Streams"]


_SHORTAGE_SECONDS = 1.0
_NOT_MADE = "Error on transport creation for incoming connection"


class Acceptor:
    """Makes transports of the conns that the core accepts on one listening socket."""

    def __init__(self, loop: Any, sock: socket.socket, factory: Any, server: Any, tls: Any) -> None:
        self.loop, self.factory, self.server = loop, factory, server
        self.tls = tls  # the arguments of _make_tls_protocol, or None
        self.family, self.proto = sock.family, sock.proto
        self.is_decoded = sock.family in DECODED
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
            close_lent(file)
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
