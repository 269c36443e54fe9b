"""What pyloop raises beyond the built-in exceptions."""

from __future__ import annotations

__all__ = ["ConnectionClosed", "FramingError", "PyloopError", "WriteLimitError"]


class PyloopError(Exception):
    """Base of pyloop's own exceptions."""


class FramingError(PyloopError, ValueError):
    """A peer's bytes broke the framing: too long, malformed, or cut off."""


class ConnectionClosed(PyloopError, ConnectionError):
    """The connection is closing or lost, so this operation cannot succeed."""


class WriteLimitError(ConnectionClosed):
    """The peer did not read: more than write_limit bytes were queued, so it was aborted."""
