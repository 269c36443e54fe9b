"""Find the page of a pyloop server that runs on this machine: by a pid, or by where it serves.

    address --/proc/net--> inode of the listening socket --/proc/PID/fd--> pid
    pid     --/proc/PID/fd--> the memfd "pyloop-stats" --> Page

Any program of this user can make a memfd of that name: what is found here is only well-formed, and
what lies in it may be nonsense. Source: proc(5), memfd_create(2).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pyloop.address import parse_address
from pyloop.errors import PyloopError
from pyloop.page import NAME, Page

__all__ = ["Found", "NotFoundError", "find"]

PAGE_LIMIT = 16 << 20
"""Bytes of the largest page that is looked at."""

_LINK = f"/memfd:{NAME} (deleted)"
_TCP_LISTEN = "0A"
_UNIX_LISTENING = 0x10000  # __SO_ACCEPTCON
_PARENTS = 4  # levels up from a worker to the process that has the page open


class NotFoundError(PyloopError, LookupError):
    """There is no pyloop server to look at; the message says what there is instead."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page, and the process that has it open."""

    pid: int
    page: Page
    _link: str
    _identity: tuple[int, int]

    def ended(self) -> bool:
        """Has that process ended, or let go of the page?"""
        return _identity(self._link) != self._identity

    def last_words(self) -> str:
        """Say that there is nothing more to see."""
        return f"the server has ended (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class _Socket:
    """A listening socket; `uid` is -1 where the kernel does not tell."""

    inode: int
    uid: int
    path: str = ""


def find(target: str) -> Found:
    """Return the page of the server that `target` names.

    Args:
        target: the pid of any of its processes, or an address that it serves: host:port, :port,
            [::1]:port, a Unix path with a slash, or @name.

    Raises:
        NotFoundError: naming `target`, and what is there.
        ValueError: it is neither pid nor address.
    """
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        raise NotFoundError("servers are found in /proc, which only Linux has")
    if re.fullmatch(r"[0-9]+", target):
        return _of_number(int(target))
    return _of_address(target)


def _of_number(pid: int) -> Found:
    hint = f" (a port is written :{pid})" if pid <= 65535 else ""
    if not os.path.isdir(f"/proc/{pid}"):
        raise NotFoundError(f"no process has the pid {pid}{hint}")
    found = _of_process(pid)
    if found is None:
        raise NotFoundError(f"{_described(pid)} is not a pyloop server{hint}")
    return found


def _of_address(target: str) -> Found:
    address = parse_address("TARGET", target, host="")
    sockets = _unix_sockets(address) if isinstance(address, str) else _tcp_sockets(*address)
    if not sockets:
        raise NotFoundError(f"nothing listens on {target}")
    holders = _holders(sockets)
    if isinstance(address, str):
        holders = [(pid, one) for pid, one in holders if _is_same_path(pid, one.path, address)]
    pids = [pid for pid, _ in holders]
    if not pids:
        raise NotFoundError(f"who listens on {target} belongs to another user{_uids(sockets)}")
    # The workers of one server have one page.
    pages = {one._identity: one for one in map(_of_process, pids) if one is not None}
    if not pages:
        raise NotFoundError(f"{_described(pids[0])}, who listens on {target}, is no pyloop server")
    if len(pages) > 1:
        several = ", ".join(sorted(str(one.pid) for one in pages.values()))
        raise NotFoundError(f"several servers listen on {target}: choose one of the pids {several}")
    return next(iter(pages.values()))


def _uids(sockets: list[_Socket]) -> str:
    uids = sorted({one.uid for one in sockets if one.uid >= 0})
    return f" (uid {', '.join(map(str, uids))})" if uids else ""


def _described(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read(64).strip().decode("utf-8", "replace")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name!r})"


# ---- from a pid to the page ----


def _of_process(pid: int) -> Found | None:
    """Return the page of a process, or of the nearest parent in whose page it counts."""
    try:
        found = _open_in(pid)
    except PermissionError:
        raise NotFoundError(f"{_described(pid)} belongs to another user") from None
    for parent in () if found else _parents(pid):
        with contextlib.suppress(PermissionError):
            candidate = _open_in(parent)
            if candidate is not None and pid in _pids(candidate.page):
                found = candidate
                break
    if found is None or found.pid == found.page.header.pid:
        return found
    with contextlib.suppress(PermissionError):  # rather the parent's: it outlives its workers
        candidate = _open_in(found.page.header.pid)
        if candidate is not None and candidate._identity == found._identity:
            return candidate
    return found


def _pids(page: Page) -> set[int]:
    return {page.cell(number).pid for number in page.used()}


def _parents(pid: int) -> Iterator[int]:
    for _ in range(_PARENTS):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read(4096).rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return
        if pid <= 1:
            return
        yield pid


def _open_in(pid: int) -> Found | None:
    """Map the page that a process has open, for reading.

    Raises:
        PermissionError: it belongs to another user.
        NotFoundError: there is one, of another version or none at all.
    """
    for link, name in _links(pid):
        if name != _LINK:
            continue
        try:
            fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue  # it was closed meanwhile
        try:
            return _attach(pid, link, fd)
        finally:
            os.close(fd)
    return None


def _attach(pid: int, link: str, fd: int) -> Found:
    status = os.fstat(fd)
    try:
        if not stat.S_ISREG(status.st_mode) or status.st_size > PAGE_LIMIT:
            raise ValueError(f"{status.st_size} bytes, more than {PAGE_LIMIT}")
        page = Page.attach(fd)
    except (ValueError, OSError) as exc:
        raise NotFoundError(
            f"{_described(pid)} has no page of counters that this version of pyloop reads: {exc}"
        ) from None
    page.fd = -1  # ours is closed; the mapping stays
    return Found(pid, page, link, (status.st_dev, status.st_ino))


def _links(pid: int) -> Iterator[tuple[str, str]]:
    """Yield the path in /proc and the meaning of each fd of a process, if it lives."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return
    for number in sorted(numbers, key=int):
        with contextlib.suppress(OSError):
            yield f"{folder}/{number}", os.readlink(f"{folder}/{number}")


def _identity(link: str) -> tuple[int, int] | None:
    try:
        status = os.stat(link)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# ---- from an address to pids ----


def _holders(sockets: list[_Socket]) -> list[tuple[int, _Socket]]:
    """Return the processes that have one of the sockets open, by pid."""
    wanted = {f"socket:[{one.inode}]": one for one in sockets}
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(PermissionError):
            found += [(pid, wanted[name]) for _, name in _links(pid) if name in wanted]
    return found


def _rows(table: str) -> Iterator[list[str]]:
    try:
        with open(f"/proc/net/{table}", encoding="utf-8", errors="surrogateescape") as file:
            next(file, None)
            for line in file:
                yield line.rstrip("\n").split(maxsplit=7 if table == "unix" else -1)
    except FileNotFoundError:
        pass  # a kernel without IPv6


def _tcp_sockets(host: str, port: int) -> list[_Socket]:
    hosts = _addresses(host, port)
    found = []
    for table in ("tcp", "tcp6"):
        for row in _rows(table):
            address, _, number = row[1].partition(":")
            if row[3] != _TCP_LISTEN or int(number, 16) != port:
                continue
            if hosts is None or _ip(address) in hosts:
                found.append(_Socket(int(row[9]), int(row[7])))
    return found


def _addresses(host: str, port: int) -> set[bytes] | None:
    """Return what a listener that serves `host` may be bound to; None for anything."""
    if not host:
        return None
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise NotFoundError(f"{host}: {exc.strerror or exc}") from None
    packed = {socket.inet_pton(family, addr[0].split("%")[0]) for family, *_, addr in infos}  # type: ignore[union-attr]
    return packed | {bytes(16)} | {bytes(len(one)) for one in packed}


def _ip(text: str) -> bytes:
    """Return an address of /proc/net/tcp: 32-bit words, each in the machine's own order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return struct.pack(f"={len(words)}I", *words)


def _unix_sockets(path: str) -> list[_Socket]:
    """Return listeners of that abstract name, or of paths with that last part."""
    wanted = "@" + path[1:].replace("\0", "@") if path[0] == "\0" else os.path.basename(path)
    found = []
    for row in _rows("unix"):
        flags = row[3] if len(row) == 8 else ""
        if not re.fullmatch("[0-9A-F]{8}", flags) or not row[6].isdigit():
            continue  # nameless, or a part of a name with a line end in it
        if not int(flags, 16) & _UNIX_LISTENING:
            continue
        bound = row[7] if row[7][0] == "@" else os.path.basename(row[7])
        if bound == wanted and (path[0] == "\0") == (row[7][0] == "@"):
            found.append(_Socket(int(row[6]), -1, row[7]))
    return found


def _is_same_path(pid: int, bound: str, path: str) -> bool:
    """Does a process that bound `bound`, maybe relative to where it is, mean `path`?"""
    if path[0] == "\0":
        return True
    try:
        return os.path.samefile(os.path.join(f"/proc/{pid}/cwd", bound), path)
    except OSError:
        return False
