"""TLS records, as all take them who speak TLS here."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

__all__ = ["decrypt"]

_RECORD_BYTES = 16 * 1024  # no record holds more plaintext: RFC 8446, 5.1
_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def decrypt(tls: ssl.SSLObject, incoming: ssl.MemoryBIO) -> Iterator[bytes]:
    """Give the plaintext of the records that are there, one after another.

    No read is tried that would find nothing: each costs an exception.

    Args:
        tls: The session, after its handshake; it reads from `incoming`.

    Yields:
        What a record holds; b"" once the peer has said that it ends (close_notify).

    Raises:
        ssl.SSLError: What came is no record of this session, or the stream ended without notice.
    """
    try:
        while chunk := tls.read(_RECORD_BYTES):
            yield chunk
            if not incoming.pending and not incoming.eof:
                return
    except _AGAIN:
        return
    yield b""
