"""What a Bus asks of whatever carries its messages between processes: one shape, three carriers.

    Bus  --publish, listen-->  Broker  --hear, missed-->  Bus

A broker delivers each message that was published, under any of the prefixes that it was told to
listen for, at most once; it may deliver more topics than those, the Bus looks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Broker", "Hear", "Missed", "decode_topic", "encode_topic"]

Hear = Callable[[str, bytes], None]
"""Called in the loop's thread with a topic and a message."""

Missed = Callable[[int | None], None]
"""Called in the loop's thread: so many messages were lost before the next one; None: unknown."""


def encode_topic(topic: str) -> bytes:
    """Return a topic, or its beginning, in UTF-8; a lone surrogate is a character as any other."""
    return topic.encode("utf-8", "surrogatepass")


def decode_topic(topic: bytes) -> str | None:
    """Return a topic; None for what is none, and so comes from somebody else."""
    try:
        return topic.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


class Broker(Protocol):
    """A carrier of messages."""

    max_message: int
    """Bytes of a topic and a message together, at most."""

    def open(self, hear: Hear, missed: Missed) -> None:
        """Begin to deliver, on the running event loop. Does not wait; called once in a process.

        Raises:
            OSError: the carrier cannot be used by this process.
        """
        ...

    def publish(self, topic: str, message: bytes) -> None:
        """Send to all processes, this one included. Never waits for anybody. Any thread.

        Raises:
            OSError: the carrier is broken for good.
        """
        ...

    def listen(self, prefixes: frozenset[str]) -> None:
        """From now on deliver topics that begin with any of these, none of which begins with
        another one of them; replaces the set before. In the loop's thread, after `open`."""
        ...

    async def ready(self) -> None:
        """Wait until what `listen` asked for last is in force: what anybody publishes after this
        is delivered."""
        ...

    async def close(self) -> None:
        """Deliver no more, and give back what was opened; what was published is sent first, if
        that is possible within a second."""
        ...
