"""asyncio's TLS, made cheap: one receive buffer for all connections of a loop, and a shorter way.

    wire -> buffer_updated -> SSLObject, as many records as there are -> data_received
    write, writelines -> SSLObject, one record for what is small -> wire

The stdlib gives each SSLProtocol 256 KiB, which is what an idle connection costs there. Nothing
stays in it: what is received is with OpenSSL before anything else is called. Its states, handshake,
shutdown and flow control are inherited; overridden is what runs for every message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from pyloop.core import ffi
from pyloop.fast import fastpath
from pyloop.records import decrypt
from pyloop.seams import SSL_AGAIN, SSL_READS, SSL_WRAPPED, SSLProtocol, SSLTransport

__all__ = ["TLSProtocol", "share_room"]

_ROOM_BYTES = 256 * 1024  # asyncio's
_RECORD_BYTES = 16 * 1024  # no read of plaintext gives more: RFC 8446, 5.1
_FAILED = "Fatal error on SSL protocol"  # asyncio's words


class TLSProtocol(SSLProtocol):  # type: ignore[misc]
    """asyncio's, made without a buffer: share_room() gives it one."""

    _write_buffer_size: int
    max_size = 0  # of the buffer that each gets when it is made

    def _get_app_transport(self) -> Any:
        transport = super()._get_app_transport()
        transport.__class__ = FastSSLTransport  # with nothing of its own but what is hot
        return transport

    def began(self, began: asyncio.Future[None]) -> None:
        """Called when the transport has begun, or could not: then there will be no handshake."""
        exc = began.exception()
        if exc is not None:
            self._wakeup_waiter(exc)

    # ---- in ----

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is not SSL_WRAPPED:
            super().buffer_updated(nbytes)
            return
        self._incoming.write(self._ssl_buffer_view[:nbytes])
        self._do_read()

    def _do_read(self) -> None:
        if self._state not in SSL_READS:
            return
        try:
            if not self._app_reading_paused:
                if self._app_protocol_is_buffer:
                    self._do_read__buffered()
                else:
                    self._do_read__copied()
                self._settle()
            elif self._incoming.pending:
                self._control_ssl_reading()
        except Exception as exc:
            self._fatal_error(exc, _FAILED)

    def _settle(self) -> None:
        """Mind what waits once it was read: output, and the transport if it is paused."""
        if self._write_backlog:
            self._do_write()
        elif self._outgoing.pending or self._app_writing_paused:
            self._process_outgoing()
        if self._incoming.pending or self._ssl_reading_paused:
            self._control_ssl_reading()

    def _do_read__copied(self) -> None:
        chunks = list(decrypt(self._sslobj, self._incoming))
        if data := b"".join(chunks):
            self._app_protocol.data_received(data)
        if chunks and not chunks[-1]:
            self._end_reading()

    def _end_reading(self) -> None:
        self._call_eof_received()
        self._start_shutdown()

    # ---- out ----

    def _write_appdata(self, list_of_data: Iterable[Any]) -> None:
        if self._state is not SSL_WRAPPED:
            super()._write_appdata(list_of_data)
            return
        pieces = tuple(list_of_data)
        plain = len(pieces) == 1 and type(pieces[0]) is bytes
        data = pieces[0] if plain else b"".join(pieces)  # a copy of what its writer may change
        if not data:
            return
        backlog = self._write_backlog
        backlog.append(data)
        self._write_buffer_size += len(data)
        try:
            self._do_write()
        except Exception as exc:
            backlog.clear()  # not to be tried again
            self._write_buffer_size = 0
            self._fatal_error(exc, _FAILED)

    def _do_write(self) -> None:
        backlog = self._write_backlog
        try:
            while backlog:
                data = backlog[0]
                count = self._sslobj.write(data)
                self._write_buffer_size -= count
                if count < len(data):  # a record is full
                    backlog[0] = memoryview(data)[count:]
                else:
                    del backlog[0]
        except SSL_AGAIN:
            pass
        self._process_outgoing()

    def _process_outgoing(self) -> None:
        if not self._ssl_writing_paused:
            data = self._outgoing.read()
            if data:
                self._transport.write(data)
        self._control_app_writing()


FastSSLTransport: Any = SSLTransport
if fastpath is not None:
    fastpath.use_tls(TLSProtocol, SSL_WRAPPED, SSL_AGAIN, _FAILED)

    # asyncio's tests know one by the "ssl" in its name.
    class FastSSLTransport(SSLTransport, fastpath.TLSTransportBase):  # type: ignore[no-redef,misc]
        """asyncio's, with a write() in C, which calls the other unless it is simple."""

        write = fastpath.TLSTransportBase.write
        _write_other = SSLTransport.write


def share_room(protocol: Any, loop: Any) -> Any:
    """Let an SSLProtocol receive into the loop's buffer; start_tls()'s own becomes one of ours.

    Returns:
        That buffer, for the core.
    """
    if type(protocol) is SSLProtocol:
        protocol.__class__ = TLSProtocol
        protocol._get_app_transport()
    if loop._tls_room is None:
        new = ffi.new("uint8_t[]", _ROOM_BYTES)
        loop._tls_room = new, memoryview(ffi.buffer(new))
    room, view = loop._tls_room
    protocol.max_size = _RECORD_BYTES
    protocol._ssl_buffer = protocol._ssl_buffer_view = view
    return room
