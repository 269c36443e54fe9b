"""FdSet, select and O_NONBLOCK: the primitives against their C and POSIX meaning."""

from __future__ import annotations

import copy
import errno
import math
import os
import resource
import select as stdlib_select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyloop.lowlevel import (
    FD_SETSIZE,
    FdSet,
    is_nonblocking,
    select,
    set_nonblocking,
)

Pair = tuple[socket.socket, socket.socket]
fds = st.integers(0, FD_SETSIZE - 1)


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


class Fd:
    """Something with a fileno() that returns what the test says."""

    def __init__(self, value: object) -> None:
        self.value = value

    def fileno(self) -> object:
        return self.value


# ---- FdSet ----------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), fds)))
def test_fdset_agrees_with_a_set(script: list[tuple[bool, int]]) -> None:
    ours, model = FdSet(), set[int]()
    for add, fd in script:
        (ours.add if add else ours.discard)(fd)
        (model.add if add else model.discard)(fd)
        assert ours.highest == max(model, default=-1)
    assert list(ours) == sorted(model)
    assert len(ours) == len(model)
    assert bool(ours) == bool(model)
    assert all(fd in ours for fd in model)
    assert ours == FdSet(model)
    assert repr(ours) == f"FdSet({sorted(model)})"
    ours.clear()
    assert list(ours) == []
    assert ours.highest == -1


@pytest.mark.parametrize("fd", [-1, FD_SETSIZE, FD_SETSIZE + 7, 2**40, -(2**40)])
def test_fd_out_of_range_is_named(fd: int) -> None:
    ours = FdSet()
    limit = rf"fd {fd} is outside 0\.\.{FD_SETSIZE - 1}.*FD_SETSIZE \({FD_SETSIZE}\)"
    with pytest.raises(ValueError, match=limit):
        ours.add(fd)
    assert fd not in ours
    assert not ours.contains(fd)
    assert not ours


def test_discard_forgives_what_is_absent_but_not_a_closed_object(pair: Pair) -> None:
    ours = FdSet(pair)
    ours.discard(FD_SETSIZE)
    ours.discard(2**40)
    pair[0].close()
    with pytest.raises(ValueError, match="fd -1 is negative: discard an object before closing it"):
        ours.discard(pair[0])
    assert len(ours) == 2


@pytest.mark.parametrize("fd", ["1", b"1", 1.0, None, True, object()])
def test_what_is_no_fd_is_a_type_error(fd: object) -> None:
    ours = FdSet()
    text = f"an fd is an int or has fileno\\(\\), not {type(fd).__name__}"
    for call in (ours.add, ours.discard, ours.contains, set_nonblocking, is_nonblocking):
        with pytest.raises(TypeError, match=text):
            call(fd)  # type: ignore[arg-type]


def test_fileno_that_returns_no_int_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"fileno\(\) must return an int, not str"):
        FdSet().add(Fd("3"))  # type: ignore[arg-type]
    assert list(FdSet([Fd(3)])) == [3]  # type: ignore[list-item]


def test_objects_with_fileno_are_members(pair: Pair) -> None:
    ours = FdSet(pair)
    assert pair[0] in ours
    assert pair[1].fileno() in ours
    ours.discard(pair[0])
    assert list(ours) == [pair[1].fileno()]


@pytest.mark.parametrize("duplicate", [FdSet.copy, copy.copy])
def test_copy_is_independent(duplicate: object) -> None:
    ours = FdSet([1, 5])
    other = duplicate(ours)  # type: ignore[operator]
    other.discard(5)
    assert list(ours) == [1, 5]
    assert other == FdSet([1])
    assert other != [1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(ours)


def test_iteration_survives_discarding() -> None:
    ours = FdSet(range(10))
    for fd in ours:
        ours.discard(fd)
    assert not ours


# ---- select ---------------------------------------------------------------------


def test_select_leaves_what_is_ready(pair: Pair) -> None:
    read, write = FdSet(pair), FdSet([pair[0]])
    assert select(read, write, FdSet(pair), 0) == 1
    assert list(read) == []
    assert pair[0] in write
    pair[1].send(b"x")
    read, error = FdSet(pair), FdSet(pair)
    assert select(read, write, error) == 2
    assert list(read) == [pair[0].fileno()]
    assert not error


def test_urgent_data_is_an_exceptional_condition() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with (
            socket.create_connection(listener.getsockname()) as client,
            listener.accept()[0] as conn,
        ):
            client.send(b"!", socket.MSG_OOB)
            error = FdSet([conn])
            assert select(None, None, error, 10) == 1
            assert conn in error


def test_end_of_stream_is_readable(pair: Pair) -> None:
    pair[1].close()
    assert select(FdSet([pair[0]])) == 1


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.0003, 0.01])
def test_time_out_is_never_early_and_empties_the_sets(pair: Pair, timeout: float) -> None:
    read = FdSet(pair)
    start = time.monotonic()
    assert select(read, timeout=timeout) == 0
    assert time.monotonic() - start >= timeout
    assert list(read) == []


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 2**80])
def test_wait_without_end_ends_with_readiness(pair: Pair, timeout: float | None) -> None:
    pair[1].send(b"x")
    assert select(FdSet(pair), timeout=timeout) == 1


@pytest.mark.parametrize("timeout", [-1, -1e-9, -math.inf, math.nan])
def test_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match=f"timeout must be 0 or more seconds, not {timeout}"):
        select(FdSet(), timeout=timeout)


def test_timeout_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError):
        select(FdSet(), timeout="1")  # type: ignore[arg-type]


def test_sets_of_another_type_are_refused(pair: Pair) -> None:
    with pytest.raises(TypeError, match="write must be an FdSet or None, not list"):
        select(None, [pair[0]], timeout=0)  # type: ignore[arg-type]


def test_one_set_passed_twice_is_refused(pair: Pair) -> None:
    both = FdSet(pair)
    with pytest.raises(ValueError, match="one FdSet was passed twice"):
        select(both, both)
    assert len(both) == 2


def test_no_sets_sleep() -> None:
    assert select(None, timeout=0.001) == 0


def test_closed_fd_is_ebadf_and_keeps_the_sets(pair: Pair) -> None:
    read = FdSet(pair)
    pair[1].close()
    with pytest.raises(OSError, match="Bad file descriptor") as info:
        select(read, timeout=0)
    assert info.value.errno == errno.EBADF
    assert len(read) == 2


@pytest.fixture
def alarm() -> Iterator[list[float]]:
    """SIGALRM in 20 ms and every 20 ms; the list gets the times when its Python handler ran."""
    times: list[float] = []
    old = signal.signal(signal.SIGALRM, lambda *_: times.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    yield times
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def test_signal_runs_its_handler_and_the_wait_goes_on(pair: Pair, alarm: list[float]) -> None:
    read = FdSet(pair)
    start = time.monotonic()
    assert select(read, timeout=0.1) == 0
    assert time.monotonic() - start >= 0.1
    assert alarm
    assert alarm[0] < start + 0.1


def test_handler_that_makes_an_fd_ready_ends_the_wait(pair: Pair) -> None:
    old = signal.signal(signal.SIGALRM, lambda *_: pair[1].send(b"x"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # the first may come before the wait
        assert select(FdSet(pair)) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_exception_of_a_handler_ends_the_wait_and_keeps_the_sets(pair: Pair) -> None:
    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # the first may come before it
        select(read)

    read = FdSet(pair)
    old = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert len(read) == 2


def test_other_threads_run_during_the_wait(pair: Pair) -> None:
    thread = threading.Thread(target=pair[1].send, args=(b"x",))
    read = FdSet(pair)
    thread.start()
    assert select(read) == 1
    thread.join()


def test_select_agrees_with_the_standard_library() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    try:
        left = [left for left, _ in pairs]
        for _, right in pairs[::3]:
            right.send(b"x")
        expected, _, _ = stdlib_select.select(left, [], [], 0)
        read = FdSet(left)
        assert select(read, timeout=0) == len(expected)
        assert list(read) == sorted(s.fileno() for s in expected)
    finally:
        for one, other in pairs:
            one.close()
            other.close()


def test_fd_that_really_is_over_fd_setsize_is_refused(pair: Pair) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= FD_SETSIZE:
        pytest.skip(f"RLIMIT_NOFILE is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FD_SETSIZE + 1), hard))
    try:
        high = os.dup2(pair[0].fileno(), FD_SETSIZE)
        with pytest.raises(ValueError, match=f"fd {high} is outside"):
            FdSet([high])
        set_nonblocking(high)
        os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- O_NONBLOCK -----------------------------------------------------------------


def test_nonblocking_is_switched_on_and_off(pair: Pair) -> None:
    assert not is_nonblocking(pair[0])
    set_nonblocking(pair[0])
    assert is_nonblocking(pair[0].fileno()) is True
    with pytest.raises(BlockingIOError):
        pair[0].recv(1)
    assert os.get_blocking(pair[0].fileno()) is False
    set_nonblocking(pair[0].fileno(), False)
    assert is_nonblocking(pair[0]) is False


@pytest.mark.parametrize("fd", [-1, 1_000_000])
def test_closed_fd_is_an_os_error(fd: int) -> None:
    for call in (set_nonblocking, is_nonblocking):
        with pytest.raises(OSError, match="Bad file descriptor") as info:
            call(fd)
        assert info.value.errno == errno.EBADF
