"""Clients: connect() on the running loop, dial() without one."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
from collections.abc import Callable, Sequence
from typing import Any

from pyloop.address import resolve, show_address
from pyloop.blocking import BlockingConnection
from pyloop.connection import Connection
from pyloop.core import check, ffi, lib
from pyloop.framing import Framing, Raw
from pyloop.inbox import Inbox
from pyloop.listening import stream_socket
from pyloop.loop import Loop, running_loop
from pyloop.options import Group, check_framing, check_path, check_seconds, check_size, check_ssl
from pyloop.protocol import Owner, Protocol
from pyloop.tls import TLSConnection

__all__ = ["adopt", "connect", "dial"]

_UNIX_RETRY_SECONDS = 0.01


def _check_target(host: Any, port: Any, path: Any) -> str | None:
    """Return the Unix path to connect to, or None for host and port."""
    if path is None:
        if not isinstance(host, str) or port is None:
            raise TypeError(f"expected host and port, or path; got host={host!r}, port={port!r}")
        check_size("port", port, 1, 65535)
        return None
    if host is not None or port is not None:
        raise ValueError("expected host and port, or path; got both")
    return check_path(path)


def _failed(exc: OSError, address: Any) -> OSError:
    if exc.errno is None:
        return exc
    where = show_address(address).replace("\0", "@", 1)
    if isinstance(exc, socket.gaierror):
        return socket.gaierror(exc.errno, f"cannot connect to {where}: {exc.strerror}")
    return OSError(exc.errno, f"cannot connect to {where}: {os.strerror(exc.errno)}")


async def _connect_one(loop: Loop, family: int, proto: int, address: Any) -> socket.socket:
    sock = stream_socket(family, proto)
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX:
            await _connect_unix(sock, address)
        else:
            await loop.sock_connect(sock, address)
    except OSError as exc:
        sock.close()
        raise _failed(exc, address) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_unix(sock: socket.socket, path: str) -> None:
    """Connect, or wait while the listener's queue is full: no readiness tells of that (unix(7))."""
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(_UNIX_RETRY_SECONDS)


async def _connect_any(loop: Loop, host: str, port: int) -> socket.socket:
    """Try each address in turn."""
    infos = await resolve(loop, host, port, "cannot connect to")
    failures: list[OSError] = []
    for family, _, proto, _, address in infos:
        try:
            return await _connect_one(loop, family, proto, address)
        except OSError as exc:
            failures.append(exc)
    raise _all_failed(host, port, failures)


def _all_failed(host: str, port: int, failures: Sequence[OSError]) -> OSError:
    if len(failures) == 1:
        return failures[0]
    reasons = "; ".join(str(exc) for exc in failures) or "no address"
    return OSError(f"cannot connect to {host}:{port}: {reasons}")


def _adopt(
    loop: Loop, sock: socket.socket, framing: Framing, tls: bool, limits: tuple[int, int]
) -> Connection:
    """Hand a connected socket to the core."""
    write_limit, read_limit = limits
    group = Group(
        framing,
        idle_timeout=0.0,
        message_timeout=0.0,
        linger=1.0,
        write_limit=write_limit,
        tls=tls,
    )
    owner = Owner(loop, group.counters, framing, read_limit, write_limit)
    ptr, ident = loop._open_core(), ffi.new("uint64_t *")
    peer = sock.getpeername()
    group.open(ptr)
    loop._watches.vacate(sock.fileno())
    try:
        check(lib.pl_conn_open(ptr, group.number, sock.fileno(), ident), ptr)
    finally:
        group.close()  # the conn keeps it alive in the core
    sock.detach()
    conn = (TLSConnection if tls else Connection)(ptr, ident[0], owner, peer)
    loop._core.dispatch.add(ident[0], conn)
    return conn


def adopt(loop: Loop, sock: socket.socket, framing: Framing, protocol: Protocol) -> Connection:
    """Make a Connection of a connected socket, which it takes over."""
    conn = _adopt(loop, sock, framing, False, (1 << 24, 1 << 16))
    conn._start_protocol(protocol)
    return conn


def _starter(protocol: Any) -> Callable[[Connection], None]:
    """Return what gives a new connection its protocol, or its inbox."""
    if protocol is None:
        return lambda conn: conn._attach(Inbox.push, Inbox(conn))
    if not isinstance(protocol, Protocol) and not callable(protocol):
        raise TypeError(f"protocol: expected a pyloop.Protocol or a maker of one, got {protocol!r}")
    made = protocol if isinstance(protocol, Protocol) else protocol()
    if not isinstance(made, Protocol):
        raise TypeError(f"protocol: expected a pyloop.Protocol or a maker of one, got {made!r}")
    return lambda conn: conn._start_protocol(made)


async def _handshake(
    conn: TLSConnection,
    context: ssl_module.SSLContext,
    begin: Callable[[Connection], None],
    timeout: float,
    hostname: str | None,
) -> None:
    conn._made = conn._owner.loop.create_future()
    try:
        conn._start_tls(context, begin, timeout, False, hostname)
        await conn._made
    except BaseException:
        conn._made.cancel()
        conn.abort()
        raise


async def connect(
    host: str | None = None,
    port: int | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    framing: Framing | None = None,
    protocol: Protocol | Callable[[], Protocol] | None = None,
    handshake_timeout: float = 60.0,
    write_limit: int = 16 * 1024 * 1024,
    read_limit: int = 64 * 1024,
) -> Connection:
    """Connect on the running pyloop.Loop.

    Args:
        host, port: a name or address, every address of which is tried in turn.
        path: a Unix socket instead.
        ssl: an ssl.SSLContext for TLS; server_hostname defaults to host.
        framing: how messages are cut; Raw() by default.
        protocol: a pyloop.Protocol, or what makes one. None: use receive() and `async for`.
        handshake_timeout: seconds for the TLS handshake.
        write_limit, read_limit: bytes; as for Server.

    Returns:
        The Connection, ready to send.

    Raises:
        OSError: nobody answers; the message names the address. TimeoutError, ssl.SSLError: TLS.
        RuntimeError: no pyloop.Loop is running.
    """
    name = _check_target(host, port, path)
    rule = Raw() if framing is None else check_framing(framing)
    context = check_ssl("ssl", ssl)
    timeout = check_seconds("handshake_timeout", handshake_timeout)
    limits = check_size("write_limit", write_limit), check_size("read_limit", read_limit)
    loop = running_loop("connect()")
    begin = _starter(protocol)
    if name is None:
        assert host is not None and port is not None
        sock = await _connect_any(loop, host, port)
    else:
        sock = await _connect_one(loop, socket.AF_UNIX, 0, name)
    try:
        conn = _adopt(loop, sock, rule, context is not None, limits)
    except BaseException:
        sock.close()
        raise
    if isinstance(conn, TLSConnection):
        assert context is not None
        await _handshake(conn, context, begin, timeout, server_hostname or host)
    else:
        conn._guard(begin, conn)
    return conn


def dial(
    host: str | None = None,
    port: int | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    framing: Framing | None = None,
    timeout: float | None = None,
) -> BlockingConnection:
    """Connect without a loop, for scripts and threads: `send` and `receive` block.

    Args:
        host, port, path, ssl, server_hostname, framing: as for connect.
        timeout: seconds that connecting, and each wait in send or receive, may take.

    Raises:
        OSError: nobody answers; the message names the address. TimeoutError, ssl.SSLError.
    """
    name = _check_target(host, port, path)
    rule = Raw() if framing is None else check_framing(framing)
    context = check_ssl("ssl", ssl)
    seconds = check_seconds("timeout", timeout) or None
    address: Any = name if name is not None else (host, port)
    try:
        sock = _dial_socket(name, host, port, seconds)
    except TimeoutError as exc:
        raise TimeoutError(f"cannot connect to {show_address(address)}: timed out") from exc
    except OSError as exc:
        raise _failed(exc, address) from None
    try:
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=server_hostname or host)
        return BlockingConnection(sock, rule)
    except BaseException:
        sock.close()
        raise


def _dial_socket(
    name: str | None, host: str | None, port: int | None, timeout: float | None
) -> socket.socket:
    if name is None:
        sock = socket.create_connection((host, port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock
