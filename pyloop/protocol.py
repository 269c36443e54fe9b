"""What a connection works for: the protocol that gets its messages, the owner that made it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyloop.connection import Connection
    from pyloop.framing import Framing

__all__ = ["Owner", "Protocol", "deliver", "ignore", "log"]

log = logging.getLogger("pyloop")


class Protocol:
    """Base of protocol classes: one instance serves one connection. Override any of these.

    The order is connection_made, message_received in wire order, eof_received, connection_lost
    exactly once.
    """

    def connection_made(self, conn: Connection) -> None:
        """Keep `conn`; it is ready to send."""

    def message_received(self, message: bytes) -> None:
        """Handle one message."""

    def eof_received(self) -> bool | None:
        """Handle the peer's end of stream; true keeps the write side open, else it closes."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go; `exc` is None after end of stream, close or stop, else why it was lost."""

    def pause_writing(self) -> None:
        """Stop sending: more than 64 KiB are queued."""

    def resume_writing(self) -> None:
        """Go on sending: no more than 16 KiB are queued."""


class Owner:
    """What a Connection belongs to: a server, or the call that dialled it."""

    __slots__ = ("context", "counters", "framing", "loop", "read_limit", "server", "write_limit")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Any,
        framing: Framing,
        read_limit: int,
        write_limit: int,
    ) -> None:
        self.loop = loop
        self.context = contextvars.copy_context()
        self.counters = counters
        self.framing = framing
        self.read_limit = read_limit
        self.write_limit = write_limit
        self.server: Any = None

    def accepted(self, ident: int, peer: bytes) -> None:
        """Make the Connection of a conn that the core accepted, and enter it into dispatch."""
        raise RuntimeError("this owner does not listen")

    def handed_over(self, fd: int, peer: bytes) -> None:
        """Take over a socket that the core accepted for a group with PL_HAND_OVER.

        The fd is closed by the owner, whatever happens here, and then told by pl_group_release.
        """
        raise RuntimeError("this owner does not listen")

    def refused(self, code: int, waits: bool) -> None:
        """Hear that the core closed a conn at once, because of `code`, or lets it wait."""

    def forget(self, conn: Any) -> None:
        """Drop `conn`, whose connection_lost has been called."""

    def cut_off(self) -> None:
        """Let go of the core, which is about to be freed."""


def ignore(target: Any, message: bytes) -> None:
    """Take the messages of a connection that has been lost."""


def deliver(protocol: Protocol, message: bytes) -> None:
    """Look the method up each time: a protocol may change its own."""
    protocol.message_received(message)
