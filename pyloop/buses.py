"""Buses: those of the servers of one run, one for each URL, made when somebody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyloop.bus import Bus

__all__ = ["Buses", "check_bus"]

DEFAULT = "shm://"
"""Every server has it and many never use it, so pyloop.bus is imported only by who does."""


class Buses:
    """Those of some servers, by URL."""

    def __init__(self, make: Callable[[str], Bus] | None = None) -> None:
        self._make = make
        self._made: dict[str, Bus] = {}
        self._lock = threading.Lock()  # handlers of model="thread" ask too

    def get(self, url: str) -> Bus:
        """Return the bus of a URL. Raises what Bus raises."""
        with self._lock:
            if url not in self._made:
                self._made[url] = (self._make or _new)(url)
            return self._made[url]

    async def close(self) -> None:
        """Close those that were made."""
        while self._made:
            await self._made.popitem()[1].close()


def check_bus(url: str | None) -> str | None:
    """Return the URL of a server's bus. Raises what Bus raises."""
    if url is None or url == DEFAULT:
        return url
    from pyloop.bus import check_url

    return check_url(url)


def _new(url: str) -> Bus:
    from pyloop.bus import Bus

    return Bus(url)
