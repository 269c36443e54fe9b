"""TLS on served connections: the stdlib's ssl over memory BIOs, under the connection's lock.

    kernel -> reader of ciphertext -> SSLObject -> reader -> framing in C -> handler
    any thread -> framing's head and tail -> SSLObject -> kernel, or the queue

The lock is held for as long as an SSLObject computes, and never while anybody waits: it is not made
for two threads at once, and records must leave in the order in which they were made.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

from pyloop.blocking import new_reader
from pyloop.core import check, failure, ffi, lib
from pyloop.errors import ConnectionClosed, without_frames
from pyloop.framing import parts
from pyloop.mapping import MappedView
from pyloop.outlet import INPUT, ROOM, Wake
from pyloop.protocol import Owner, log
from pyloop.records import decrypt
from pyloop.served import ServedConnection

__all__ = ["ServedTLSConnection"]


class ServedTLSConnection(ServedConnection):
    """A ServedConnection whose bytes are encrypted between the socket and the handler."""

    __slots__ = ("_incoming", "_outgoing", "_ready", "_ssl")

    def __init__(
        self, owner: Owner, fd: int, peer: bytes, wake: Wake | None, counters: Any, ident: int
    ) -> None:
        super().__init__(owner, fd, peer, wake, counters, ident)
        self._raw = new_reader()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl: Any = None
        self._ready = False

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The ssl.SSLObject: peer certificate, cipher, version."""
        return self._ssl  # type: ignore[no-any-return]

    # ---- handshake ----

    def _shake_hands(self, timeout: float) -> bool:
        context: ssl.SSLContext = self.server._ssl
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        due = time.monotonic_ns() + int(timeout * 1e9) if timeout else 0
        while not self._gate:
            with self._lock:
                self._step()
            if self._ready or self._gate:
                break
            wanted = INPUT | (ROOM if self._out else 0)
            code = self._wait(wanted, max(0, due - time.monotonic_ns()) if due else -1)
            with self._lock:
                if code < 0:
                    self._lose(failure(code))
                elif code & ROOM:
                    self._flush()
                elif code == 0 and time.monotonic_ns() >= due:
                    late = TimeoutError(f"TLS handshake took more than {timeout:g} seconds")
                    self._log_failed(late)
                    self._abort_now(late)
                self._take_ciphertext(bool(code > 0 and code & lib.PL_CAME_END))
        return self._ready and not self._gate

    def _step(self) -> None:
        """Go on with the handshake, as far as the ciphertext goes."""
        try:
            self._ssl.do_handshake()
            self._ready = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ssl.CertificateError) as exc:
            self._push(self._outgoing.read())  # the alert that tells the peer why
            self._tls_failed(exc)
            return
        self._push(self._outgoing.read())
        if self._ready:
            self._decrypt()  # what came behind the handshake

    def _log_failed(self, exc: Exception) -> None:
        log.info("TLS with %s failed: %s", self.peername, exc)

    def _tls_failed(self, exc: Exception) -> None:
        """Close it: the alert goes out, nothing else does."""
        self._log_failed(exc)
        if self._exc is None:
            self._exc = exc
        self._ready = False
        self._close_now()

    # ---- in ----

    def _take_ciphertext(self, ended: bool) -> None:
        length = lib.pl_reader_len(self._raw)
        self._incoming.write(bytes(ffi.buffer(lib.pl_reader_data(self._raw), length)))
        lib.pl_reader_consume(self._raw, length)
        if ended:
            self._raw_ended = True
            self._incoming.write_eof()

    def _absorb(self) -> None:
        with self._lock:
            self._take_ciphertext(False)
            self._decrypt()
        if self._gate and self._exc is not None:
            raise without_frames(self._exc)

    def _end_input(self) -> None:
        with self._lock:
            self._take_ciphertext(True)
            if not self._ended:
                self._decrypt()

    def _decrypt(self) -> None:
        try:
            for chunk in decrypt(self._ssl, self._incoming):
                check(lib.pl_reader_feed(self._reader, chunk, len(chunk)))
                self._ended = not chunk  # close_notify
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True  # with or, as many peers do, without close_notify
        except ssl.SSLError as exc:
            self._push(self._outgoing.read())
            self._tls_failed(exc)
            return
        self._push(self._outgoing.read())

    # ---- out ----

    def _put(self, data: bytes | MappedView, wrap: Any, wait: bool) -> None:
        if isinstance(data, MappedView):
            head, tail = parts(wrap) if wrap else (b"", b"")
            data = head + bytes(data) + tail
        super()._put(data, None, wait)

    def _enqueue(self, data: Any, wrap: Any) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._ssl.write(view) :]
        except ssl.SSLError as exc:
            self._break(exc)
            self._out.clear()
            return
        self._push(self._outgoing.read())

    # ---- ending ----

    def _say_goodbye(self) -> None:
        if not self._ready:
            return
        try:
            self._ssl.unwrap()  # sends close_notify; the peer's is not waited for
        except (ssl.SSLError, ValueError):
            pass
        self._push(self._outgoing.read())

    def close_writing(self) -> None:
        raise ConnectionClosed("close_writing: TLS has no half-close")

    def _drain_input(self) -> None:
        with self._lock:  # a handshake that ends just now is not cut off
            if self._ready:
                super()._drain_input()
            else:
                self.abort()
