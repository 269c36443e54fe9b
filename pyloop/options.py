"""Check the settings that servers and clients share, and hand them to the core."""

from __future__ import annotations

import inspect
import os
import ssl as ssl_module
from typing import Any

from pyloop.core import check, ffi, lib
from pyloop.framing import Framing
from pyloop.listening import Place, check_socket
from pyloop.page import Page

__all__ = [
    "HIGH_WATER",
    "LOW_WATER",
    "Group",
    "check_count",
    "check_framing",
    "check_hook",
    "check_path",
    "check_place",
    "check_seconds",
    "check_size",
]

HIGH_WATER, LOW_WATER = 64 * 1024, 16 * 1024
CLOSE_TIMEOUT = 30.0
"""Seconds that a closing connection waits for a peer that takes nothing, without idle_timeout."""

_LONGEST_NS = 1 << 62


def check_framing(framing: Any) -> Framing:
    """Return `framing` if it is one."""
    if isinstance(framing, Framing):
        return framing
    hint = f" (write {framing.__name__}())" if isinstance(framing, type) else ""
    raise TypeError(f"framing: expected a pyloop framing such as Lines(), got {framing!r}{hint}")


def check_seconds(name: str, value: Any, *, none: bool = True) -> float:
    """Return seconds, 0.0 for None. Raises TypeError or ValueError that names the argument."""
    allowed = "a positive number of seconds or None" if none else "seconds, not negative"
    if value is None and none:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if not value >= 0 or (none and value == 0) or value == float("inf"):
        raise ValueError(f"{name}: expected {allowed}, got {value!r}")
    return float(value)


def check_size(name: str, value: Any, least: int = 1, most: int = 1 << 40) -> int:
    """Return a whole number in range. Raises TypeError or ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
    return value


def check_count(name: str, value: Any, most: int = 1 << 31) -> int:
    """Return a limit that is a whole number from 1, or 0 for None, which is no limit."""
    return 0 if value is None else check_size(name, value, 1, most)


def check_path(path: Any) -> str:
    """Return a Unix socket's path, or its abstract name with a leading "\\0"."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path: expected a str, bytes or os.PathLike, got {path!r}")
    name = os.fsdecode(path)
    if name in ("", "@", "\0"):
        raise ValueError(f"path: expected a path or an abstract name, got {name!r}")
    return "\0" + name[1:] if name[0] == "@" else name


def check_hook(name: str, hook: Any, *, plain: bool = False) -> Any:
    """Return `hook` if it is a callable, not a coroutine function if `plain`, or None."""
    if hook is not None and not callable(hook):
        raise TypeError(f"{name}: expected a callable or None, got {hook!r}")
    if plain and inspect.iscoroutinefunction(hook):
        raise TypeError(f"{name}: expected a plain function, got the coroutine function {hook!r}")
    return hook


def _check_hosts(host: Any) -> tuple[str, ...]:
    hosts = [host] if isinstance(host, str) else host
    if not isinstance(hosts, (list, tuple)) or not all(isinstance(h, str) for h in hosts):
        raise TypeError(f"host: expected a str or a list of them, got {host!r}")
    if not hosts:
        raise ValueError("host: expected at least one, got none")
    return tuple(hosts)


def check_place(host: Any, port: Any, path: Any, sock: Any, backlog: Any) -> Place:
    """Return where to listen. Raises TypeError or ValueError that names the argument."""
    if path is not None and sock is not None:
        raise ValueError("path and sock: expected one of them, got both")
    return Place(
        hosts=_check_hosts(host),
        port=check_size("port", port, 0, 65535),
        path=None if path is None else check_path(path),
        sock=None if sock is None else check_socket(sock),
        backlog=check_size("backlog", backlog, 1, 65535),
    )


def check_ssl(name: str, context: Any) -> ssl_module.SSLContext | None:
    """Return an SSLContext or None."""
    if context is None or isinstance(context, ssl_module.SSLContext):
        return context
    raise TypeError(f"{name}: expected an ssl.SSLContext or None, got {context!r}")


def _nanoseconds(seconds: float) -> int:
    return min(int(seconds * 1e9), _LONGEST_NS)


class Group:
    """A group in the core: the options that connections share, and their counters."""

    def __init__(
        self,
        framing: Framing,
        *,
        idle_timeout: float,
        message_timeout: float,
        linger: float,
        write_limit: int,
        max_connections: int = 0,
        tls: bool = False,
        hand_over: bool = False,
    ) -> None:
        self.counters = ffi.new("struct pl_counters *")
        self.page: Page | None = None
        self.page_server = 0
        self.shared = False
        self.options = options = ffi.new("struct pl_options *")
        options.framing = framing.spec[0]
        options.idle_timeout = _nanoseconds(idle_timeout)
        options.message_timeout = _nanoseconds(message_timeout)
        options.close_timeout = _nanoseconds(idle_timeout or CLOSE_TIMEOUT)
        options.linger = _nanoseconds(linger)
        options.write_limit = write_limit
        options.high_water, options.low_water = HIGH_WATER, LOW_WATER
        options.max_connections = max_connections
        options.flags = lib.PL_NODELAY
        options.flags |= (lib.PL_TLS if tls else 0) | (lib.PL_HAND_OVER if hand_over else 0)
        self._ptr: Any = None
        self.number = -1

    def open(self, ptr: Any) -> None:
        """Enter the group into a loop's core."""
        self.number = check(lib.pl_group_new(ptr, self.options, self.counters), ptr)
        self._ptr = ptr
        page = self.page
        if self.shared and page is not None:
            share = lib.pl_group_share
            check(share(ptr, self.number, page.header, page.size, self.page_server), ptr)

    def count_in(self, page: Page, cell: int, server: int) -> None:
        """Count in a cell of a page from now on, where it is server number `server`."""
        self.page, self.page_server = page, server
        self.counters = page.counters(cell, server)

    def cut_off(self) -> None:
        """Forget a core that is gone, or about to be."""
        self._ptr = None

    def close(self) -> None:
        """Give it up: listeners close, connections live on."""
        if self._ptr is not None:
            lib.pl_group_free(self._ptr, self.number)
            self._ptr = None
