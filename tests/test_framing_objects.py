"""The framing objects of Python: what they are, what they put around a message, what they refuse.

Error texts are asserted whole: they are what a user has to go by.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pyloop.core import ffi, lib
from pyloop.errors import FramingError
from pyloop.framing import (
    Delimited,
    FixedSize,
    Framing,
    LengthPrefixed,
    Lines,
    Netstring,
    Raw,
    refusal,
)

TERA = 1 << 40

# ---- sending ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framing", "payload", "head", "tail"),
    [
        (Raw(), b"a\n", b"", b""),
        (Lines(), b"a", b"", b"\n"),
        (Lines(3), b"\rbc", b"", b"\n"),
        (Lines(3), b"ab\r", b"", b"\r\n"),
        (Delimited(b"\r\n"), b"a\r", b"", b"\r\n"),
        (LengthPrefixed(1), b"a" * 255, b"\xff", b""),
        (LengthPrefixed(2), b"ab", b"\x00\x02", b""),
        (LengthPrefixed(2, "little"), b"ab", b"\x02\x00", b""),
        (LengthPrefixed(8), b"ab", bytes(7) + b"\x02", b""),
        (LengthPrefixed("varint"), b"a" * 300, b"\xac\x02", b""),
        (FixedSize(2), b"ab", b"", b""),
        (Netstring(), b"", b"0:", b","),
        (Netstring(), b"a" * 1000, b"1000:", b","),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_wrap_gives_head_and_tail(
    framing: Framing, payload: bytes, head: bytes, tail: bytes, kind: Callable[[bytes], Any]
) -> None:
    assert framing.wrap(kind(payload)) == (head, tail)


REFUSED: list[tuple[Framing, bytes, str]] = [
    (Lines(), b"x" * 70000, "message of 70000 bytes is over Lines(max_size=65536)"),
    (Netstring(1), b"ab", "message of 2 bytes is over Netstring(max_size=1)"),
    (Delimited(b";", 1), b"ab", "message of 2 bytes is over Delimited(sep=b';', max_size=1)"),
    (
        LengthPrefixed(1),
        b"x" * 256,
        "message of 256 bytes does not fit the length of "
        "LengthPrefixed(size=1, order='big', max_size=65536)",
    ),
    (FixedSize(3), b"a", "message of 1 byte is not of the size of FixedSize(n=3)"),
    *[
        (
            Lines(9),
            payload,
            f"message of {len(payload)} bytes contains \\n: "
            "Lines(max_size=9) would not give it back",
        )
        for payload in (b"a\nb", b"\n\n")
    ],
    *[
        (
            Delimited(b"aa", 9),
            payload,
            f"message of {len(payload)} bytes contains the separator, or would with the one sent "
            "after it: Delimited(sep=b'aa', max_size=9) would not give it back",
        )
        for payload in (b"baab", b"ba")
    ],
]


@pytest.mark.parametrize(("framing", "payload", "text"), REFUSED, ids=repr)
def test_message_that_cannot_be_sent_is_a_value_error(
    framing: Framing, payload: bytes, text: str
) -> None:
    with pytest.raises(ValueError, match="message of") as caught:
        framing.wrap(payload)
    assert str(caught.value) == text
    assert not isinstance(caught.value, FramingError)  # the caller's fault, not a peer's


def test_refusal_of_another_code_is_what_the_core_makes_of_it() -> None:
    assert isinstance(refusal(Lines(), lib.PL_E_THREAD, 1), RuntimeError)
    assert isinstance(refusal(Lines(), lib.PL_E_MALFORMED, 1), FramingError)


@pytest.mark.parametrize("payload", ["text", 3, None], ids=repr)
def test_payload_that_is_not_bytes_is_a_type_error(payload: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        Lines().wrap(payload)


# ---- the descriptions -----------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Lines(0), ValueError, "max_size must be 1 to 1099511627776 bytes, not 0"),
        (
            lambda: Lines(TERA + 1),
            ValueError,
            f"max_size must be 1 to {TERA} bytes, not {TERA + 1}",
        ),
        (lambda: Lines(True), TypeError, "max_size must be an int, not True (bool)"),
        (lambda: Netstring(1.5), TypeError, "max_size must be an int, not 1.5 (float)"),
        (lambda: Delimited("\n"), TypeError, r"sep must be bytes-like, not '\n' (str)"),
        (lambda: Delimited(b""), ValueError, "sep must be 1 to 64 bytes, not 0"),
        (lambda: Delimited(b"x" * 65), ValueError, "sep must be 1 to 64 bytes, not 65"),
        (lambda: Delimited(b"x", -1), ValueError, f"max_size must be 1 to {TERA} bytes, not -1"),
        (lambda: LengthPrefixed(3), ValueError, "size must be 1, 2, 4, 8 or 'varint', not 3"),
        (
            lambda: LengthPrefixed(True),
            TypeError,
            "size must be 1, 2, 4, 8 or 'varint', not True (bool)",
        ),
        (
            lambda: LengthPrefixed("leb"),
            ValueError,
            "size must be 1, 2, 4, 8 or 'varint', not 'leb'",
        ),
        (
            lambda: LengthPrefixed(4, "network"),
            ValueError,
            "order must be 'big' or 'little', not 'network'",
        ),
        (
            lambda: LengthPrefixed(4, None),
            TypeError,
            "order must be 'big' or 'little', not None (NoneType)",
        ),
        (lambda: FixedSize(0), ValueError, f"n must be 1 to {TERA} bytes, not 0"),
        (lambda: FixedSize("3"), TypeError, "n must be an int, not '3' (str)"),
        (
            Framing,
            TypeError,
            "Framing is only a base: use Raw(), Lines(), Delimited(sep) or another",
        ),
    ],
)
def test_wrong_argument_is_named(
    make: Callable[[], Framing], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == text


EACH = [
    (Raw(), "Raw()"),
    (Lines(9), "Lines(max_size=9)"),
    (Delimited(b";"), "Delimited(sep=b';', max_size=65536)"),
    (LengthPrefixed(), "LengthPrefixed(size=4, order='big', max_size=65536)"),
    (LengthPrefixed("varint"), "LengthPrefixed(size='varint', order='big', max_size=65536)"),
    (FixedSize(3), "FixedSize(n=3)"),
    (Netstring(), "Netstring(max_size=65536)"),
]


@pytest.mark.parametrize(("framing", "text"), EACH, ids=[text for _, text in EACH])
def test_framing_is_a_value(framing: Framing, text: str) -> None:
    assert repr(framing) == text
    for twin in (copy.deepcopy(framing), pickle.loads(pickle.dumps(framing)), eval(text)):
        assert twin == framing
        assert hash(twin) == hash(framing)
        assert bytes(ffi.buffer(twin.spec)) == bytes(ffi.buffer(framing.spec))
    assert sum(framing == other for other, _ in EACH) == 1


def test_framing_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Lines().max_size = 3  # type: ignore[misc]


def test_separator_is_kept_as_bytes() -> None:
    sep = bytearray(b"\r\n")
    framing = Delimited(sep)  # type: ignore[arg-type]
    sep[:] = b"xx"
    assert framing.sep == b"\r\n"
    assert framing.wrap(b"") == (b"", b"\r\n")
