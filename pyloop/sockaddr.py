"""Addresses of datagrams between Python's tuples and the kernel's struct sockaddr.

As the socket module has them, for the families in FAMILIES. A literal is turned into bytes here,
without a resolver; a host name is looked up, which blocks, as it does in `socket.sendto`.
"""

from __future__ import annotations

import contextlib
import operator
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from pyloop.address import decode_sockaddr

__all__ = ["FAMILIES", "AddressBook", "decode_head", "encode_sockaddr"]

_BSD = sys.platform == "darwin" or "bsd" in sys.platform
_REMEMBERED = 1024  # addresses of a family
_PATH_BYTES = 104 if _BSD else 108  # of sun_path
_LENGTH = struct.Struct("=I")
_NETLINK: int = getattr(socket, "AF_NETLINK", -1)


def _sockaddr(family: int, rest: bytes) -> bytes:
    start = bytes((len(rest) + 2, family)) if _BSD else struct.pack("=H", family)
    return start + rest


def _named(family: int) -> str:
    return socket.AddressFamily(family).name


def _fields(family: int, address: Any, most: int, shape: str) -> tuple[Any, ...]:
    if not isinstance(address, tuple):
        kind = type(address).__name__
        raise TypeError(f"{_named(family)} address must be tuple, not {kind}")
    if not 2 <= len(address) <= most:
        raise TypeError(f"{_named(family)} address must be {shape}, not {address!r}")
    return address


def _number(what: str, value: Any, most: int) -> int:
    number = operator.index(value)
    if not 0 <= number <= most:
        raise OverflowError(f"{what} must be 0-{most}, not {number}")
    return number


def _host(family: int, host: Any) -> tuple[bytes, int, bool]:
    """Return a host as the kernel has it, its scope, and whether that is true for ever."""
    if isinstance(host, bytes | bytearray):
        host = host.decode("ascii", "surrogateescape")
    if not isinstance(host, str):
        kind = type(host).__name__
        raise TypeError(f"host must be str, bytes or bytearray, not {kind}")
    if host == "<broadcast>" and family == socket.AF_INET:
        return b"\xff" * 4, 0, True
    any_host = "0.0.0.0" if family == socket.AF_INET else "::"
    try:
        return socket.inet_pton(family, host or any_host), 0, True
    except OSError:
        pass  # no literal
    where = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)[0][4]
    return socket.inet_pton(family, str(where[0])), where[3] if len(where) > 3 else 0, False


def _encode_inet(family: int, address: Any) -> tuple[bytes, bool]:
    host, port = _fields(family, address, 2, "a pair (host, port)")
    port = _number("port", port, 65535)
    packed, _, lasting = _host(family, host)
    return _sockaddr(family, struct.pack("!H4s8x", port, packed)), lasting


def _encode_inet6(family: int, address: Any) -> tuple[bytes, bool]:
    fields = _fields(family, address, 4, "a tuple (host, port[, flowinfo[, scopeid]])")
    host, port, flow, scope = (*fields, 0, 0)[:4]
    port = _number("port", port, 65535)
    flow = _number("flowinfo", flow, 0xFFFFF)
    scope = _number("scopeid", scope, 0xFFFFFFFF)
    packed, found, lasting = _host(family, host)
    rest = struct.pack("!HI16s", port, flow, packed) + struct.pack("=I", scope or found)
    return _sockaddr(family, rest), lasting


def _encode_unix(family: int, address: Any) -> tuple[bytes, bool]:
    path = os.fsencode(address) if isinstance(address, str) else bytes(memoryview(address))
    if path[:1] not in (b"", b"\0"):
        path += b"\0"
    if len(path) > _PATH_BYTES:
        raise OSError("AF_UNIX path too long")
    return _sockaddr(family, path), True


def _encode_netlink(family: int, address: Any) -> tuple[bytes, bool]:
    pid, groups = _fields(family, address, 2, "a pair (pid, groups)")
    pid = _number("pid", pid, 0xFFFFFFFF)
    groups = _number("groups", groups, 0xFFFFFFFF)
    return _sockaddr(family, struct.pack("=2xII", pid, groups)), True


FAMILIES: dict[int, Callable[[int, Any], tuple[bytes, bool]]] = {
    socket.AF_INET: _encode_inet,
    socket.AF_INET6: _encode_inet6,
    socket.AF_UNIX: _encode_unix,
}
if _NETLINK >= 0:
    FAMILIES[_NETLINK] = _encode_netlink


def encode_sockaddr(family: int, address: Any) -> tuple[bytes, bool]:
    """Return the struct sockaddr of an address, and whether it may be used again.

    It may not when a name was looked up, because that changes.

    Args:
        family: one of FAMILIES.
        address: as `socket.sendto` takes it.

    Raises:
        TypeError, OverflowError: it is no address of this family.
        OSError: the path is too long, or (socket.gaierror) the name is not known.
    """
    return FAMILIES[family](family, address)


def decode_head(head: bytes) -> tuple[Any, bytes]:
    """Return the address (None for none) and struct sockaddr in what stands before a datagram."""
    (length,) = _LENGTH.unpack_from(head)
    raw = head[_LENGTH.size : _LENGTH.size + length]
    if not length:
        return None, raw  # an AF_UNIX socket without a name
    if int.from_bytes(raw[:2], sys.byteorder) == _NETLINK:
        return struct.unpack_from("=II", raw, 4), raw
    return decode_sockaddr(raw), raw


class AddressBook:
    """Addresses met lately, in both forms: to look one up costs less than to translate it."""

    def __init__(self) -> None:
        self.packed: dict[int, dict[Any, bytes]] = {family: {} for family in FAMILIES}
        self.senders: dict[bytes, Any] = {}  # by what stands before their datagrams

    def pack(self, family: int, address: Any) -> bytes:
        """As encode_sockaddr; remembered if it may be used again."""
        raw, lasting = encode_sockaddr(family, address)
        if lasting:
            _remember(self.packed[family], address, raw)
        return raw

    def unpack(self, family: int, head: bytes) -> Any:
        """As decode_head; remembered, and so is the way back, as an answer is likely."""
        address, raw = decode_head(head)
        _remember(self.senders, head, address)
        if address:
            _remember(self.packed[family], address, raw)
        return address


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    with contextlib.suppress(TypeError):  # a bytearray in it
        known[key] = value
