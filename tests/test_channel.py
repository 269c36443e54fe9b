"""Channel: messages between threads and processes, blocking and not. For coroutines see
test_channel_async.py, for what goes wrong test_channel_errors.py and test_channel_kill.py.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from channels import TIMEOUT, Maker, fresh_name, make, named, named_channel, start, status_of
from conftest import open_fds
from hypothesis import given, settings
from hypothesis import strategies as st

import pyloop
from pyloop import rings

__all__ = ["make", "named"]

SIZES = [0, 1, 7, 8, 9, 63, 64, 127, 128]


# ---- messages ----


def test_messages_come_out_whole_and_in_order(make: Maker) -> None:
    channel = make(capacity=144)
    for size in SIZES * 3:
        message = os.urandom(size)
        channel.put(message)
        assert channel.get() == message
    assert channel.used == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_comes_out_as_bytes(kind: type) -> None:
    channel = pyloop.Channel()
    channel.put(kind(b"abcd"))
    channel.put_nowait(kind(b"efgh"))
    got = [channel.get(), channel.get_nowait()]
    assert got == [b"abcd", b"efgh"]
    assert {type(message) for message in got} == {bytes}


def test_memory_that_is_not_in_one_piece_comes_out_as_bytes() -> None:
    channel = pyloop.Channel()
    channel.put(memoryview(b"a-b-c-d-")[::2])
    assert channel.get() == b"abcd"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.none()), max_size=60))
def test_random_puts_and_gets_match_a_deque(script: list[bytes | None]) -> None:
    """None is a get. A record is the message and 8 bytes, padded to 8."""
    channel, model = pyloop.Channel(capacity=104, max_message=40), deque[bytes]()
    for message in script:
        used = sum(8 + (len(m) + 7) // 8 * 8 for m in model)
        assert channel.used == used
        if message is None:
            try:
                assert channel.get_nowait() == model.popleft()
            except (queue.Empty, IndexError):
                assert not model
        elif used + 8 + (len(message) + 7) // 8 * 8 <= channel.capacity:
            channel.put_nowait(message)
            model.append(message)
        else:
            with pytest.raises(queue.Full):
                channel.put_nowait(message)


def test_full_and_empty_channels_say_so(make: Maker) -> None:
    channel = make(capacity=144)
    label = f"channel {channel.name!r}" if make.named else "nameless channel"
    with pytest.raises(queue.Empty, match=f"the {label} has no message"):
        channel.get_nowait()
    with pytest.raises(TimeoutError, match=f"the {label} had no message within 0.01 s"):
        channel.get(timeout=0.01)
    channel.put(bytes(128))
    with pytest.raises(queue.Full, match=f"the {label} has no room for 1 bytes"):
        channel.put_nowait(b"x")
    with pytest.raises(TimeoutError, match=f"the {label} had no room within 0 s"):
        channel.put(b"x", timeout=0)


def test_sizes_are_rounded_up_and_told() -> None:
    channel = pyloop.Channel(capacity=1001, max_message=100)
    assert (channel.capacity, channel.max_message, channel.name) == (1008, 100, None)
    assert repr(channel) == "<Channel of 1008 bytes>"
    channel = pyloop.Channel()
    assert (channel.capacity, channel.max_message) == (1 << 20, 1 << 16)


# ---- threads and signals ----


def test_threads_share_the_messages(make: Maker) -> None:
    channel, got = make(), list[bytes]()
    threads = [threading.Thread(target=lambda: got.extend(channel)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(300):
        channel.put(b"%d" % number, TIMEOUT)
    channel.shutdown()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(map(int, got)) == list(range(300))


def test_signal_handler_runs_and_the_wait_goes_on() -> None:
    channel, heard = pyloop.Channel(), list[int]()

    def handle(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 3:
            channel.put(b"enough")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        assert channel.get(TIMEOUT) == b"enough"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard[:3] == [signal.SIGALRM] * 3


def test_time_before_a_signal_is_part_of_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0], list[int]()

    def interrupted(*arguments: Any) -> int:
        asked.append(arguments[-1])
        clock[0] += 600_000_000
        return -errno.EINTR if clock[0] < 1_000_000_000 else -errno.ETIMEDOUT

    monkeypatch.setattr(rings, "time", types.SimpleNamespace(monotonic_ns=lambda: clock[0]))
    monkeypatch.setattr("pyloop.rings._ring_get", interrupted)
    monkeypatch.setattr("pyloop.channel._ring_put", interrupted)
    channel = pyloop.Channel()
    for wait in (lambda: channel.get(1), lambda: channel.put(b"", 1)):
        clock[0] = 0
        with pytest.raises(TimeoutError):
            wait()
        assert asked == [1_000_000_000, 400_000_000]
        asked.clear()


def test_handler_that_raises_ends_the_wait() -> None:
    def handle(number: int, frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise InterruptedError("by the handler")

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # the first may come before it
        pyloop.Channel().get()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(InterruptedError, match="by the handler"):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- processes ----


def test_forked_children_exchange_messages(make: Maker) -> None:
    there, back = make(), make()

    def answer() -> None:
        for message in there:
            back.put(message.upper(), TIMEOUT)

    pid = start(answer)
    for number in range(200):
        there.put(b"message %d" % number, TIMEOUT)
        assert back.get(TIMEOUT) == b"MESSAGE %d" % number
    there.shutdown()
    assert status_of(pid) == 0


def answer(there: pyloop.Channel, back: pyloop.Channel) -> None:
    """Run in a fresh interpreter."""
    for message in there:
        back.put(message.upper())


def test_spawned_children_get_the_channel_as_an_argument(make: Maker) -> None:
    there, back = make(), make()
    child = multiprocessing.get_context("spawn").Process(target=answer, args=(there, back))
    child.start()
    there.put(b"hello", TIMEOUT)
    assert back.get(TIMEOUT) == b"HELLO"
    there.shutdown()
    child.join(TIMEOUT)
    assert child.exitcode == 0


def test_nameless_channel_is_pickled_only_for_a_child() -> None:
    with pytest.raises(RuntimeError, match="only be shared between processes through inheritance"):
        pickle.dumps(pyloop.Channel())


def test_named_channel_is_found_and_unlinked() -> None:
    with named_channel() as channel:
        assert channel.name
        other = pyloop.Channel(channel.name)
        assert pickle.loads(pickle.dumps(other)).capacity == 1024
        channel.put(b"by name")
        assert other.get() == b"by name"
        assert repr(other) == f"<Channel {channel.name!r} of 1024 bytes>"
        channel.unlink()
        other.put(b"goes on")
        assert channel.get() == b"goes on"
        with pytest.raises(FileNotFoundError):
            pyloop.Channel(channel.name, create=False)
        other.close()


def test_processes_that_open_one_name_at_once_meet() -> None:
    name = fresh_name()

    def meet() -> None:
        with pyloop.Channel(name) as channel:
            channel.put(b"here", TIMEOUT)

    pids = [start(meet) for _ in range(4)]
    with pyloop.Channel(name) as channel:
        try:
            assert [channel.get(TIMEOUT) for _ in pids] == [b"here"] * 4
            assert [status_of(pid) for pid in pids] == [0] * 4
        finally:
            channel.unlink()


# ---- the end ----


def test_shutdown_lets_the_rest_be_got(make: Maker) -> None:
    channel = make()
    label = f"channel {channel.name!r}" if make.named else "nameless channel"
    channel.put(b"1")
    channel.put(b"2")
    channel.shutdown()
    with pytest.raises(pyloop.ChannelClosed, match=f"the {label} was shut down"):
        channel.put(b"3")
    assert list(channel) == [b"1", b"2"]
    with pytest.raises(pyloop.ChannelClosed, match="was shut down"):
        channel.get()
    channel.shutdown()


def test_close_ends_the_waits_of_this_process_only(make: Maker) -> None:
    channel, full = make(), make(capacity=144)
    full.put(bytes(128))
    ends = queue.SimpleQueue[str]()

    def note(wait: Callable[[], object]) -> None:
        try:
            wait()
        except pyloop.ChannelClosed as exc:
            ends.put(str(exc))

    waits = [channel.get, channel.get, lambda: next(channel), lambda: full.put(b"x")]
    threads = [threading.Thread(target=note, args=(wait,)) for wait in waits]
    ours, theirs = os.pipe()

    def go_on() -> None:
        os.read(ours, 1)
        channel.put(b"still here")
        assert channel.get() == b"still here"

    pid = start(go_on)
    for thread in threads:
        thread.start()
    for each in (channel, channel, full):
        each.close()
    for thread in threads:
        thread.join(TIMEOUT)
    os.write(theirs, b"!")
    assert status_of(pid) == 0
    assert all("is closed in this process" in ends.get_nowait() for _ in waits)
    os.close(ours)
    os.close(theirs)


def test_closed_channel_refuses_everything(make: Maker) -> None:
    with make() as channel:
        assert not channel.closed
    assert channel.closed
    assert repr(channel).endswith(", closed>")
    for action in (
        channel.get,
        channel.get_nowait,
        channel.shutdown,
        lambda: channel.put(b""),
        lambda: channel.used,
        lambda: pickle.dumps(channel),
        lambda: next(channel),
    ):
        with pytest.raises(pyloop.ChannelClosed, match="is closed in this process"):
            action()


def test_no_fd_is_left(make: Maker) -> None:
    gc.collect()
    before = open_fds()
    for close in (True, False):
        channel = make()
        make._made.clear()
        channel.put(b"x")
        channel.get()
        with pytest.raises(TimeoutError):
            channel.get(0.001)
        if channel.name:
            channel.unlink()
        if close:
            channel.close()
        del channel
    assert open_fds() == before


def test_messages_of_all_lengths_are_each_what_was_put():
    sizes = (0, 1, 8191, 8192, 8192, 8193, 65536, 65536, 65535, 100, 65536, 0, 65536, 65536)
    sent = [os.urandom(size) for size in sizes]
    with pyloop.Channel() as channel:
        got = []
        for message in sent:  # kept: one must not be received into another
            channel.put(message)
            got.append(channel.get())
    assert got == sent
