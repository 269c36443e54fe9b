"""A connection without a loop: a blocking socket, and the same framing in C."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import ssl as ssl_module
import struct
import time
from typing import Any

from pyloop.address import Address, show_address
from pyloop.core import check, failure, ffi, lib
from pyloop.errors import ConnectionClosed
from pyloop.framing import Framing, as_bytes
from pyloop.mapping import MappedView

__all__ = ["BlockingConnection", "new_reader", "next_id"]

_RECEIVE_BYTES = 64 * 1024
_LINGER_SECONDS = 1.0
next_id = itertools.count(1).__next__


def new_reader() -> Any:
    """Return a struct pl_reader * that is freed with its last reference."""
    reader = lib.pl_reader_new()
    if reader == ffi.NULL:
        raise MemoryError("no memory for a reader")
    return ffi.gc(reader, lib.pl_reader_free)


class BlockingConnection:
    """A peer to talk to from a script or a thread: `send` and `receive` block.

    For one thread at a time. A context manager: leaving it closes the connection.
    """

    __slots__ = (
        "_ended",
        "_found",
        "_framing",
        "_reader",
        "_sock",
        "id",
        "peername",
        "sockname",
        "state",
    )

    def __init__(self, sock: socket.socket, framing: Framing) -> None:
        self._begin(framing, next_id())
        self._sock: socket.socket | None = sock
        self.peername: Address = sock.getpeername()
        self.sockname: Address | None = sock.getsockname()

    def _begin(self, framing: Framing, ident: int) -> None:
        self._framing = framing
        self._ended = False
        self._reader = new_reader()
        self._found = ffi.new("const uint8_t **"), ffi.new("size_t *")
        self.id = ident  # no other blocking connection of this process has it
        self.state: Any = None

    def __repr__(self) -> str:
        state = "open" if self._sock else "closed"
        return f"<BlockingConnection {show_address(self.peername)} {state}>"

    @property
    def server(self) -> Any:
        """None: no server accepted it. In a handler, the Server."""
        return None

    @property
    def buffered(self) -> int:
        """0: `send` returns when the kernel has everything."""
        return 0

    # ---- sending ----

    def send(self, message: Any) -> None:
        """Send one message, framed; returns when the kernel has it.

        Raises:
            TypeError: `message` is not bytes-like, or a MappedView under Lines or Delimited.
            ValueError: it does not fit the framing; nothing is sent.
            ConnectionClosed: this side has closed the connection.
            OSError: the connection failed; TimeoutError after the time-out given to dial; EFAULT:
                the file of a MappedView was truncated, and the connection is aborted.
        """
        payload = message if type(message) in (bytes, MappedView) else as_bytes(message)
        head, tail = self._framing.wrap(payload)
        self._send_all(self._open_socket("send"), head, payload, tail)

    def write(self, data: Any) -> None:
        """Send bytes as they are. Raises as `send`."""
        payload = data if type(data) in (bytes, MappedView) else as_bytes(data)
        self._send_all(self._open_socket("write"), b"", payload, b"")

    def _send_all(
        self, sock: socket.socket, head: bytes, payload: bytes | MappedView, tail: bytes
    ) -> None:
        if isinstance(payload, bytes) or isinstance(sock, ssl_module.SSLSocket):
            sock.sendall(head + bytes(payload) + tail)
            return
        try:
            sock.sendall(head)
            payload._send_all(sock)
            sock.sendall(tail)
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                self.abort()  # an end in good order would say that this was all
            raise

    def _open_socket(self, what: str) -> socket.socket:
        if self._sock is None:
            raise ConnectionClosed(
                f"{what}: the connection to {show_address(self.peername)} is closed"
            )
        return self._sock

    # ---- receiving ----

    def receive(self) -> bytes | None:
        """Return the next message; None at the peer's end of stream.

        Raises:
            ConnectionClosed: this side has closed the connection.
            FramingError: the peer's bytes broke the framing; the connection is closed.
            OSError: the connection failed; TimeoutError after the time-out given to dial.
        """
        sock = self._open_socket("receive")
        while not self._ended:
            message = self._cut(lib.pl_reader_next)
            if message is not None:
                return message
            self._receive_some(sock)
        return self._cut(lib.pl_reader_finish)

    def _cut(self, cut: Any) -> bytes | None:
        data, length = self._found
        code = cut(self._reader, self._framing.spec, data, length)
        if code > 0:
            return bytes(ffi.buffer(data[0], length[0]))
        if code < 0:
            raise self._bad_input(code)
        return None

    def _bad_input(self, code: int) -> Exception:
        """Close because of what the peer sent, and return what that was."""
        self.close()
        return failure(code)

    def _receive_some(self, sock: socket.socket) -> None:
        room = lib.pl_reader_reserve(self._reader, _RECEIVE_BYTES)
        if room == ffi.NULL:
            raise MemoryError(f"no memory for {_RECEIVE_BYTES} bytes to receive into")
        count = sock.recv_into(ffi.buffer(room, _RECEIVE_BYTES))
        check(lib.pl_reader_commit(self._reader, count))
        self._ended = count == 0

    def __iter__(self) -> BlockingConnection:
        return self

    def __next__(self) -> bytes:
        message = self.receive()
        if message is None:
            raise StopIteration
        return message

    # ---- ending ----

    def close_writing(self) -> None:
        """Half-close: the peer sees end of stream, receiving goes on."""
        sock = self._open_socket("close_writing")
        if isinstance(sock, ssl_module.SSLSocket):
            raise ConnectionClosed("close_writing: TLS has no half-close")
        sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close; a peer that reads gets all that was sent, and then end of stream.

        Input is discarded until the peer closes too, for a second at most: to close over unread
        input would reset the peer and destroy what was sent.
        """
        sock, self._sock = self._sock, None
        if sock is None:
            return
        with sock, contextlib.suppress(OSError, ValueError):
            if isinstance(sock, ssl_module.SSLSocket):
                sock.settimeout(0)
                with contextlib.suppress(ssl_module.SSLError):
                    sock.unwrap()  # sends close_notify; the peer's is not waited for
            sock.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER_SECONDS
            while not self._ended and (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                self._ended = not sock.recv(_RECEIVE_BYTES)

    def abort(self) -> None:
        """Close with a reset: what the kernel still holds is lost."""
        sock, self._sock = self._sock, None
        if sock is not None:
            linger = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()

    def __enter__(self) -> BlockingConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
