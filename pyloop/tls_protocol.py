"""asyncio's TLS with one receive buffer for all connections of a loop.

The stdlib gives each SSLProtocol 256 KiB, which is what an idle connection costs there. Nothing
stays in it: what is received is with OpenSSL before anything else is called.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pyloop.core import ffi
from pyloop.seams import SSLProtocol

__all__ = ["TLSProtocol", "share_room"]

_ROOM_BYTES = 256 * 1024  # asyncio's
_RECORD_BYTES = 16 * 1024  # no read of plaintext gives more: RFC 8446, 5.1


class TLSProtocol(SSLProtocol):  # type: ignore[misc]
    """asyncio's, made without a buffer: share_room() gives it one."""

    max_size = 0  # of the buffer that each gets when it is made

    def began(self, began: asyncio.Future[None]) -> None:
        """Called when the transport has begun, or could not: then there will be no handshake."""
        exc = began.exception()
        if exc is not None:
            self._wakeup_waiter(exc)


def share_room(protocol: Any, loop: Any) -> Any:
    """Let an SSLProtocol, the stdlib's own of start_tls() too, receive into the loop's buffer.

    Returns:
        That buffer, for the core.
    """
    if loop._tls_room is None:
        new = ffi.new("uint8_t[]", _ROOM_BYTES)
        loop._tls_room = new, memoryview(ffi.buffer(new))
    room, view = loop._tls_room
    protocol.max_size = _RECORD_BYTES
    protocol._ssl_buffer = protocol._ssl_buffer_view = view
    return room
