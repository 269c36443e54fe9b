"""Framing: what is cut out of a stream, however its bytes arrive, and that wrapping is its reverse.

The core itself cuts here, through pl_reader_*; framing_model.py says what is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import framing_model as model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyloop.core import ffi, lib
from pyloop.framing import (
    Delimited,
    FixedSize,
    Framing,
    LengthPrefixed,
    Lines,
    Netstring,
    Raw,
)

ENDS = {
    0: "end",
    lib.PL_E_TOO_LONG: "too long",
    lib.PL_E_MALFORMED: "malformed",
    lib.PL_E_INCOMPLETE: "incomplete",
}


class Reader:
    """A pl_reader and what has come out of it."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.messages: list[bytes] = []
        self._reader = ffi.gc(lib.pl_reader_new(), lib.pl_reader_free)
        self._data, self._len = ffi.new("uint8_t **"), ffi.new("size_t *")

    def feed(self, chunk: bytes) -> str:
        """Let bytes arrive; return "end" while all is well."""
        assert lib.pl_reader_feed(self._reader, chunk, len(chunk)) == 0
        return self._cut(lib.pl_reader_next)

    def finish(self) -> str:
        """Let the stream end; return how it did."""
        return self._cut(lib.pl_reader_finish)

    def _cut(self, step: Callable[..., int]) -> str:
        while (rc := step(self._reader, self.framing.spec, self._data, self._len)) == 1:
            self.messages.append(bytes(ffi.buffer(self._data[0], self._len[0])))
        return ENDS[rc]


def cut(framing: Framing, chunks: Iterable[bytes]) -> tuple[list[bytes], str]:
    """Return the messages of a stream that arrives in chunks and then ends, and how it ended."""
    reader = Reader(framing)
    for chunk in chunks:
        if (end := reader.feed(chunk)) != "end":
            return reader.messages, end
    return reader.messages, reader.finish()


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


# ---- cutting ------------------------------------------------------------------

VARINT = LengthPrefixed("varint", max_size=300)
TERA = 1 << 40

# (framing, chunks, messages, end)
CASES: list[tuple[Framing, list[bytes], list[bytes], str]] = [
    (Lines(), [], [], "end"),
    (Lines(), [b"one\ntwo\r\nthree\n"], [b"one", b"two", b"three"], "end"),
    (Lines(), [b"\n", b"\r\n", b"\n"], [b"", b"", b""], "end"),
    (Lines(), [b"o", b"ne\r", b"\n"], [b"one"], "end"),
    (Lines(), [b"a\rb\n\rc\n\r\r\n"], [b"a\rb", b"\rc", b"\r"], "end"),
    (Lines(), [b"a\nlast"], [b"a", b"last"], "end"),
    (Lines(), [b"last\r"], [b"last\r"], "end"),
    (Lines(), [b"\x00\xff\n"], [b"\x00\xff"], "end"),
    (Lines(3), [b"123\n123\r\n123"], [b"123", b"123", b"123"], "end"),
    (Lines(3), [b"1\n1234\n2\n"], [b"1"], "too long"),
    (Lines(3), [b"1234"], [], "too long"),
    (Lines(3), [b"123\r4\n"], [], "too long"),
    (Lines(3), [b"123\r\r\n"], [], "too long"),
    (Lines(3), [b"123\r"], [], "too long"),
    (Lines(1), [b"\r\r\n\r\n"], [b"\r", b""], "end"),
    (Delimited(b";"), [b"a;;b;"], [b"a", b"", b"b"], "end"),
    (Delimited(b";"), [b"a;b"], [b"a"], "incomplete"),
    (Delimited(b";", 3), [b"123;1234;"], [b"123"], "too long"),
    (Delimited(b";", 3), [b"1234"], [], "too long"),
    (Delimited(b"\r\n"), [b"a\nb\rc\r", b"\n\r\r\n"], [b"a\nb\rc", b"\r"], "end"),
    (Delimited(b"\r\n", 3), [b"123\r\n123\r"], [b"123"], "incomplete"),
    (Delimited(b"\r\n", 3), [b"123\r\r\n"], [], "too long"),
    (Delimited(b"aa"), [b"aaaba", b"ac"], [b"", b"ab"], "incomplete"),
    (Delimited(b"aabaaab"), [b"aabaabaaab"], [b"aab"], "end"),
    (Delimited(b"\x00" * 64, 1), [b"a", b"\x00" * 64], [b"a"], "end"),
    (LengthPrefixed(1), [b"\x00\x03abc\x01\x00"], [b"", b"abc", b"\x00"], "end"),
    (LengthPrefixed(2), [b"\x00\x02ab\x00"], [b"ab"], "incomplete"),
    (LengthPrefixed(2, "little"), [b"\x02\x00ab\x01\x00"], [b"ab"], "incomplete"),
    (LengthPrefixed(4), [b"\x00\x00\x00\x02", b"ab"], [b"ab"], "end"),
    (LengthPrefixed(4, "little"), [b"\x02\x00\x00\x00ab"], [b"ab"], "end"),
    (LengthPrefixed(8), [bytes(7) + b"\x01a"], [b"a"], "end"),
    (LengthPrefixed(8, "little"), [b"\x01" + bytes(7) + b"a"], [b"a"], "end"),
    (LengthPrefixed(4, max_size=2), [b"\x00\x00\x00\x02ab\x00\x00\x00\x03"], [b"ab"], "too long"),
    (LengthPrefixed(8, max_size=TERA), [b"\xff" * 8], [], "too long"),
    (LengthPrefixed(8, max_size=TERA), [b"\xff" * 7 + b"\xf8"], [], "too long"),
    (LengthPrefixed(8, max_size=TERA), [b"\x80" + bytes(7)], [], "too long"),
    (LengthPrefixed(8, max_size=TERA), [(TERA + 1).to_bytes(8, "big")], [], "too long"),
    (LengthPrefixed(8, max_size=TERA), [TERA.to_bytes(8, "big"), b"a"], [], "incomplete"),
    (VARINT, [b"\x00\x03abc"], [b"", b"abc"], "end"),
    (VARINT, [b"\xac\x02", b"x" * 300], [b"x" * 300], "end"),
    (VARINT, [b"\xad\x02"], [], "too long"),
    (VARINT, [b"\x81\x80\x00a"], [b"a"], "end"),
    (VARINT, [b"\x80"], [], "incomplete"),
    (VARINT, [b"\xff" * 9 + b"\x01"], [], "too long"),
    (VARINT, [b"\xff" * 9 + b"\x02"], [], "malformed"),
    (VARINT, [b"\x01a" + b"\x80" * 10 + b"\x00"], [b"a"], "malformed"),
    (FixedSize(3), [b"ab", b"cdef"], [b"abc", b"def"], "end"),
    (FixedSize(3), [b"abcd"], [b"abc"], "incomplete"),
    (FixedSize(1), [b"ab"], [b"a", b"b"], "end"),
    (Netstring(), [b"12:hello world!,0:,"], [b"hello world!", b""], "end"),
    (Netstring(), [b"3:a,b,"], [b"a,b"], "end"),
    (Netstring(), [b"3:ab"], [], "incomplete"),
    (Netstring(), [b"3:abc"], [], "incomplete"),
    (Netstring(), [b"3"], [], "incomplete"),
    (Netstring(), [b"1:a,3:abc;"], [b"a"], "malformed"),
    (Netstring(), [b":,"], [], "malformed"),
    (Netstring(), [b"00:,"], [], "malformed"),
    (Netstring(), [b"01:a,"], [], "malformed"),
    (Netstring(), [b"+1:a,"], [], "malformed"),
    (Netstring(), [b"1a:"], [], "malformed"),
    (Netstring(20), [b"20:", b"x" * 20, b",21:"], [b"x" * 20], "too long"),
    (Netstring(20), [b"100"], [], "too long"),
    (Netstring(20), [b"18446744073709551617:a,"], [], "too long"),  # 2**64 + 1
    (Netstring(TERA), [b"9" * 400], [], "too long"),
]

each_case = pytest.mark.parametrize(
    ("framing", "chunks", "messages", "end"),
    CASES,
    ids=[f"{framing}-{b''.join(chunks)[:24]!r}" for framing, chunks, _, _ in CASES],
)


@each_case
def test_stream_says_the_same_wherever_it_is_split(
    framing: Framing, chunks: list[bytes], messages: list[bytes], end: str
) -> None:
    stream = b"".join(chunks)
    assert cut(framing, chunks) == (messages, end)
    assert cut(framing, [stream]) == (messages, end)
    assert cut(framing, bytewise(stream)) == (messages, end)
    for at in range(len(stream) + 1):
        assert cut(framing, [stream[:at], stream[at:]]) == (messages, end), f"split at {at}"


@each_case
def test_model_agrees_with_the_table(
    framing: Framing, chunks: list[bytes], messages: list[bytes], end: str
) -> None:
    assert model.cut(framing, b"".join(chunks)) == (messages, end)


def test_raw_gives_what_arrived_as_it_arrived() -> None:
    assert cut(Raw(), [b"ab", b"", b"\n", b"c"]) == ([b"ab", b"\n", b"c"], "end")


@pytest.mark.parametrize(
    ("framing", "harmless", "fatal"),
    [
        (Lines(3), b"123\r", b"x"),
        (Lines(3), b"123", b"4"),
        (Delimited(b";", 3), b"123", b"4"),
        (Delimited(b"\r\n", 3), b"1234", b"5"),
        (LengthPrefixed(4, max_size=255), b"\x00\x00\x01", b"\x00"),
        (LengthPrefixed("varint", max_size=127), b"\x80", b"\x01"),
        (Netstring(65536), b"6553", b"7"),
        (Netstring(99), b"99", b"0"),
    ],
    ids=repr,
)
def test_message_over_its_limit_is_known_at_the_first_byte_that_tells(
    framing: Framing, harmless: bytes, fatal: bytes
) -> None:
    reader = Reader(framing)
    assert [reader.feed(byte) for byte in bytewise(harmless)] == ["end"] * len(harmless)
    assert reader.feed(fatal) == "too long"


def test_netstring_without_comma_is_known_at_the_byte_in_its_place() -> None:
    reader = Reader(Netstring())
    assert reader.feed(b"3:abc") == "end"
    assert reader.feed(b"d") == "malformed"


@pytest.mark.parametrize("framing", [Lines(1 << 24), Delimited(b"\r\n\r\n", 1 << 24)], ids=repr)
def test_large_message_in_small_pieces_arrives_once(framing: Framing) -> None:
    payload = b"\r\nx" if isinstance(framing, Delimited) else b"\rxy"
    payload *= 1_000_000
    wire = payload + framing.wrap(b"")[1]
    pieces = [wire[at : at + 1021] for at in range(0, len(wire), 1021)]
    assert cut(framing, pieces) == ([payload], "end")


# ---- random scripts -------------------------------------------------------------

sizes = st.integers(1, 12)
framings = st.one_of(
    st.builds(Raw),
    st.builds(Lines, sizes),
    st.builds(Delimited, st.text("ab\r\n", min_size=1, max_size=5).map(str.encode), sizes),
    st.builds(
        LengthPrefixed,
        st.sampled_from([1, 2, 4, 8, "varint"]),
        st.sampled_from(["big", "little"]),
        st.sampled_from([1, 3, 12, 300]),
    ),
    st.builds(FixedSize, sizes),
    st.builds(Netstring, st.sampled_from([1, 12, 300])),
)
payloads = st.one_of(
    st.binary(max_size=14), st.text("ab\r\n:,09", max_size=14).map(str.encode), st.just(b"x" * 300)
)


def wire(framing: Framing, payload: bytes) -> bytes:
    """Return a payload as it is sent, or as it is when it cannot be."""
    try:
        head, tail = framing.wrap(payload)
    except ValueError:
        return payload
    return head + payload + tail


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Framing, list[bytes]]:
    """A framing, and a stream of messages and noise in chunks that know nothing of either."""
    framing = draw(framings)
    noise = st.binary(max_size=3)
    parts = st.one_of(payloads.map(lambda payload: wire(framing, payload)), noise)
    stream = b"".join(draw(st.lists(parts, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    return framing, [stream[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=500, deadline=None)
@given(scripts())
def test_random_script_says_what_the_model_says(script: tuple[Framing, list[bytes]]) -> None:
    framing, chunks = script
    messages, end = cut(framing, chunks)
    if isinstance(framing, Raw):
        messages = [b"".join(messages)] if messages else []
    assert (messages, end) == model.cut(framing, b"".join(chunks))


@settings(max_examples=500, deadline=None)
@given(framings, payloads)
def test_what_is_wrapped_is_cut_again_and_what_is_refused_would_not_be(
    framing: Framing, payload: bytes
) -> None:
    try:
        head, tail = framing.wrap(payload)
    except ValueError:
        if isinstance(framing, Lines | Delimited):
            tail = framing.sep if isinstance(framing, Delimited) else b"\n"
            assert model.cut(framing, payload + tail) != ([payload], "end")
        return
    stream = (head + payload + tail) * 2
    if isinstance(framing, Raw):
        assert stream == payload * 2
    else:
        assert cut(framing, [stream]) == ([payload, payload], "end")
