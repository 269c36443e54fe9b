"""Buses: those of the servers of one run, one for each URL, made when somebody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyloop.bus import Bus

__all__ = ["Buses", "check_bus"]

DEFAULT = "shm://"
"""pyloop.bus is imported when a server starts, not by `import pyloop`."""


class Buses:
    """Those of some servers, by URL."""

    def __init__(self, make: Callable[[str], Bus] | None = None) -> None:
        from pyloop.bus import Bus

        self._make = make or Bus
        self._made: dict[str, Bus] = {}
        self._lock = threading.Lock()  # handlers of model="thread" ask too

    def get(self, url: str) -> Bus:
        """Return the bus of a URL. Raises what Bus raises."""
        with self._lock:
            if url not in self._made:
                self._made[url] = self._make(url)
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
