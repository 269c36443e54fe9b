"""What the tests of channels share: names that nobody else has, and children by fork."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

import pyloop

TIMEOUT = 60.0
_numbers = itertools.count()


def fresh_name() -> str:
    """A name that no other test has."""
    return f"pyloop-test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(params=["nameless", "named"])
def named(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "named")


class Maker:
    """Makes channels of one kind, and cleans up after them."""

    def __init__(self, named: bool) -> None:
        self.named = named
        self._made: list[pyloop.Channel] = []

    def __call__(self, capacity: int = 1024, max_message: int = 128) -> pyloop.Channel:
        name = fresh_name() if self.named else None
        self._made.append(pyloop.Channel(name, capacity, max_message, create=True))
        return self._made[-1]

    def close(self) -> None:
        for channel in self._made:
            channel.close()
            if channel.name:
                with contextlib.suppress(FileNotFoundError):
                    channel.unlink()


@pytest.fixture
def make(named: bool) -> Iterator[Maker]:
    """Make a channel of each kind in turn."""
    maker = Maker(named)
    yield maker
    maker.close()


@contextlib.contextmanager
def named_channel(capacity: int = 1024, max_message: int = 128) -> Iterator[pyloop.Channel]:
    maker = Maker(True)
    try:
        yield maker(capacity, max_message)
    finally:
        maker.close()


def start(main: Callable[[], object]) -> int:
    """Fork a child that runs `main`, and return its pid; its exit status is 0 if that returned."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a child: its exit status, or less a signal's number. One that hangs is killed."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hung")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.002)
