"""Transports of pipes and character devices, beside those of asyncio's own loop."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import re
import warnings

import pytest
from conftest import BACKENDS

import pyloop

BIG = 3 * 1024 * 1024


class Heard(asyncio.Protocol):
    """Writes down what it is told; `ended` is set when that is all."""

    def __init__(self):
        self.told, self.data, self.ended = [], bytearray(), asyncio.Event()
        self.came = asyncio.Event()
        self.exc = None

    def connection_made(self, transport):
        self.transport = transport
        self.told.append("made")

    def data_received(self, data):
        assert type(data) is bytes
        self.data += data
        self.came.set()

    def eof_received(self):
        self.told.append("eof")

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")
        self.came.set()

    def connection_lost(self, exc):
        self.told.append("lost")
        self.exc = exc
        self.ended.set()


@pytest.fixture(params=[*BACKENDS, "asyncio"])
def any_run(request, monkeypatch):
    """As `run`, on asyncio's own loop too: what both do is asyncio's promise."""
    monkeypatch.delenv("PYLOOP_BACKEND", raising=False)
    stock = request.param == "asyncio"
    loop = asyncio.SelectorEventLoop() if stock else pyloop.Loop(request.param)
    yield lambda coro: loop.run_until_complete(asyncio.wait_for(coro, 30))
    loop.close()


@pytest.fixture
def ends():
    """A pipe as two unbuffered files, closed at the end."""
    read_fd, write_fd = os.pipe()
    files = io.FileIO(read_fd, "rb"), io.FileIO(write_fd, "wb")
    yield files
    for file in files:
        file.close()


async def reader_of(file):
    return (await asyncio.get_running_loop().connect_read_pipe(Heard, file))[1]


async def writer_of(file):
    return (await asyncio.get_running_loop().connect_write_pipe(Heard, file))[1]


def test_what_is_written_is_heard_then_end_of_stream(any_run, ends):
    async def main():
        reader, writer = await reader_of(ends[0]), await writer_of(ends[1])
        writer.transport.write(b"one ")
        writer.transport.write(bytearray(b"two "))
        writer.transport.writelines([b"th", memoryview(b"ree")])
        writer.transport.write_eof()
        assert writer.transport.is_closing()
        await reader.ended.wait()
        await writer.ended.wait()
        assert reader.data == b"one two three"
        assert reader.told == ["made", "eof", "lost"]
        assert writer.told == ["made", "lost"]
        assert reader.exc is None and writer.exc is None

    any_run(main())
    assert all(file.closed for file in ends)


def test_more_than_a_pipe_holds_pauses_the_writer_and_arrives_whole(any_run, ends):
    data = os.urandom(BIG)

    async def main():
        writer = await writer_of(ends[1])
        writer.transport.write(data)
        assert writer.told == ["made", "pause"]
        assert 0 < writer.transport.get_write_buffer_size() < BIG
        reader = await reader_of(ends[0])
        await writer.came.wait()
        assert writer.told == ["made", "pause", "resume"]
        writer.transport.close()  # after flushing
        await reader.ended.wait()
        assert reader.data == data

    any_run(main())


def test_a_small_write_is_there_before_the_loop_turns(any_run, ends):
    async def main():
        writer = await writer_of(ends[1])
        writer.transport.write(b"x")
        assert os.read(ends[0].fileno(), 10) == b"x"
        writer.transport.close()
        await writer.ended.wait()

    any_run(main())


def test_paused_reader_is_told_nothing_until_it_resumes(any_run, ends):
    async def main():
        reader = await reader_of(ends[0])
        reader.transport.pause_reading()
        assert not reader.transport.is_reading()
        ends[1].write(b"later")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reader.data == b""
        reader.transport.resume_reading()
        await reader.came.wait()
        assert reader.data == b"later"
        reader.transport.close()
        await reader.ended.wait()

    any_run(main())


def test_reader_that_goes_ends_an_idle_writer(any_run, ends):
    async def main():
        writer = await writer_of(ends[1])
        ends[0].close()
        await writer.ended.wait()
        assert writer.told == ["made", "lost"] and writer.exc is None
        for _ in range(7):
            writer.transport.write(b"nobody hears this")

    any_run(main())


def test_reader_that_goes_breaks_a_writer_that_has_more(any_run, ends):
    async def main():
        writer = await writer_of(ends[1])
        writer.transport.write(bytes(BIG))
        ends[0].close()
        await writer.ended.wait()
        assert type(writer.exc) is BrokenPipeError

    any_run(main())


def test_abort_drops_what_is_queued(any_run, ends):
    async def main():
        writer = await writer_of(ends[1])
        writer.transport.write(bytes(BIG))
        writer.transport.abort()
        await writer.ended.wait()
        assert writer.exc is None

    any_run(main())
    assert 0 < len(ends[0].readall()) < BIG


def test_terminal_is_read_and_written(any_run):
    main_fd, other_fd = os.openpty()
    main_file, other = io.FileIO(main_fd, "r+b"), io.FileIO(other_fd, "r+b")

    async def main():
        writer = await writer_of(other)
        reader = await reader_of(main_file)
        os.write(main_fd, b"typed\n")  # readable at the writer's end: no reason to close it
        writer.transport.write(b"shown\n")
        while b"shown" not in reader.data:
            reader.came.clear()
            await reader.came.wait()
        assert writer.told == ["made"]
        writer.transport.close()
        await writer.ended.wait()
        await reader.ended.wait()
        assert reader.exc is None or isinstance(reader.exc, OSError)  # EIO, on Linux

    any_run(main())


def test_regular_file_is_refused_by_name(any_run, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")

    async def main():
        with path.open("r+b") as file:
            for connect in reader_of, writer_of:
                with pytest.raises(ValueError, match=re.compile("pipe transport is", re.I)):
                    await connect(file)

    any_run(main())


def test_reading_end_refuses_to_be_written(run, ends):
    async def main():
        reader = await reader_of(ends[0])
        for call in (lambda: reader.transport.write(b"x"), reader.transport.write_eof):
            with pytest.raises(io.UnsupportedOperation, match="end of a pipe that is read"):
                call()
        assert reader.transport.get_extra_info("pipe") is ends[0]
        assert reader.transport.get_extra_info("peername", "none") == "none"
        reader.transport.close()
        await reader.ended.wait()

    run(main())


def test_unreferenced_pipe_of_a_closed_loop_warns_and_is_closed(backend):
    loop = pyloop.Loop(backend=backend)
    read_fd, write_fd = os.pipe()
    made = loop.run_until_complete(writer_of(io.FileIO(write_fd, "wb")))
    loop.close()
    assert "open" in repr(made.transport)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.transport = None
        del made
        gc.collect()
    assert [str(w.message).split(" <")[0] for w in caught] == ["unclosed transport"]
    assert os.read(read_fd, 1) == b""  # nobody holds the other end
    os.close(read_fd)
