"""Buses: those of the servers of one run, one for each URL, made when somebody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyloop.bus import Bus

__all__ = ["Buses"]


class Buses:
    """Those of some servers, by URL."""

    def __init__(self, make: Callable[[str], Bus] = Bus) -> None:
        self._make = make
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
