"""pyloop.Loop: asyncio's selector event loop with the core as its selector.

All of asyncio works on it. What is replaced here are the seams through which the stdlib waits
and wakes: the selector, the self-pipe, `_process_events` and `_write_to_self`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from pyloop.core import beyond_select, check, failure, ffi, is_foreign, lib
from pyloop.dispatch import Dispatch
from pyloop.groups import Groups
from pyloop.page import Page
from pyloop.stats import LoopStats, loop_stats
from pyloop.streams import Acceptor, Streams

__all__ = ["Loop", "new_event_loop", "running_loop"]

_BACKENDS: dict[str, int] = {
    "auto": lib.PL_AUTO,
    "select": lib.PL_SELECT,
    "poll": lib.PL_POLL,
    "epoll": lib.PL_EPOLL,
}
_NAMES = {number: name for name, number in _BACKENDS.items()}
_LONGEST_WAIT_NS = 1 << 62


def _choose_backend(backend: str) -> int:
    """Return the core's number for a name; PYLOOP_BACKEND stands in for "auto"."""
    source = "backend"
    if backend == "auto" and (named := os.environ.get("PYLOOP_BACKEND")):
        source, backend = "PYLOOP_BACKEND", named
    if backend in _BACKENDS:
        return _BACKENDS[backend]
    known = ", ".join(_BACKENDS)
    if backend == "io_uring":
        raise ValueError(f"{source}='io_uring': not in this build; expected one of {known}")
    raise ValueError(f"{source}={backend!r}: expected one of {known}")


def _timeout_ns(timeout: float | None) -> int:
    """Seconds as the core wants them: whole nanoseconds, never too few, -1 for no end."""
    if timeout is None:
        return -1
    if timeout <= 0:
        return 0
    return min(-int(-timeout * 1_000_000_000 // 1), _LONGEST_WAIT_NS)


class _KeyMap(Mapping[Any, selectors.SelectorKey]):
    """The watched fds, found by fd or by an object that has one."""

    def __init__(self) -> None:
        self.keys_by_fd: dict[int, selectors.SelectorKey] = {}

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        try:
            return self.keys_by_fd[_fd_of(fileobj)]
        except ValueError:  # closed meanwhile: its number is -1
            for key in self.keys_by_fd.values():
                if key.fileobj is fileobj:
                    return key
            raise KeyError(f"{fileobj!r} is not registered") from None

    def __len__(self) -> int:
        return len(self.keys_by_fd)

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys_by_fd)


def _fd_of(fileobj: Any) -> int:
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if not isinstance(fd, int) or fd < 0:
        raise ValueError(f"invalid file descriptor: {fd!r}")
    return fd


class CoreSelector(selectors.BaseSelector):
    """The core behind the interface that asyncio expects of a selector.

    `select` is one tick; it returns how many events the batch has, and `Loop._process_events`
    walks them.
    """

    def __init__(self, backend: str) -> None:
        error = ffi.new("int *")
        self.ptr = lib.pl_loop_new(_choose_backend(backend), error)
        if self.ptr == ffi.NULL:
            raise failure(error[0])
        self._map = _KeyMap()
        self._by_fd = self._map.keys_by_fd
        self.dispatch = Dispatch(self.ptr, self._ignore)

    @staticmethod
    def _ignore(fd: int, mask: int) -> None:
        pass

    def check(self, code: int) -> int:
        """As core.check, for this loop."""
        return check(code, self.ptr)

    def _watch(self, fd: int, events: int) -> None:
        self.check_fd(lib.pl_watch(self.ptr, fd, events), fd)

    def check_fd(self, code: int, fd: int) -> None:
        """As check, for a call that begins to watch `fd`."""
        if code == -errno.ERANGE:
            raise ValueError(beyond_select(f"fd {fd}"))
        self.check(code)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _fd_of(fileobj)
        if fd in self._by_fd:
            raise KeyError(f"fd {fd} is already registered")
        self._watch(fd, events)
        key = self._by_fd[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        old = self._map[fileobj]
        if events != old.events:
            self._watch(old.fd, events)
        key = self._by_fd[old.fd] = old._replace(events=events, data=data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._map[fileobj]
        self.check(lib.pl_watch(self.ptr, key.fd, 0))
        del self._by_fd[key.fd]
        return key

    def select(self, timeout: float | None = None) -> Any:
        dispatch = self.dispatch
        if dispatch.unfinished:
            return 0
        count = lib.pl_loop_tick(self.ptr, _timeout_ns(timeout))
        if count < 0:
            self.check(count)
        dispatch.begin(count)
        return count

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map[fileobj]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._map

    def close(self) -> None:
        if self.ptr == ffi.NULL:
            return
        try:
            self.dispatch.close()
        finally:
            ptr, self.ptr = self.ptr, ffi.NULL
            self._by_fd.clear()
            check(lib.pl_loop_free(ptr))


class _WakeupFd:
    """What asyncio's signal code asks for its fd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class Loop(Streams, asyncio.SelectorEventLoop):
    """An asyncio event loop whose waiting, and whose native connections, are pyloop's C core.

    Args:
        backend: "auto" (starts on select, moves to epoll or poll when it must), "select",
            "poll" or "epoll". PYLOOP_BACKEND in the environment replaces "auto".

    Raises:
        ValueError: an unknown backend.
    """

    _selector: CoreSelector
    _csock: Any

    def __init__(self, backend: str = "auto") -> None:
        self._closed = True  # for __del__, should the next line raise
        self._core = CoreSelector(backend)
        self._wake_lock = threading.RLock()  # a signal handler may come in between
        self._counters: Any = ffi.new("struct pl_loop_counters *")
        try:
            self._core.check(lib.pl_loop_count_in(self._core.ptr, self._counters))
            super().__init__(self._core)
        except BaseException:
            self._core.close()
            raise
        self._groups = Groups(self._core.ptr)
        self._acceptors: dict[int, Acceptor] = {}
        _loops.add(self)
        dispatch = self._core.dispatch
        dispatch._ready = self._fd_ready
        dispatch.on_signal = self._signal_came
        dispatch.on_bad_fd = self._fd_vanished

    @property
    def backend(self) -> str:
        """The kernel interface in use now: "select", "poll" or "epoll"."""
        with self._wake_lock:  # so that close() in another thread does not free what is used here
            return _NAMES[lib.pl_loop_backend(self._open_core())]

    def stats(self) -> LoopStats:
        """Return what the loop has done so far."""
        return loop_stats(self.backend, self._counters)

    def _count_in(self, page: Page, cell: int) -> None:
        """Count in a cell of a page from now on, until the loop is closed."""
        counters = ffi.addressof(page.cell(cell), "loop")
        self._core.check(lib.pl_loop_count_in(self._open_core(), counters))
        self._page, self._counters = page, counters  # and the former ones may go

    def _open_core(self) -> Any:
        self._check_closed()  # type: ignore[attr-defined]
        return self._core.ptr

    # ---- running ----

    def run_forever(self) -> None:
        self._check_closed()  # type: ignore[attr-defined]
        self._check_running()  # type: ignore[attr-defined]
        self._core.check(lib.pl_loop_enter(self._core.ptr))
        in_main = threading.current_thread() is threading.main_thread()
        previous = self._own_wakeup_fd() if in_main else -1
        try:
            super().run_forever()
        finally:
            if self._core.ptr != ffi.NULL:  # else a forked child has closed it
                self._flush()  # write(); loop.stop() sends
                lib.pl_loop_leave(self._core.ptr)
                if in_main:
                    self._restore_wakeup_fd(previous)

    def _flush(self) -> None:
        lib.pl_loop_flush(self._core.ptr)

    def _own_wakeup_fd(self) -> int:
        fd = lib.pl_loop_signal_fd(self._core.ptr)
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)

    def _restore_wakeup_fd(self, previous: int) -> None:
        """Give back what was there, or stay while handlers wait for signals between two runs."""
        ours = lib.pl_loop_signal_fd(self._core.ptr)
        if previous in (-1, ours):
            previous = ours if self._signal_handlers else -1  # type: ignore[attr-defined]
        signal.set_wakeup_fd(previous, warn_on_full_buffer=previous != ours)

    def remove_signal_handler(self, sig: int) -> bool:
        removed = super().remove_signal_handler(sig)
        if removed and self.is_running():
            self._own_wakeup_fd()  # the stdlib switches it off with the last handler
        return removed

    def _process_events(self, event_list: Any) -> None:
        self._core.dispatch.walk()

    def _fd_ready(self, fd: int, mask: int) -> None:
        key = self._core._by_fd.get(fd)
        if key is None:
            return
        reader, writer = key.data
        if mask & lib.PL_READ and reader is not None:
            if reader._cancelled:
                self._remove_reader(fd)  # type: ignore[attr-defined]
            else:
                self._add_callback(reader)  # type: ignore[attr-defined]
        if mask & lib.PL_WRITE and writer is not None:
            if writer._cancelled:
                self._remove_writer(fd)  # type: ignore[attr-defined]
            else:
                self._add_callback(writer)  # type: ignore[attr-defined]

    def _fd_vanished(self, fd: int) -> None:
        self._core._by_fd.pop(fd, None)

    # ---- waking ----

    def _make_self_pipe(self) -> None:
        self._ssock = None
        self._csock = _WakeupFd(lib.pl_loop_signal_fd(self._core.ptr))

    def _close_self_pipe(self) -> None:
        self._csock = None

    def _write_to_self(self) -> None:
        with self._wake_lock:  # so that close() in another thread does not free what is used here
            if self._core.ptr != ffi.NULL:
                lib.pl_loop_wake(self._core.ptr)

    def _signal_came(self, number: int) -> None:
        self._handle_signal(number)  # type: ignore[attr-defined]

    def close(self) -> None:
        if not self._closed and is_foreign(self._core.ptr):
            self._thread_id = None  # the thread that ran it stayed in the parent
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        with self._wake_lock:
            super().close()


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: another thread of the parent may have held them."""
    for loop in _loops:
        loop._wake_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


def new_event_loop(backend: str = "auto") -> Loop:
    """Return a new Loop: the `loop_factory` for asyncio.Runner and its kin."""
    return Loop(backend)


def running_loop(what: str) -> Loop:
    """Return the running pyloop.Loop, or say how to get one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if isinstance(loop, Loop):
        return loop
    got = "no loop is running" if loop is None else f"this is {type(loop).__name__}"
    raise RuntimeError(f"{what} needs a running pyloop.Loop ({got}): use pyloop.run()")
