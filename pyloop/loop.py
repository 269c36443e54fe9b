"""pyloop.Loop: asyncio's selector event loop with the core as its selector.

All of asyncio works on it. What is replaced are the seams through which the stdlib waits and
wakes: here the selector, the self-pipe and `_write_to_self`; in `running.py` the turn and timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import selectors
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pyloop.blocked import BlockWatch, check_threshold
from pyloop.core import beyond_select, check, failure, ffi, is_foreign, lib
from pyloop.datagram_calls import DatagramCalls
from pyloop.dispatch import Dispatch
from pyloop.fast import own
from pyloop.groups import Groups
from pyloop.page import Page
from pyloop.pipes import Pipes
from pyloop.running import Running, Turn, wait_ns
from pyloop.sock_calls import SocketCalls
from pyloop.streams import Acceptor, Streams
from pyloop.subprocesses import Subprocesses
from pyloop.tls import encrypt_now
from pyloop.watches import Watches

if TYPE_CHECKING:
    from pyloop.stats import LoopStats

__all__ = [
    "BACKENDS",
    "BACKEND_NAMES",
    "CoreSelector",
    "Loop",
    "new_event_loop",
    "running_loop",
]

BACKENDS: dict[str, int] = {
    "auto": lib.PL_AUTO,
    "select": lib.PL_SELECT,
    "poll": lib.PL_POLL,
    "epoll": lib.PL_EPOLL,
}
BACKEND_NAMES = {number: name for name, number in BACKENDS.items()}


def _choose_backend(backend: str) -> int:
    """Return the core's number for a name; PYLOOP_BACKEND stands in for "auto"."""
    source = "backend"
    if backend == "auto" and (named := os.environ.get("PYLOOP_BACKEND")):
        source, backend = "PYLOOP_BACKEND", named
    if backend in BACKENDS:
        return BACKENDS[backend]
    known = ", ".join(BACKENDS)
    if backend == "io_uring":
        raise ValueError(f"{source}='io_uring': not in this build; expected one of {known}")
    raise ValueError(f"{source}={backend!r}: expected one of {known}")


class CoreSelector:
    """The core behind what asyncio expects of a selector.

    The loop's own turn does without `select`. It is for what brings a turn of its own: it makes
    one tick and says how many events the batch has, and `Loop._process_events` walks them. What is
    watched is in `watches`, and SocketCalls enters it there.
    """

    def __init__(self, backend: str) -> None:
        error = ffi.new("int *")
        self.ptr = lib.pl_loop_new(_choose_backend(backend), error)
        if self.ptr == ffi.NULL:
            raise failure(error[0])
        self.dispatch = Dispatch(self.ptr, self._ignore)
        self.watches = Watches(self._watch, self.dispatch.owner_of)
        self.may_wait: Callable[[], bool] = lambda: True

    @staticmethod
    def _ignore(fd: int, mask: int) -> None:
        pass

    def check(self, code: int) -> int:
        """As core.check, for this loop."""
        return check(code, self.ptr)

    def _watch(self, fd: int, events: int) -> bool:
        code = lib.pl_watch(self.ptr, fd, events)
        if code < 0 and code != -errno.EEXIST:
            self.check_fd(code, fd)
        return bool(code == 0)

    def check_fd(self, code: int, fd: int) -> None:
        """As check, for a call that begins to watch `fd`."""
        if code == -errno.ERANGE:
            raise ValueError(beyond_select(f"fd {fd}"))
        self.check(code)

    def select(self, timeout: float | None = None) -> Any:
        dispatch = self.dispatch
        if dispatch.unfinished:
            return 0
        wait = -1 if timeout is None else wait_ns(timeout)
        if not self.may_wait():
            wait = 0
        count = self.check(lib.pl_loop_tick(self.ptr, wait))
        dispatch.begin(count)
        return count

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self.watches[fileobj]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.watches

    def close(self) -> None:
        if self.ptr == ffi.NULL:
            return
        try:
            self.dispatch.close()
        finally:
            ptr, self.ptr = self.ptr, ffi.NULL
            self.watches.by_fd.clear()
            lib.pl_loop_leave(ptr)  # as in Loop._enter
            check(lib.pl_loop_free(ptr))


class _WakeupFd:
    """What asyncio's signal code asks for its fd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


@own
class Loop(Turn, SocketCalls, Streams, Pipes, DatagramCalls, Subprocesses, Running):
    """An asyncio event loop whose waiting, and whose native connections, are pyloop's C core.

    Args:
        backend: "auto" (starts on select, moves to epoll or poll when it must), "select",
            "poll" or "epoll". PYLOOP_BACKEND in the environment replaces "auto".
        block_threshold: seconds after which a callback that still runs is logged with its stack,
            by a thread that watches while the loop runs; None for no such thread.

    Raises:
        ValueError: an unknown backend, or a threshold that is not above 0.
    """

    _csock: Any

    def __init__(self, backend: str = "auto", block_threshold: float | None = None) -> None:
        self._closed = True  # for __del__, should the next lines raise
        self._block_watch: BlockWatch | None = None
        threshold = check_threshold(block_threshold)
        self._core = CoreSelector(backend)
        self._wake_lock = threading.RLock()  # a signal handler may come in between
        self._counters: Any = ffi.new("struct pl_loop_counters *")
        try:
            self._core.check(lib.pl_loop_count_in(self._core.ptr, self._counters))
            self._watches = self._core.watches
            self._use_core(self._core.ptr, self._core.dispatch)
            super().__init__(cast(Any, self._core))
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
        self._core.may_wait = self._may_wait
        self._watch_blocking(threshold)

    @property
    def backend(self) -> str:
        """The kernel interface in use now: "select", "poll" or "epoll"."""
        with self._wake_lock:  # so that close() in another thread does not free what is used here
            return BACKEND_NAMES[lib.pl_loop_backend(self._open_core())]

    def stats(self) -> LoopStats:
        """Return what the loop has done so far."""
        from pyloop.stats import loop_stats  # not before somebody asks: see __init__

        return loop_stats(self.backend, self._counters, self._ran)

    def _watch_blocking(self, threshold: float | None) -> None:
        """Log callbacks that run longer, from now on."""
        if threshold is not None:
            self._block_watch = BlockWatch(self, threshold)
            if self.is_running():
                self._block_watch.start()

    def _without_threads(self) -> contextlib.AbstractContextManager[None]:
        """Have no thread of the loop's own in a block that forks."""
        return self._block_watch.pause() if self._block_watch else contextlib.nullcontext()

    def _count_in(self, page: Page, cell: int) -> None:
        """Count in a cell of a page from now on, until the loop is closed."""
        counters = ffi.addressof(page.cell(cell), "loop")
        self._core.check(lib.pl_loop_count_in(self._open_core(), counters))
        self._page, self._counters = page, counters  # and the former ones may go
        self._core.dispatch.taken = counters.events

    def _open_core(self) -> Any:
        self._check_closed()
        return self._core.ptr

    # ---- running ----

    def run_forever(self) -> None:
        self._check_closed()
        self._check_running()  # type: ignore[attr-defined]
        in_main, previous = threading.current_thread() is threading.main_thread(), None
        try:
            self._enter()
            if in_main:
                previous = self._own_wakeup_fd()
            if self._block_watch is not None:
                self._block_watch.start()
            # Unless somebody has another idea of a turn.
            turn = getattr(Turn, "_run_once", None)
            self._many = type(self)._run_once is turn and "_run_once" not in vars(self)
            super().run_forever()
        finally:
            self._many = False
            if self._block_watch is not None:
                self._block_watch.stop()
            if self._core.ptr != ffi.NULL:  # else a forked child has closed it
                self._flush()  # write(); loop.stop() sends
                self._counters.callbacks += self._ran
                self._ran = 0
                lib.pl_loop_leave(self._core.ptr)
                if previous is not None:
                    self._restore_wakeup_fd(previous)

    def _enter(self) -> None:
        """Be the thread that runs the core."""
        lib.pl_loop_leave(self._core.ptr)  # Ctrl-C may have kept the last run from it
        self._core.check(lib.pl_loop_enter(self._core.ptr))
        self._core.dispatch.taken = self._counters.events  # whatever another kind of turn has lost

    def _flush(self) -> None:
        if self._ready and not is_foreign(self._core.ptr):
            encrypt_now(self._ready)
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
        former = None  # the stdlib switches off whosever fd it is with the last handler
        if not self.is_running() and sig in self._signal_handlers:  # type: ignore[attr-defined]
            former = self._own_wakeup_fd()
        removed = super().remove_signal_handler(sig)
        if former is not None:
            self._restore_wakeup_fd(former)
        elif removed:
            self._own_wakeup_fd()
        return removed

    def _remove_signal_handlers(self) -> None:
        """Before the core goes, whose fd they need. In another thread that is an error of close."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and not self._closed and not sys.is_finalizing():
            for number in tuple(self._signal_handlers):  # type: ignore[attr-defined]
                self.remove_signal_handler(number)

    def _process_events(self, event_list: Any) -> None:
        self._core.dispatch.walk()

    # ---- waking ----

    def _make_self_pipe(self) -> None:
        self._ssock = None
        self._csock = _WakeupFd(lib.pl_loop_signal_fd(self._core.ptr))

    def _close_self_pipe(self) -> None:
        self._csock = None

    def _write_to_self(self) -> None:
        if not self._waiting:
            return  # the loop looks at what there is to do before it waits
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
        self._remove_signal_handlers()
        with self._wake_lock:
            self._use_core(ffi.NULL, self._core.dispatch)
            super().close()


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: another thread of the parent may have held them."""
    for loop in _loops:
        loop._wake_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


def new_event_loop(backend: str = "auto", block_threshold: float | None = None) -> Loop:
    """Return a new Loop: the `loop_factory` for asyncio.Runner and its kin."""
    return Loop(backend, block_threshold)


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
