"""The kinds of handlers: told apart once, when a server is made, and what runs conversations."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyloop.connection import Connection
from pyloop.errors import ConnectionClosed, PyloopError, is_same
from pyloop.protocol import Protocol, deliver

if TYPE_CHECKING:
    from pyloop.served import ServedConnection

__all__ = [
    "MODELS",
    "HandlerKind",
    "check_model",
    "classify",
    "converse",
    "describe_kinds",
    "make_protocol",
    "one_by_one",
    "serve_blocking",
]


class HandlerKind(enum.Enum):
    """What a handler is called with."""

    PROTOCOL = "a pyloop.Protocol subclass or a callable without arguments that makes one"
    MESSAGE = "def (conn, message)"
    ASYNC_MESSAGE = "async def (conn, message)"
    CONVERSATION = "async def (conn)"
    BLOCKING = "def (conn)"


_ANY = HandlerKind.PROTOCOL, HandlerKind.MESSAGE
MODELS = {
    "loop": (*_ANY, HandlerKind.ASYNC_MESSAGE, HandlerKind.CONVERSATION),
    "thread": (*_ANY, HandlerKind.BLOCKING),
    "fork": (*_ANY, HandlerKind.BLOCKING),
}
"""The kinds that each model takes."""

_WHY_NOT = {
    HandlerKind.BLOCKING: "is a plain function of one argument, which would block the loop",
    HandlerKind.CONVERSATION: "is a coroutine function, and there is no loop to run it",
    HandlerKind.ASYNC_MESSAGE: "is a coroutine function, and there is no loop to run it",
}


def describe_kinds(model: str) -> str:
    """List what a model takes, for error messages."""
    return "; ".join(kind.value for kind in MODELS[model])


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


def check_model(model: Any) -> str:
    """Return `model`. Raises ValueError that lists the models."""
    if isinstance(model, str) and model in MODELS:
        return model
    raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {model!r}")


def classify(handler: Any, model: str = "loop") -> HandlerKind:
    """Return how `handler` is to be called.

    How many arguments it needs decides: none makes protocols, one is a conversation, two take
    messages. Optional arguments are left alone where fewer will do.

    Raises:
        TypeError: it is not callable, or of no kind that the model takes.
    """
    kind, why = _kind_of(handler)
    if kind in MODELS[model]:
        return kind
    why = _WHY_NOT[kind] if kind else why
    raise TypeError(
        f'handler: {handler!r} {why}; model "{model}" takes one of: {describe_kinds(model)}'
    )


def _kind_of(handler: Any) -> tuple[HandlerKind | None, str]:
    """Return its kind, or None and what is wrong with it."""
    if isinstance(handler, type) and issubclass(handler, Protocol):
        return HandlerKind.PROTOCOL, ""
    if isinstance(handler, Protocol):
        return None, "is a protocol instance: pass the class, one is made per connection"
    if isinstance(handler, type):
        return None, "is a class, but no pyloop.Protocol"
    if not callable(handler):
        return None, "is not callable"
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return None, "has no signature to go by"
    is_async = _is_async(handler)
    if _accepts(signature, 0) and not is_async and not _accepts(signature, 2):
        return HandlerKind.PROTOCOL, ""
    if is_async and _accepts(signature, 1):
        return HandlerKind.CONVERSATION, ""
    if _accepts(signature, 2):
        return (HandlerKind.ASYNC_MESSAGE if is_async else HandlerKind.MESSAGE), ""
    if _accepts(signature, 1):
        return HandlerKind.BLOCKING, ""
    return None, f"takes {signature}"


def make_protocol(factory: Callable[[], Any]) -> Protocol:
    """Call a maker of protocols, and see that it made one."""
    protocol = factory()
    if not isinstance(protocol, Protocol):
        raise TypeError(f"{factory!r} made {protocol!r}; expected a pyloop.Protocol")
    return protocol


# ---- on the loop ----


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


def _is_an_ending(conn: Connection | ServedConnection, exc: BaseException) -> bool:
    """Is it how a conversation ends when the peer leaves, or after a close of its own?"""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_an_ending(conn, inner) for inner in exc.exceptions)
    return is_same(exc, conn._exc) or (conn.is_closing and isinstance(exc, ConnectionClosed))


# ---- in a thread or process of its own ----


def serve_blocking(conn: ServedConnection, kind: HandlerKind, handler: Any) -> None:
    """Run the handler of a connection to its end, in the thread that is the connection's own.

    What it raises ends the connection, except that SystemExit and KeyboardInterrupt go on.
    """
    protocol: Protocol | None = None
    try:
        if kind is HandlerKind.BLOCKING:
            handler(conn)
        elif kind is HandlerKind.MESSAGE:
            _push_messages(conn, handler, conn)
        else:
            protocol = make_protocol(handler)
            protocol.connection_made(conn)  # type: ignore[arg-type]
            _push_messages(conn, deliver, protocol)
            if conn._at_end and protocol.eof_received():
                conn._wait_end()
        conn.close()
    except (SystemExit, KeyboardInterrupt):
        conn.abort()
        raise
    except BaseException as exc:
        if not (kind is HandlerKind.BLOCKING and _is_an_ending(conn, exc)):
            conn._fail(exc)
    finally:
        conn._finish(protocol)


def _push_messages(conn: ServedConnection, call: Callable[[Any, bytes], Any], target: Any) -> None:
    """Call with each message, until there are no more or the connection is closed."""
    conn._pushes = True
    while (message := _next_pushed(conn)) is not None:
        call(target, message)


def _next_pushed(conn: ServedConnection) -> bytes | None:
    try:
        return conn._next()
    except (OSError, PyloopError):
        return None  # which the connection keeps for connection_lost
