"""The framing rules once more, short and slow: the oracle for csrc/frame.c.

Nothing here is incremental: a rule sees all that is left of a stream, and says what the first
message is and what follows it, or why there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pyloop.framing import Delimited, FixedSize, LengthPrefixed, Lines, Netstring, Raw

Step = tuple[bytes, bytes] | str  # (message, rest), or how the stream ends


def cut(framing: Any, stream: bytes) -> tuple[list[bytes], str]:
    """Return a stream's messages and its end: "end", "incomplete", "too long" or "malformed"."""
    messages = []
    while stream:
        step = RULES[type(framing)](framing, stream)
        if isinstance(step, str):
            return messages, step
        message, stream = step
        messages.append(message)
    return messages, "end"


def raw(framing: Raw, data: bytes) -> Step:
    return data, b""


def lines(framing: Lines, data: bytes) -> Step:
    line, newline, rest = data.partition(b"\n")
    if newline:
        line = line.removesuffix(b"\r")
    return "too long" if len(line) > framing.max_size else (line, rest)


def delimited(framing: Delimited, data: bytes) -> Step:
    message, sep, rest = data.partition(framing.sep)
    surely = len(message) if sep else len(message) - len(framing.sep) + 1
    if surely > framing.max_size:
        return "too long"
    return (message, rest) if sep else "incomplete"


def sized(size: int, max_size: int, body: bytes) -> Step:
    if size > max_size:
        return "too long"
    return (body[:size], body[size:]) if len(body) >= size else "incomplete"


def length_prefixed(framing: LengthPrefixed, data: bytes) -> Step:
    if framing.size == "varint":
        return varint(framing, data)
    if len(data) < framing.size:
        return "incomplete"
    size = int.from_bytes(data[: framing.size], framing.order)
    return sized(size, framing.max_size, data[framing.size :])


def varint(framing: LengthPrefixed, data: bytes) -> Step:
    more, last, body = re.fullmatch(rb"([\x80-\xff]*)([^\x80-\xff]?)(.*)", data, re.S).groups()
    if len(more) >= 10:
        return "malformed"
    size = sum((byte & 127) << 7 * i for i, byte in enumerate(more + last))
    if size >= 1 << 64:
        return "malformed"
    return sized(size, framing.max_size, body) if last else "incomplete"


def fixed_size(framing: FixedSize, data: bytes) -> Step:
    return sized(framing.n, framing.n, data)


def netstring(framing: Netstring, data: bytes) -> Step:
    digits, rest = re.fullmatch(rb"(0|[1-9][0-9]*|)(.*)", data, re.S).groups()
    size = int(digits or b"0")
    if size > framing.max_size:
        return "too long"
    if not rest:
        return "incomplete"
    if not digits or rest[:1] != b":":
        return "malformed"
    if len(rest) < size + 2:
        return "incomplete"
    return (rest[1 : size + 1], rest[size + 2 :]) if rest[size + 1] == ord(",") else "malformed"


RULES: dict[type, Callable[[Any, bytes], Step]] = {
    Raw: raw,
    Lines: lines,
    Delimited: delimited,
    LengthPrefixed: length_prefixed,
    FixedSize: fixed_size,
    Netstring: netstring,
}
