"""Socket addresses as Python writes them, out of what accept(2) gave."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import Any

__all__ = ["Address", "decode_sockaddr", "local_address", "resolve", "resolve_now", "show_address"]

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""(host, port), for IPv6 (host, port, flow, scope), or a Unix path (bytes when abstract)."""

_BSD = sys.platform == "darwin" or "bsd" in sys.platform


def decode_sockaddr(raw: bytes) -> Address:
    """Return the address in a struct sockaddr, as socket.accept would.

    Source: ip(7), ipv6(7), unix(7).
    """
    if len(raw) < 2:
        return ""
    family = raw[1] if _BSD else int.from_bytes(raw[:2], sys.byteorder)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, raw[4:8]), int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET6:
        port, flow, host = struct.unpack_from("!HI16s", raw, 2)
        scope = int.from_bytes(raw[24:28], sys.byteorder)
        return socket.inet_ntop(family, host), port, flow, scope
    path = raw[2:]
    if path[:1] == b"\0":
        return path
    return path.split(b"\0")[0].decode(sys.getfilesystemencoding(), "surrogateescape")


def local_address(fd: int) -> Address:
    """Return getsockname(2) of a borrowed fd."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockname()  # type: ignore[no-any-return]
    finally:
        sock.detach()


def show_address(address: object) -> str:
    """Return an address for people: host:port, [host]:port, or a path."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        return "@" + address.lstrip(b"\0").decode("utf-8", "replace")
    return str(address).replace("\0", "@", 1)


async def resolve(
    loop: asyncio.AbstractEventLoop, host: str, port: int, doing: str, flags: int = 0
) -> list[Any]:
    """Return getaddrinfo(3) for a stream socket.

    Raises:
        socket.gaierror: naming `doing`, the host and the port.
    """
    try:
        return await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as exc:
        raise _unresolved(exc, host, port, doing) from None


def resolve_now(host: str, port: int, doing: str, flags: int = 0) -> list[Any]:
    """As resolve, for a process that may have no threads: it blocks."""
    try:
        return socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as exc:
        raise _unresolved(exc, host, port, doing) from None


def _unresolved(exc: socket.gaierror, host: str, port: int, doing: str) -> socket.gaierror:
    where = show_address((host, port))
    return socket.gaierror(exc.errno, f"{doing} {where}: {exc.strerror}")
