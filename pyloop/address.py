"""Socket addresses as Python writes them, out of what accept(2) gave."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import sys
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)

__all__ = [
    "Address",
    "decode_sockaddr",
    "family_of",
    "local_address",
    "parse_address",
    "resolve",
    "resolve_now",
    "show_address",
]

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""(host, port), for IPv6 (host, port, flow, scope), or a Unix path (bytes when abstract)."""

_BSD = sys.platform == "darwin" or "bsd" in sys.platform


def family_of(raw: bytes) -> int:
    """Return the address family in a struct sockaddr; AF_UNSPEC: there is none."""
    if len(raw) < 2:
        return socket.AF_UNSPEC
    return raw[1] if _BSD else int.from_bytes(raw[:2], sys.byteorder)


def decode_sockaddr(raw: bytes) -> Address:
    """Return the address in a struct sockaddr, as socket.accept would.

    Source: ip(7), ipv6(7), unix(7).
    """
    family = family_of(raw)
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


_HOST_PORT = re.compile(
    r"(?:(?P<host>[^\s:\[\]/@]*):|\[(?P<v6>[0-9a-fA-F:.%\w]+)\]:)?(?P<port>[0-9]{1,5})"
)


def parse_address(name: str, value: Any, host: str = "127.0.0.1") -> tuple[str, int] | str:
    """Return (host, port), or a Unix path, an abstract one with a leading "\\0".

    Args:
        name: of the argument, for errors.
        value: "host:port", "[::1]:port", ":port", "port", an int, (host, port); for Unix what has
            a slash in it, or "@name".
        host: what is meant by none.

    Raises:
        TypeError, ValueError: naming what was passed and what is expected.
    """
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
        value = value if "/" in value else f"./{value}"
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        where, port = value
    elif isinstance(value, str):
        if "/" in value or value[:1] == "@":
            return _unix_path(name, value)
        match = _HOST_PORT.fullmatch(value)
        if match is None:
            raise _no_address(ValueError, name, value)
        where, port = match["v6"] or match["host"], int(match["port"])
    else:
        where, port = "", value
    if isinstance(port, bool) or not isinstance(port, int):
        raise _no_address(TypeError, name, value)
    if not 0 <= port <= 65535:
        raise ValueError(f"{name}: expected a port of 0 to 65535, got {value!r}")
    return where or host, port


def _unix_path(name: str, path: str) -> str:
    if "\0" in path or path == "@":
        raise _no_address(ValueError, name, path)
    return "\0" + path[1:] if path[0] == "@" else path


def _no_address(kind: type[E], name: str, value: object) -> E:
    return kind(
        f'{name}: expected "host:port", "[::1]:port", ":port", a port, a Unix path with a slash '
        f'or "@name", got {value!r}'
    )


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
