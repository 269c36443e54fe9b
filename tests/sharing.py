"""For the tests of semaphores and locks: children by fork, signals in a wait, threads that end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from channels import TIMEOUT, start, status_of

import pyloop
from pyloop import waiting


def until(condition: Callable[[], object]) -> None:
    """Look until `condition()` holds, and hold up whoever else runs in this thread."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.002)


def waiters() -> list[threading.Thread]:
    """The threads that wait for a coroutine."""
    return [thread for thread in threading.enumerate() if thread.name == "pyloop-wait"]


def all_waiters_end() -> bool:
    until(lambda: not waiters())
    return True


@contextlib.contextmanager
def child(main: Callable[[], object]) -> Iterator[int]:
    """A fork that runs `main`; gives its pid. At the end it is killed if need be, and reaped."""
    pid = start(main)
    try:
        yield pid
    finally:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def kill(pid: int) -> None:
    """Kill a child, and reap it."""
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == -signal.SIGKILL


@contextlib.contextmanager
def shot_at(handler: Callable[..., object]) -> Iterator[None]:
    """Have the main thread get SIGUSR1 every few ms, and `handler` run."""
    ended = threading.Event()

    def shoot() -> None:
        while not ended.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(TIMEOUT)
        signal.signal(signal.SIGUSR1, before)


def ctrl_c_in_a_wait() -> Callable[..., object]:
    """A handler for `shot_at`: KeyboardInterrupt, once, and nowhere but in a wait."""
    raised: list[bool] = []

    def handler(_: int, frame: FrameType | None) -> None:
        while frame is not None and not raised:
            if frame.f_code is waiting.wait.__code__:
                raised.append(True)
                raise KeyboardInterrupt
            frame = frame.f_back

    return handler


def fail(block: contextlib.AbstractContextManager[object]) -> object:
    """End a block by an exception; return what it was given."""
    with contextlib.suppress(LookupError), block as given:
        raise LookupError
    return given


@contextlib.contextmanager
def memory(size: int = 4096) -> Iterator[pyloop.SharedMemory]:
    """A SharedMemory whose name is gone already."""
    with pyloop.SharedMemory(size=size, create=True) as shm:
        shm.unlink()
        yield shm
