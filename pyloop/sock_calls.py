"""loop.sock_recv and its kin, add_reader and its kin, and addresses: what a loop does with sockets
that are not its own.

A call tries the system call first. Only when there is nothing to do yet it waits, and then tries
again: what it got it returns without an await in between, so a cancelled task never has a message
that is lost with it. Calls that wait for the same take turns, in the order in which they came.
watches.py says what becomes of the interest.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from asyncio.base_events import _check_ssl_socket  # type: ignore[attr-defined]
from collections.abc import Callable, Coroutine
from typing import Any

from pyloop.watches import READ, WRITE, Watches, wake

__all__ = ["SocketCalls"]

_Socket = socket.socket
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_Later = (BlockingIOError, InterruptedError)


class SocketCalls(asyncio.SelectorEventLoop):
    """The part of a Loop that watches fds for its users."""

    _watches: Watches
    _debug: bool
    _check_closed: Callable[[], None]
    _add_callback: Callable[[asyncio.Handle], None]
    _ensure_fd_no_transport: Callable[[Any], None]
    _ensure_resolved: Callable[..., Coroutine[Any, Any, list[Any]]]

    # ---- what the core says ----

    def _fd_ready(self, fd: int, mask: int) -> None:
        watch = self._watches.by_fd.get(fd)
        if watch is None:
            return
        if mask & READ:
            handle = watch.reader
            if handle is not None:
                self._run_callback(fd, handle, self._remove_reader)
            if not wake(watch.receivers) and handle is None:
                self._watches.narrow(watch, READ)
        if mask & WRITE:
            handle = watch.writer
            if handle is not None:
                self._run_callback(fd, handle, self._remove_writer)
            if not wake(watch.senders) and handle is None:
                self._watches.narrow(watch, WRITE)

    def _run_callback(self, fd: int, handle: asyncio.Handle, remove: Callable[[int], bool]) -> None:
        if handle._cancelled:
            remove(fd)
        else:
            self._add_callback(handle)

    def _fd_vanished(self, fd: int) -> bool:
        return self._watches.vanished(fd)

    # ---- callbacks; add_reader and its kin are the stdlib's, and come here ----

    def _add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, None)
        watch = self._watches.add(fd, READ)
        former, watch.reader = watch.reader, handle
        if former is not None:
            former.cancel()
        return handle

    def _add_writer(self, fd: Any, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, None)
        watch = self._watches.add(fd, WRITE)
        former, watch.writer = watch.writer, handle
        if former is not None:
            former.cancel()
        return handle

    def _remove_reader(self, fd: Any) -> bool:
        watch = None if self.is_closed() else self._watches.find(fd)
        if watch is None:
            return False
        handle, watch.reader = watch.reader, None
        if not watch.receivers:
            try:
                self._watches.narrow(watch, READ)
            except RuntimeError:  # this is another thread
                watch.reader = handle
                raise
        if handle is None:
            return False
        handle.cancel()
        return True

    def _remove_writer(self, fd: Any) -> bool:
        watch = None if self.is_closed() else self._watches.find(fd)
        if watch is None:
            return False
        handle, watch.writer = watch.writer, None
        if not watch.senders:
            try:
                self._watches.narrow(watch, WRITE)
            except RuntimeError:  # this is another thread
                watch.writer = handle
                raise
        if handle is None:
            return False
        handle.cancel()
        return True

    # ---- calls that wait ----

    def _check_socket(self, sock: Any) -> None:
        _check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    def _until_ready(self, sock: Any, event: int) -> asyncio.Future[None]:
        """A future that is done when `sock` is ready, or has been closed."""
        watch = self._watches.by_fd.get(sock.fileno())
        if watch is None or watch.sock() is not sock:
            self._check_closed()
            self._ensure_fd_no_transport(sock)
            watch = self._watches.claim(sock, event)
        elif not watch.events & event:
            self._watches.widen(watch, event)
        waiter: asyncio.Future[None] = asyncio.Future(loop=self)
        queue = watch.receivers if event == READ else watch.senders
        if queue:
            queue[:] = [other for other in queue if not other.done()]
        queue.append(waiter)
        return waiter

    async def sock_recv(self, sock: Any, nbytes: int) -> bytes:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        while True:
            try:
                data: bytes = sock.recv(nbytes)
            except _Later:
                await self._until_ready(sock, READ)
                continue
            if not data:  # the end: it will be closed, and had better not be watched then
                self._watches.release(sock.fileno(), READ)
            return data

    async def sock_recv_into(self, sock: Any, buf: Any) -> int:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        while True:
            try:
                count: int = sock.recv_into(buf)
            except _Later:
                await self._until_ready(sock, READ)
                continue
            if not count:
                self._watches.release(sock.fileno(), READ)
            return count

    async def sock_recvfrom(self, sock: Any, bufsize: int) -> tuple[bytes, Any]:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        while True:
            try:
                return sock.recvfrom(bufsize)  # type: ignore[no-any-return]
            except _Later:
                await self._until_ready(sock, READ)

    async def sock_recvfrom_into(self, sock: Any, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        if not nbytes:
            nbytes = len(buf)
        while True:
            try:
                return sock.recvfrom_into(buf, nbytes)  # type: ignore[no-any-return]
            except _Later:
                await self._until_ready(sock, READ)

    async def sock_accept(self, sock: Any) -> tuple[socket.socket, Any]:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        while True:
            try:
                conn, address = sock.accept()
            except _Later:
                await self._until_ready(sock, READ)
                continue
            conn.setblocking(False)
            return conn, address

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        try:
            sent = sock.send(data)
        except _Later:
            sent = 0
        if type(data) is bytes and sent == len(data):
            return
        with memoryview(data) as items, items.cast("B") as view:
            while sent < len(view):
                await self._until_ready(sock, WRITE)
                try:
                    sent += sock.send(view[sent:])
                except _Later:
                    pass

    async def sock_sendto(self, sock: Any, data: Any, address: Any) -> int:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        while True:
            try:
                return sock.sendto(data, address)  # type: ignore[no-any-return]
            except _Later:
                await self._until_ready(sock, WRITE)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        if self._debug or type(sock) is not _Socket:
            self._check_socket(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            infos = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = infos[0][4]
        try:
            sock.connect(address)
            return
        except _Later as exc:
            if exc.errno == errno.EAGAIN:  # a full backlog of AF_UNIX: nothing is under way
                raise
        fd = sock.fileno()
        try:
            await self._until_ready(sock, WRITE)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, f"Connect call failed {address}")
        finally:
            self._watches.release(fd, WRITE)  # what is connected is writable: nobody waits for that

    # ---- addresses ----

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As asyncio's, but addresses in digits are not sent through a thread."""
        try:
            return socket.getaddrinfo(host, port, family, type, proto, flags | _NUMERIC)
        except OSError:  # a name, or it cannot be
            return await super().getaddrinfo(
                host, port, family=family, type=type, proto=proto, flags=flags
            )
