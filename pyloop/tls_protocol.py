"""TLS for asyncio's transports: the stdlib's SSLProtocol, fed with bytes."""

from __future__ import annotations

import asyncio
from typing import Any

from pyloop.seams import SSLProtocol

__all__ = ["TLSProtocol"]

_RECORD_BYTES = 16 * 1024  # no read of plaintext gives more: RFC 8446, 5.1


class TLSProtocol(SSLProtocol):  # type: ignore[misc]
    """asyncio's TLS, without the 256 KiB into which each connection receives ciphertext there."""

    max_size = 0  # of that buffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_size = _RECORD_BYTES

    def began(self, began: asyncio.Future[None]) -> None:
        """Called when the transport has begun, or could not: then there will be no handshake."""
        exc = began.exception()
        if exc is not None:
            self._wakeup_waiter(exc)

    def data_received(self, data: bytes) -> None:
        """Take ciphertext out of the batch."""
        self._incoming.write(data)
        self.buffer_updated(0)
