"""The kinds of handlers: told apart once, when a server is made, and what runs the async ones."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any

from pyloop.connection import Connection
from pyloop.errors import ConnectionClosed, is_same
from pyloop.protocol import Protocol

__all__ = ["HandlerKind", "classify", "converse", "describe_kinds", "one_by_one"]


class HandlerKind(enum.Enum):
    """What a handler is called with."""

    PROTOCOL = "a pyloop.Protocol subclass or a callable without arguments that makes one"
    MESSAGE = "def (conn, message)"
    ASYNC_MESSAGE = "async def (conn, message)"
    CONVERSATION = "async def (conn)"


def describe_kinds() -> str:
    """List what model "loop" takes, for error messages."""
    return "; ".join(kind.value for kind in HandlerKind)


def _wrong(handler: Any, why: str) -> TypeError:
    return TypeError(f'handler: {handler!r} {why}; model "loop" takes one of: {describe_kinds()}')


def _is_async(handler: Any) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    call = handler if inspect.isroutine(handler) else getattr(handler, "__call__", handler)  # noqa: B004
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def classify(handler: Any) -> HandlerKind:
    """Return how `handler` is to be called.

    How many arguments it needs decides: none makes protocols, one is a conversation, two take
    messages. Optional arguments are left alone where fewer will do.

    Raises:
        TypeError: it is not callable, or of no kind that model "loop" takes.
    """
    if isinstance(handler, type) and issubclass(handler, Protocol):
        return HandlerKind.PROTOCOL
    if isinstance(handler, Protocol):
        raise _wrong(handler, "is a protocol instance: pass the class, one is made per connection")
    if isinstance(handler, type):
        raise _wrong(handler, "is a class, but no pyloop.Protocol")
    if not callable(handler):
        raise _wrong(handler, "is not callable")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        raise _wrong(handler, "has no signature to go by") from None
    is_async = _is_async(handler)
    if _accepts(signature, 0) and not is_async and not _accepts(signature, 2):
        return HandlerKind.PROTOCOL
    if is_async and _accepts(signature, 1):
        return HandlerKind.CONVERSATION
    if _accepts(signature, 2):
        return HandlerKind.ASYNC_MESSAGE if is_async else HandlerKind.MESSAGE
    if _accepts(signature, 1):
        raise _wrong(handler, "is a plain function of one argument, which would block the loop")
    raise _wrong(handler, f"takes {signature}")


def one_by_one(handler: Callable[[Connection, bytes], Any]) -> Callable[[Connection], Any]:
    """Make a conversation of an async per-message handler: in order, the next one waits."""

    async def converse(conn: Connection) -> None:
        async for message in conn:
            await handler(conn, message)

    return converse


async def converse(conn: Connection, handler: Callable[[Connection], Any]) -> None:
    """Run a conversation to its end: it closes its connection, and what it raises aborts it."""
    try:
        await handler(conn)
    except Exception as exc:
        if _is_an_ending(conn, exc):
            conn._end(exc)
        else:
            conn._fail(exc)
    except BaseException:  # cancelled, or leaving run
        conn.abort()
        raise
    else:
        conn.close()


def _is_an_ending(conn: Connection, exc: BaseException) -> bool:
    """Is it how a conversation ends when the peer leaves, or after a close of its own?"""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_an_ending(conn, inner) for inner in exc.exceptions)
    return is_same(exc, conn._exc) or (conn.is_closing and isinstance(exc, ConnectionClosed))
