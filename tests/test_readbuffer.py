"""pyloop.lowlevel.ReadBuffer: bytes in, messages out, whatever the pieces."""

from __future__ import annotations

import array
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyloop.errors import FramingError
from pyloop.framing import Delimited, FixedSize, Framing, LengthPrefixed, Lines, Netstring, Raw
from pyloop.lowlevel import ReadBuffer

STREAMS: list[tuple[Framing, bytes, list[bytes]]] = [
    (Lines(), b"one\r\ntwo\n\nthree", [b"one", b"two", b"", b"three"]),
    (Delimited(b"--"), b"a--b----", [b"a", b"b", b""]),
    (LengthPrefixed(2), b"\0\3abc\0\0\0\1x", [b"abc", b"", b"x"]),
    (LengthPrefixed("varint"), b"\3abc\0", [b"abc", b""]),
    (FixedSize(3), b"abcdef", [b"abc", b"def"]),
    (Netstring(), b"3:abc,0:,", [b"abc", b""]),
]


def drain(buffer: ReadBuffer, framing: Framing, *, end: bool = False) -> list[bytes]:
    cut = buffer.finish if end else buffer.next
    messages = []
    while (message := cut(framing)) is not None:
        messages.append(message)
    return messages


@pytest.mark.parametrize(("framing", "stream", "messages"), STREAMS, ids=repr)
def test_messages_are_the_same_however_the_bytes_arrive(
    framing: Framing, stream: bytes, messages: list[bytes]
) -> None:
    for size in range(1, len(stream) + 1):
        buffer, got = ReadBuffer(), []
        for start in range(0, len(stream), size):
            buffer.feed(stream[start : start + size])
            got += drain(buffer, framing)
        assert got + drain(buffer, framing, end=True) == messages
        assert len(buffer) == 0


def test_raw_gives_all_there_is() -> None:
    buffer = ReadBuffer()
    assert buffer.next(Raw()) is None
    buffer.feed(b"ab")
    buffer.feed(b"c")
    assert buffer.next(Raw()) == b"abc"
    assert buffer.finish(Raw()) is None


def test_framing_may_change_between_messages() -> None:
    buffer = ReadBuffer()
    buffer.feed(b"length 5\nhello2:ok,")
    assert buffer.next(Lines()) == b"length 5"
    assert buffer.next(FixedSize(5)) == b"hello"
    assert buffer.next(Netstring()) == b"ok"


def test_bad_message_is_a_framing_error_and_stays() -> None:
    buffer = ReadBuffer()
    buffer.feed(b"toolong\n")
    with pytest.raises(FramingError, match="message over max_size"):
        buffer.next(Lines(max_size=3))
    assert buffer.peek() == b"toolong\n"
    with pytest.raises(FramingError, match="malformed message length"):
        buffer.next(Netstring())
    assert buffer.next(Lines()) == b"toolong"


def test_incomplete_message_at_the_end_is_a_framing_error() -> None:
    buffer = ReadBuffer()
    buffer.feed(b"3:ab")
    assert buffer.next(Netstring()) is None
    with pytest.raises(FramingError, match="incomplete message"):
        buffer.finish(Netstring())
    assert len(buffer) == 4


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 50))))
def test_feed_peek_and_consume_agree_with_bytes(script: list[bytes | int]) -> None:
    buffer, model = ReadBuffer(), b""
    for step in script:
        if isinstance(step, bytes):
            buffer.feed(step)
            model += step
        elif step <= len(model):
            assert buffer.peek(step) == model[:step]
            buffer.consume(step)
            model = model[step:]
        else:
            with pytest.raises(ValueError, match=f"cannot consume {step} of {len(model)} bytes"):
                buffer.consume(step)
        assert len(buffer) == len(model)
        assert buffer.peek() == buffer.peek(2**70) == model
    assert repr(buffer) == f"<ReadBuffer of {len(model)} bytes>"


def test_consume_of_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot consume -1 of 0 bytes"):
        ReadBuffer().consume(-1)


def test_feed_takes_whatever_has_bytes() -> None:
    buffer = ReadBuffer()
    for data in (b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], array.array("H", [0x6464]), b""):
        buffer.feed(data)
    assert buffer.peek() == b"abcdd"


def test_feed_lets_go_of_its_argument() -> None:
    data = bytearray(b"abc")
    ReadBuffer().feed(data)
    data.clear()  # a BufferError while somebody holds it


@pytest.mark.parametrize("data", ["text", None, 3, [1]])
def test_feed_of_anything_else_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError, match=r"bytes-like|buffer"):
        ReadBuffer().feed(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("framing", [None, Lines, b"\n"])
def test_what_is_no_framing_is_a_type_error(framing: object) -> None:
    with pytest.raises(TypeError, match="framing must be a pyloop framing, not"):
        ReadBuffer().next(framing)  # type: ignore[arg-type]


def test_threads_may_share_a_buffer() -> None:
    buffer = ReadBuffer()
    got: list[bytes] = []

    def work() -> None:
        for _ in range(2000):
            buffer.feed(b"x" * 100 + b"\n")
            if (line := buffer.next(Lines())) is not None:
                got.append(line)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got + drain(buffer, Lines()) == [b"x" * 100] * 8000
