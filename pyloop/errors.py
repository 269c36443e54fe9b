"""What pyloop raises beyond the built-in exceptions."""

from __future__ import annotations

import copy
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

__all__ = [
    "ChannelClosed",
    "ConnectionClosed",
    "ExtraMissingError",
    "FramingError",
    "PyloopError",
    "WriteLimitError",
    "is_same",
    "without_frames",
]


class PyloopError(Exception):
    """Base of pyloop's own exceptions."""


class FramingError(PyloopError, ValueError):
    """A peer's bytes broke the framing: too long, malformed, or cut off."""


class ConnectionClosed(PyloopError, ConnectionError):
    """The connection is closing or lost, so this operation cannot succeed."""


class WriteLimitError(ConnectionClosed):
    """The peer did not read: more than write_limit bytes were queued, so it was aborted."""


class ChannelClosed(PyloopError):
    """The channel was shut down: nothing more can be put, and all there was has been got."""


class ExtraMissingError(PyloopError, ImportError):
    """What one of pyloop's extras brings is not installed; the message names the extra."""


def without_frames(exc: E) -> E:
    """Return a copy to keep or to raise again: a traceback keeps all its frames alive."""
    try:
        return copy.copy(exc)
    except Exception:  # one that cannot be made again of its args
        return exc


def is_same(exc: BaseException, other: BaseException | None) -> bool:
    """Is one a copy of the other?"""
    return type(exc) is type(other) and exc.args == getattr(other, "args", None)
