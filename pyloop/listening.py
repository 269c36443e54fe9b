"""Make the sockets that a server listens on: TCP, Unix paths, abstract names, or one handed in."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyloop.address import show_address

__all__ = ["Listening", "Place", "Sharing", "check_socket", "stream_socket"]


@dataclass(frozen=True)
class Place:
    """Where a server listens: TCP hosts and port, or a Unix path, or a bound socket."""

    hosts: tuple[str, ...]
    port: int
    path: str | None
    sock: socket.socket | None
    backlog: int

    def __str__(self) -> str:
        if self.sock is not None:
            return show_address(self.sock.getsockname())
        if self.path is not None:
            return self.path.replace("\0", "@", 1)
        return ", ".join(show_address((host, self.port)) for host in self.hosts)


class Sharing(enum.Enum):
    """May other sockets be bound to the same port?"""

    NO = "no"
    FOUND = "once this one is"
    """Bound alone, so that a port in use is an error, and opened to others after that."""
    JOIN = "as others are"


def stream_socket(family: int, proto: int = 0) -> socket.socket:
    """Make a stream socket whose fd is above those of stdin, stdout and stderr.

    A process that was started without them must not find its listener where it looks for input.
    """
    sock = socket.socket(family, socket.SOCK_STREAM, proto)
    if sock.fileno() > 2:
        return sock
    try:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    finally:
        sock.close()


def _failed(exc: OSError, what: str) -> OSError:
    return OSError(exc.errno, f"cannot listen on {what}: {exc.strerror or exc}")


def _listen_tcp(info: Any, port: int, backlog: int, sharing: Sharing) -> socket.socket:
    family, _, proto, _, address = info
    address = (address[0], port, *address[2:])
    sock = stream_socket(family, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sharing is Sharing.JOIN:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if sharing is Sharing.FOUND:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        raise _failed(exc, show_address(address)) from None
    return sock


def _drop_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; leave everything else alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    probe = stream_socket(socket.AF_UNIX)
    try:
        probe.setblocking(False)  # a full backlog is somebody listening, too
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        pass
    finally:
        probe.close()


class Listening:
    """The listening sockets of one server, and how to give them up again.

    Attributes:
        sockets: socket objects; the core only borrows their fds.
    """

    def __init__(self, sockets: tuple[socket.socket, ...] = ()) -> None:
        self.sockets = sockets
        self._made: tuple[str, int, int, int] | None = None

    @property
    def port(self) -> int | None:
        """The TCP port of the first socket, or None."""
        for sock in self.sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                return int(sock.getsockname()[1])
        return None

    def describe(self) -> str:
        """Say where it listens, for people."""
        return ", ".join(show_address(sock.getsockname()) for sock in self.sockets)

    def open(self, place: Place, infos: Sequence[Any], sharing: Sharing = Sharing.NO) -> None:
        """Listen on a place, of which `infos` is getaddrinfo's answer if it is TCP.

        Raises:
            OSError: with the address that failed; nothing stays open.
        """
        if place.sock is not None:
            self.open_socket(place.sock, place.backlog)
        elif place.path is not None:
            self.open_unix(place.path, place.backlog)
        else:
            self.open_tcp(infos, place.port, place.backlog, sharing)

    def open_tcp(
        self, infos: Sequence[Any], port: int, backlog: int, sharing: Sharing = Sharing.NO
    ) -> None:
        """Listen on each address of getaddrinfo's answer; port 0 is chosen once, for all.

        Raises:
            OSError: with the address and port that failed; nothing stays open.

        Source: socket(7), SO_REUSEPORT.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for info in dict.fromkeys(infos):
                sock = _listen_tcp(info, port, backlog, sharing)
                self.sockets += (sock,)
                port = sock.getsockname()[1]
            undo.pop_all()

    def open_unix(self, path: str, backlog: int) -> None:
        """Listen on a path, or on an abstract name that starts with "\\0".

        A socket file on which nobody listens is replaced.

        Source: unix(7).
        """
        abstract = path[0] == "\0"
        if not abstract:
            _drop_stale(path)
        sock = stream_socket(socket.AF_UNIX)
        try:
            sock.bind(path)
            sock.listen(backlog)
        except OSError as exc:
            sock.close()
            raise _failed(exc, path.replace("\0", "@", 1)) from None
        if not abstract:
            status = os.stat(path)
            self._made = path, status.st_dev, status.st_ino, os.getpid()
        self.sockets = (sock,)

    def open_socket(self, sock: socket.socket, backlog: int) -> None:
        """Listen on a bound stream socket of the caller's; closing it is ours from here on."""
        try:
            sock.listen(backlog)
        except OSError as exc:
            raise _failed(exc, repr(sock)) from None
        self.sockets = (sock,)

    def close(self) -> None:
        """Close the sockets, and unlink the socket file if this process made it."""
        if self._made is not None:
            path, device, inode, pid = self._made
            self._made = None
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if (status.st_dev, status.st_ino, os.getpid()) == (device, inode, pid):
                    os.unlink(path)
        for sock in self.sockets:
            sock.close()
        self.sockets = ()


def check_socket(sock: Any) -> socket.socket:
    """Return `sock` if a server can listen on it.

    Raises:
        TypeError, ValueError: it is not a bound stream socket.
    """
    if not isinstance(sock, socket.socket):
        raise TypeError(f"sock: expected a socket.socket, got {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"sock: expected a stream socket, got {sock!r}")
    try:
        bound = sock.getsockname()
    except OSError as exc:
        raise ValueError(f"sock: expected an open, bound socket, got {sock!r}: {exc}") from None
    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if (bound[1] == 0) if inet else not bound:
        raise ValueError(f"sock: expected a bound socket, got {sock!r}")
    return sock
