"""Framings: the rules that cut a stream of bytes into messages.

A framing is a description. The cutting, its limits and the wrapping are C (csrc/frame.c), which
reads the `struct pl_framing` that each framing here fills once, when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from pyloop.core import check, failure, ffi, lib
from pyloop.mapping import MappedView, Mapping

__all__ = [
    "REFUSALS",
    "Delimited",
    "FixedSize",
    "Framing",
    "LengthPrefixed",
    "Lines",
    "Netstring",
    "Raw",
    "refusal",
]

REFUSALS = (
    *(lib.PL_E_TOO_LONG, lib.PL_E_TERMINATOR, lib.PL_E_RANGE, lib.PL_E_SIZE),
    lib.PL_E_PAYLOAD,
)
"""What the core says of a message that a framing cannot send."""

_SIZE_LIMIT = 1 << 40
_SEP_LIMIT: int = lib.PL_SEP_MAX


class Framing:
    """Say how a stream is cut into messages: the base of all framings.

    Framings are immutable, and equal when they cut alike. One object may serve any number of
    servers, connections and threads.
    """

    __slots__ = ("_spec",)

    _spec: Any

    def __init__(self) -> None:
        raise TypeError("Framing is only a base: use Raw(), Lines(), Delimited(sep) or another")

    @property
    def spec(self) -> Any:
        """The `struct pl_framing *` for the core: it lives as long as this object."""
        return self._spec

    def wrap(self, payload: bytes | bytearray | memoryview | MappedView) -> tuple[bytes, bytes]:
        """Return what goes before and after `payload` on the wire.

        Args:
            payload: One message, not copied, and a MappedView not read.

        Returns:
            Head and tail, either of which may be empty.

        Raises:
            ValueError: A receiver with this framing would not get this message back.
            TypeError: A MappedView, which Lines and Delimited would have to read.

        Source:
            pl_framing_wrap
        """
        if isinstance(payload, str):
            raise TypeError("payload must be bytes-like, not str")
        if isinstance(payload, MappedView):
            wrap = self._wrap_view(payload)
        else:
            with ffi.from_buffer("uint8_t[]", payload) as data:
                wrap = self._wrapped(data, len(data))
        return parts(wrap)

    def _wrap_view(self, view: MappedView) -> Any:
        """Return the struct pl_wrap * of a message that is not read. Raises as `wrap`."""
        if isinstance(self, Lines | Delimited):
            raise refusal(self, lib.PL_E_PAYLOAD, len(view))
        return self._wrapped(ffi.NULL, len(view))

    def _wrapped(self, data: Any, length: int) -> Any:
        wrap = ffi.new("struct pl_wrap *")
        code = lib.pl_framing_wrap(self._spec, data, length, wrap)
        if code < 0:
            raise refusal(self, code, length)
        return wrap

    def __reduce__(self) -> tuple[type[Framing], tuple[Any, ...]]:
        """Copy and pickle by the arguments: the C struct is made anew."""
        return type(self), tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def _specify(self, kind: int, **members: Any) -> None:
        """Fill the C struct; called once, by __post_init__."""
        spec = ffi.new("struct pl_framing *", {"kind": kind, **members})
        check(lib.pl_framing_check(spec))
        object.__setattr__(self, "_spec", spec)


@dataclass(frozen=True, slots=True)
class Raw(Framing):
    """No rule: a message is what one receive gave, never empty."""

    def __post_init__(self) -> None:
        self._specify(lib.PL_RAW)


@dataclass(frozen=True, slots=True)
class Lines(Framing):
    r"""Messages end with \n, and a \r before it is dropped. Sending adds \n.

    A message that itself ends with \r is sent with \r\n behind it, so that it arrives whole: what
    one peer sent can always be sent on to another.

    At end of stream an unterminated last line is a message too.

    Args:
        max_size: Bytes of the longest line, terminator excluded.
    """

    max_size: int = 65536

    def __post_init__(self) -> None:
        self._specify(lib.PL_LINES, max_size=_size("max_size", self.max_size))


@dataclass(frozen=True, slots=True)
class Delimited(Framing):
    """Messages end with a separator of 1 to 64 bytes.

    Args:
        sep: Bytes-like; kept as bytes.
        max_size: Bytes of the longest message, separator excluded.
    """

    sep: bytes
    max_size: int = 65536

    def __post_init__(self) -> None:
        sep = _separator(self.sep)
        object.__setattr__(self, "sep", sep)
        size = _size("max_size", self.max_size)
        self._specify(lib.PL_DELIM, sep=sep, sep_len=len(sep), max_size=size)


@dataclass(frozen=True, slots=True)
class LengthPrefixed(Framing):
    """Messages follow their length: an unsigned integer, which does not count itself.

    Args:
        size: Bytes of the length, or "varint": LEB128 as in protobuf, 1 to 10 bytes.
        order: Byte order of the length; a varint has none.
        max_size: Bytes of the longest message, length excluded.
    """

    size: Literal[1, 2, 4, 8, "varint"] = 4
    order: Literal["big", "little"] = "big"
    max_size: int = 65536

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int | str):
            raise TypeError(f"size must be 1, 2, 4, 8 or 'varint', not {_of_type(self.size)}")
        if self.size not in (1, 2, 4, 8, "varint"):
            raise ValueError(f"size must be 1, 2, 4, 8 or 'varint', not {self.size!r}")
        if not isinstance(self.order, str):
            raise TypeError(f"order must be 'big' or 'little', not {_of_type(self.order)}")
        if self.order not in ("big", "little"):
            raise ValueError(f"order must be 'big' or 'little', not {self.order!r}")
        size = _size("max_size", self.max_size)
        if self.size == "varint":
            self._specify(lib.PL_VARINT, max_size=size)
        else:
            self._specify(lib.PL_PREFIX, width=self.size, big=self.order == "big", max_size=size)


@dataclass(frozen=True, slots=True)
class FixedSize(Framing):
    """Every message is `n` bytes; nothing is added on the wire.

    Args:
        n: Bytes of a message.
    """

    n: int

    def __post_init__(self) -> None:
        self._specify(lib.PL_FIXED, max_size=_size("n", self.n))


@dataclass(frozen=True, slots=True)
class Netstring(Framing):
    """Messages as "12:hello world!,": length in decimal, colon, bytes, comma.

    Args:
        max_size: Bytes of the longest message, decoration excluded.

    Source:
        cr.yp.to/proto/netstrings.txt
    """

    max_size: int = 65536

    def __post_init__(self) -> None:
        self._specify(lib.PL_NETSTRING, max_size=_size("max_size", self.max_size))


def refusal(framing: Framing, code: int, payload_len: int) -> Exception:
    """Return the exception for a message that `framing` cannot send.

    Args:
        framing: What was to wrap it.
        code: What pl_framing_wrap or pl_conn_send returned.
        payload_len: Bytes of the message.

    Returns:
        A ValueError that names the framing, or what the code stands for elsewhere.
    """
    if code == lib.PL_E_PAYLOAD:
        return TypeError(
            f"{framing!r} looks for its terminator in each message, and a MappedView is not read: "
            "send bytes(view), or write(view)"
        )
    message = f"message of {payload_len} byte{'' if payload_len == 1 else 's'}"
    if isinstance(framing, Lines):
        terminator = r"contains \n"
    else:
        terminator = "contains the separator, or would with the one sent after it"
    reasons = {
        lib.PL_E_TOO_LONG: f"is over {framing!r}",
        lib.PL_E_TERMINATOR: f"{terminator}: {framing!r} would not give it back",
        lib.PL_E_RANGE: f"does not fit the length of {framing!r}",
        lib.PL_E_SIZE: f"is not of the size of {framing!r}",
    }
    return ValueError(f"{message} {reasons[code]}") if code in reasons else failure(code)


def parts(wrap: Any) -> tuple[bytes, bytes]:
    """Return head and tail of a struct pl_wrap."""
    return bytes(wrap.head[0 : wrap.head_len]), bytes(wrap.tail[0 : wrap.tail_len])


def _of_type(value: object) -> str:
    """Show a value of the wrong type."""
    return f"{value!r} ({type(value).__name__})"


def _size(name: str, value: int) -> int:
    """Return a number of bytes, or raise what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {_of_type(value)}")
    if not 1 <= value <= _SIZE_LIMIT:
        raise ValueError(f"{name} must be 1 to {_SIZE_LIMIT} bytes, not {value}")
    return value


def _separator(value: object) -> bytes:
    """Return a separator as bytes, or raise what is wrong with it."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"sep must be bytes-like, not {_of_type(value)}")
    sep = bytes(value)
    if not 1 <= len(sep) <= _SEP_LIMIT:
        raise ValueError(f"sep must be 1 to {_SEP_LIMIT} bytes, not {len(sep)}")
    return sep


def as_bytes(data: Any) -> bytes:
    """Return what is to be sent as bytes, taken as it is now.

    Raises:
        TypeError: `data` is not bytes-like.
        OSError: EFAULT: it is of a file that was truncated.
    """
    if isinstance(data, MappedView | Mapping):  # whose own copies are safe
        return bytes(data)
    if isinstance(data, str):
        raise TypeError(f"expected bytes-like, got str: {data[:40]!r} (encode it first)")
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"expected bytes-like, got {type(data).__name__}") from None
