"""What is queued to send on a socket without a loop: bytes, and views by reference."""

from __future__ import annotations

from typing import Any

from pyloop.core import ffi, lib
from pyloop.mapping import MappedView

__all__ = ["Outbox"]


class Outbox:
    """A queue in the core. Its length is in bytes. One thread at a time."""

    __slots__ = ("_box", "_len")

    def __init__(self) -> None:
        box = lib.pl_outbox_new()
        if box == ffi.NULL:
            raise MemoryError("no memory for an outbox")
        self._box = ffi.gc(box, lib.pl_outbox_free)
        self._len = 0  # kept here too: it is asked for at each send

    def __len__(self) -> int:
        return self._len

    def push(self, data: bytes) -> int:
        """Copy bytes to the back. 0 or -ENOMEM."""
        code: int = lib.pl_outbox_push(self._box, data, len(data))
        self._len += len(data) if code == 0 else 0
        return code

    def push_view(self, view: MappedView, wrap: Any) -> int:
        """Add a view by reference, with what `wrap` puts around it. 0 or -ENOMEM."""
        handle, start, length = view._handle, view._start, view._length
        code: int = lib.pl_outbox_push_mapped(self._box, wrap, handle, start, length)
        self._len = lib.pl_outbox_len(self._box)
        return code

    def send(self, fd: int) -> int:
        """Hand the front to the kernel, once: how many bytes it took, or a negative number."""
        sent: int = lib.pl_outbox_send(self._box, fd)
        self._len -= max(0, sent)
        return sent

    def clear(self) -> None:
        lib.pl_outbox_clear(self._box)
        self._len = 0
