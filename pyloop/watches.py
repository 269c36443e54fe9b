"""Who watches an fd: callbacks, calls that wait for a socket, or nobody any more.

A call that waits (`loop.sock_recv` and its kin) leaves its socket watched when it goes, because the
next one follows soon: a conversation costs no change of interest. The interest ends when the fd is
ready and nobody waits. So an fd may be closed while it is still watched, and its number be given
to another file. Whoever begins to watch an fd therefore says what for: a call that waits shows its
socket, and one that has not been seen under this number is watched anew; a callback, which has but
a number, always is; others call `vacate` first.

Left out: a file that dup2 puts under the number of an open socket between two calls is not noticed.
"""

from __future__ import annotations

import asyncio
import selectors
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyloop.core import lib
from pyloop.protocol import log

__all__ = ["READ", "WRITE", "Watch", "Watches", "wake"]

READ: int = lib.PL_READ
WRITE: int = lib.PL_WRITE


def _fd_of(fileobj: Any) -> int:
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if not isinstance(fd, int) or fd < 0:
        raise ValueError(f"invalid file descriptor: {fd!r}")
    return fd


def _nothing() -> None:
    return None


def _reference(sock: Any) -> Callable[[], Any]:
    """A weak reference: who forgets a socket wants it closed. Few kinds of object take none."""
    try:
        return weakref.ref(sock)
    except TypeError:
        return lambda: sock


def wake(waiters: list[asyncio.Future[None]]) -> bool:
    """Wake who waits longest: the others' turn comes when the fd is ready still. False: nobody."""
    while waiters:
        waiter = waiters.pop(0)
        if not waiter.done():
            waiter.set_result(None)
            return True
    return False


class Watch:
    """An fd, what is wanted of it, and by whom."""

    __slots__ = ("events", "fd", "fileobj", "reader", "receivers", "senders", "sock", "writer")

    def __init__(self, fd: int, fileobj: Any) -> None:
        self.fd = fd
        self.fileobj = fileobj
        self.events = 0
        self.reader: asyncio.Handle | None = None
        self.writer: asyncio.Handle | None = None
        self.sock: Callable[[], Any] = _nothing  # the one whose calls wait, or have waited
        self.receivers: list[asyncio.Future[None]] = []
        self.senders: list[asyncio.Future[None]] = []

    def has_callbacks(self) -> bool:
        return self.reader is not None or self.writer is not None

    def is_closed(self) -> bool:
        """Has the socket that all of this is about been closed?"""
        sock = self.sock()
        return not self.has_callbacks() and (sock is None or sock.fileno() != self.fd)

    def wake_all(self) -> None:
        """Let everybody find out by a call what has become of the socket."""
        while wake(self.receivers) or wake(self.senders):
            pass


class Watches(Mapping[Any, selectors.SelectorKey]):
    """The watched fds of a loop; to others a selector's map, by fd or by what has one.

    Args:
        want: sets what the core wants of an fd, 0 for nothing. False: the number is a connection's,
            or a server's. It raises what `add` does.
        owner_of: names that connection.
    """

    def __init__(self, want: Callable[[int, int], bool], owner_of: Callable[[int], object]) -> None:
        self.by_fd: dict[int, Watch] = {}
        self._want = want
        self._owner_of = owner_of

    def find(self, fileobj: Any) -> Watch | None:
        """The watch of an fd, or of a file, which may be closed by now."""
        try:
            return self.by_fd.get(_fd_of(fileobj))
        except ValueError:  # closed meanwhile: its number is -1
            for watch in self.by_fd.values():
                if watch.fileobj is fileobj:
                    return watch
            return None

    def _change(self, watch: Watch, events: int) -> None:
        fd = watch.fd
        if not self._want(fd, events):
            self.by_fd.pop(fd, None)  # closed before, if this is about less than it was
            watch.wake_all()
            if events & ~watch.events:
                owner = self._owner_of(fd)
                raise RuntimeError(f"File descriptor {fd} is used by transport {owner!r}")
        elif events:
            self.by_fd[fd] = watch
        else:
            self.by_fd.pop(fd, None)
        watch.events = events

    def _renew(self, watch: Watch, event: int) -> None:
        """Want `event` too, whether or not the number is another file's by now."""
        events = watch.events | event
        if watch.events:
            self._change(watch, 0)
        try:
            self._change(watch, events)
        except BaseException:
            watch.wake_all()  # they are not watched for any more
            raise

    def _take(self, fd: int, fileobj: Any, event: int) -> Watch:
        """Watch an fd of which nothing else is known."""
        watch = self.by_fd.get(fd)
        if watch is not None and watch.is_closed():
            self.vacate(fd)
            watch = None
        if watch is None:
            watch = Watch(fd, fileobj)
        self._renew(watch, event)
        return watch

    def add(self, fileobj: Any, event: int) -> Watch:
        """Watch an fd for a callback, which the caller enters.

        Raises:
            ValueError: not a valid fd, or too large a number for select.
            RuntimeError: a connection or a server has it; the loop is another thread's.
            OSError: EBADF, or what epoll_ctl says.
        """
        fd = _fd_of(fileobj)
        watch = self.by_fd.get(fd)
        if watch is None or not watch.has_callbacks():
            watch = self._take(fd, fileobj, event)
        elif not watch.events & event:
            self.widen(watch, event)
        return watch

    def claim(self, sock: Any, event: int) -> Watch:
        """Watch a socket that is not the one last seen under its number. Raises as `add` does."""
        fd = _fd_of(sock)
        watch = self._take(fd, fd, event)
        watch.sock = _reference(sock)
        return watch

    def widen(self, watch: Watch, event: int) -> None:
        """Want `event` too."""
        self._change(watch, watch.events | event)

    def narrow(self, watch: Watch, event: int) -> None:
        """Want `event` no more. Never fails: an fd that was closed is forgotten."""
        try:
            self._change(watch, watch.events & ~event)
        except OSError:
            self._change(watch, 0)
            watch.wake_all()
            if watch.has_callbacks():
                log.error("fd %d was closed while it was watched; its watcher is dropped", watch.fd)

    def release(self, fd: int, event: int) -> None:
        """Want `event` no more, unless a callback or another call does."""
        watch = self.by_fd.get(fd)
        if watch is None or not watch.events & event:
            return
        handle, waiters = (
            (watch.reader, watch.receivers) if event == READ else (watch.writer, watch.senders)
        )
        if handle is None and all(waiter.done() for waiter in waiters):
            self.narrow(watch, event)

    def vacate(self, fd: int) -> None:
        """Leave an fd to an owner that is about to watch it, unless a callback does."""
        watch = self.by_fd.get(fd)
        if watch is not None and not watch.has_callbacks():
            self._change(watch, 0)
            watch.wake_all()

    def vanished(self, fd: int) -> bool:
        """The core has dropped an fd because it was closed. True: a callback was lost with it."""
        watch = self.by_fd.pop(fd, None)
        if watch is None:
            return False
        watch.wake_all()
        return watch.has_callbacks()

    # ---- a selector's map ----

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        watch = self.find(fileobj)
        if watch is None:
            raise KeyError(f"{fileobj!r} is not registered")
        data = (watch.reader, watch.writer)
        return selectors.SelectorKey(watch.fileobj, watch.fd, watch.events, data)

    def __len__(self) -> int:
        return len(self.by_fd)

    def __iter__(self) -> Iterator[int]:
        return iter(self.by_fd)
