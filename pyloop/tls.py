"""TLS on native connections: the stdlib's ssl over memory BIOs.

    kernel -> core -> PL_EV_CIPHER -> SSLObject -> pl_conn_feed -> framing in C -> handler
    handler -> framing's head and tail -> SSLObject -> pl_conn_write -> core -> kernel

So framing, limits, events and back-pressure are those of every other connection. What handlers send
in one turn shares records: it is encrypted at the turn's end, or when there is enough for a record.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from pyloop.connection import Connection
from pyloop.core import failure, lib
from pyloop.errors import ConnectionClosed
from pyloop.fast import fastpath
from pyloop.framing import Raw, as_bytes
from pyloop.inbox import CLOSED
from pyloop.mapping import MappedView
from pyloop.protocol import Owner, log
from pyloop.records import decrypt

__all__ = ["TLSConnection", "encrypt_now"]

_ENOUGH_BYTES = 16 * 1024  # of plaintext for a record


class TLSConnection(Connection):
    """A Connection whose bytes are encrypted between the core and the handler."""

    __slots__ = (
        "_backlog",
        "_begin",
        "_due",
        "_incoming",
        "_made",
        "_outgoing",
        "_ready",
        "_ssl",
        "_timer",
    )

    def __init_subclass__(cls) -> None:
        # The fast path knows this very class: of another it would send what is to be encrypted.
        raise TypeError("nothing can be derived from TLSConnection")

    def __init__(self, ptr: Any, ident: int, owner: Owner, peer: Any) -> None:
        super().__init__(ptr, ident, owner, peer)
        self._ssl: Any = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._backlog = bytearray()  # plaintext that was sent
        self._due = False  # will it be encrypted at the turn's end?
        self._ready = False
        self._begin: Callable[[Connection], Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._made: asyncio.Future[None] | None = None

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The ssl.SSLObject: peer certificate, cipher, version."""
        return self._ssl  # type: ignore[no-any-return]

    @property
    def buffered(self) -> int:
        return super().buffered + len(self._backlog)

    # ---- handshake ----

    def _start_tls(
        self,
        context: ssl.SSLContext,
        begin: Callable[[Connection], Any],
        timeout: float,
        server_side: bool,
        server_hostname: str | None,
    ) -> None:
        """Begin the handshake; `begin` gets the connection once it is done."""
        self._begin = begin
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        if timeout:
            self._timer = self._owner.loop.call_later(timeout, self._handshake_late, timeout)
        self._handshake()

    def _handshake_late(self, timeout: float) -> None:
        self._tls_failed(TimeoutError(f"TLS handshake took more than {timeout} seconds"))

    def _handshake(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush_out()
            return
        except (ssl.SSLError, ssl.CertificateError) as exc:
            self._flush_out()  # the alert that tells the peer why
            self._tls_failed(exc)
            return
        self._end_handshake()
        self._ready = True
        self._encrypt()
        begin, self._begin = self._begin, None
        if self._made is not None and not self._made.done():
            self._made.set_result(None)
        if self._gate & CLOSED:
            self._close_core()  # closed meanwhile, and now flushed
        elif begin is not None:
            self._guard(begin, self)

    def _end_handshake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tls_failed(self, exc: Exception) -> None:
        """Close it: the alert goes out, nothing else does."""
        log.info("TLS with %s failed: %s", self.peername, exc)
        self._end_handshake()
        if self._exc is None:
            self._exc = exc
        self._gate |= CLOSED
        self._close_input(exc)
        if isinstance(exc, TimeoutError):
            lib.pl_conn_abort(self._ptr, self._id, lib.PL_E_IDLE)
        else:
            lib.pl_conn_close(self._ptr, self._id)

    # ---- in ----

    def _cipher_received(self, data: bytes) -> None:
        """Take what the core received; empty means that the ciphertext ended."""
        if self._gate & CLOSED and self._ready:
            return
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self._ready:
            self._handshake()
        if self._ready and not self._gate & CLOSED:
            self._decrypt(not data)

    def _decrypt(self, ended: bool) -> None:
        failed = None
        try:
            for chunk in decrypt(self._ssl, self._incoming):
                self._feed(chunk)
                ended = not chunk or ended  # close_notify
        except ssl.SSLError as exc:
            failed = exc
        self._decrypted(ended, failed)
        failed = None  # whose traceback keeps this frame

    def _decrypted(self, ended: bool, exc: ssl.SSLError | None) -> None:
        """Mind the rest once the records were read, or one of them could not be."""
        if isinstance(exc, ssl.SSLZeroReturnError | ssl.SSLEOFError):
            ended = True  # with or, as many peers do, without close_notify
        elif exc is not None:
            self._flush_out()
            self._tls_failed(exc)
            return
        if self._outgoing.pending or (self._backlog and not self._due):
            self._encrypt()  # or only what OpenSSL has to say
        if ended:
            self._feed(b"", eof=True)

    def _feed(self, plaintext: bytes, eof: bool = False) -> None:
        self._fed(lib.pl_conn_feed(self._ptr, self._id, plaintext, len(plaintext), eof))

    def _fed(self, code: int) -> None:
        if code < 0 and not self._gate & CLOSED:
            self._fail(failure(code))

    # ---- out ----

    if fastpath is None:  # else what is inherited knows about TLS

        def send(self, message: Any, /) -> None:
            self._send_other(message, True)

        def write(self, data: Any, /) -> None:
            self._send_other(data, False)

    def _send_other(self, data: Any, framed: bool) -> None:
        payload = data if type(data) is bytes else as_bytes(data)
        if framed:
            framing = self._owner.framing
            if type(data) is MappedView:
                framing._wrap_view(data)  # refused here as everywhere, although it is copied
            if not isinstance(framing, Raw):
                head, tail = framing.wrap(payload)
                payload = head + payload + tail
        self._send_plain(payload)

    def _send_plain(self, data: bytes) -> None:
        if self._gate & CLOSED:
            self._owner.counters.dropped += 1
            return
        code = lib.pl_conn_admit(self._ptr, self._id, len(self._backlog))
        if code:
            self._sent(code, len(data))
            return
        self._backlog += data
        if not self._ready:
            return
        if len(self._backlog) >= _ENOUGH_BYTES:
            self._guard(self._encrypt)  # what was sent before would be gone too
        elif not self._due:
            self._due = True
            self._owner.loop.call_soon(_encrypt_due, self)

    def _turn_ends(self) -> None:
        self._due = False
        if not self._gate & CLOSED:
            self._guard(self._encrypt)

    def _encrypt(self) -> None:
        """Make records of the plaintext that waits, and queue them."""
        plain, self._backlog = self._backlog, bytearray()
        done = 0
        try:
            with memoryview(plain) as view:
                while done < len(plain):
                    done += self._ssl.write(view[done:])
        except ssl.SSLError as exc:
            self._not_encrypted(exc, plain[done:])
            return
        self._flush_out()

    def _not_encrypted(self, exc: ssl.SSLError | None, rest: bytearray) -> None:
        """Mind plaintext that is left: a record had no room for it, or what says `exc`."""
        self._backlog = rest + self._backlog
        if exc is None:
            self._encrypt()
            return
        self._flush_out()
        if not isinstance(exc, ssl.SSLWantReadError):  # the peer renegotiates: its answer first
            self._tls_failed(exc)

    def _flush_out(self) -> None:
        data = self._outgoing.read()
        if data:
            code = lib.pl_conn_write(self._ptr, self._id, data, len(data))
            if code:
                self._sent(code, len(data))

    # ---- ending ----

    def _close_core(self) -> None:
        if not self._ready and self._backlog:
            return  # the handshake, or its time-out, goes on to close it
        if self._ready:
            self._guard(self._encrypt)
            try:
                self._ssl.unwrap()  # sends close_notify; the peer's is not waited for
            except (ssl.SSLError, ValueError):
                pass
            self._flush_out()
        super()._close_core()

    def close_writing(self) -> None:
        raise ConnectionClosed("close_writing: TLS has no half-close")

    def _drain_input(self) -> None:
        if self._ready:
            super()._drain_input()
        else:
            self.abort()

    def _lost(self, reason: int) -> None:
        self._end_handshake()
        self._begin = None
        super()._lost(reason)
        if self._made is not None and not self._made.done():
            self._made.set_exception(
                self._exc or ConnectionResetError("connection lost during the TLS handshake")
            )


_encrypt_due: Any = TLSConnection._turn_ends
if fastpath is not None:
    fastpath.use_tls_connection(TLSConnection, ssl.SSLError)
    _encrypt_due = fastpath.encrypt_due


def encrypt_now(handles: Iterable[Any]) -> None:
    """Encrypt at once what some of these handles, which are to run, were to encrypt."""
    for handle in tuple(handles):
        if getattr(handle, "_callback", None) is _encrypt_due:
            handle._args[0]._turn_ends()
