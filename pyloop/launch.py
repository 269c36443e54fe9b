"""How a supervisor starts a worker: here by fork. serve.py has the way of fresh interpreters."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Protocol

from pyloop.forking import fork_child, leave_stdin
from pyloop.protocol import log
from pyloop.server import Server
from pyloop.slots import Slots
from pyloop.supervision import Supervision
from pyloop.worker import STDIN_WORKER, Post, work

__all__ = ["ForkLauncher", "Launcher"]


class Launcher(Protocol):
    """What a supervisor asks to start workers."""

    def launch(self, post: Post) -> int:
        """Start a process that takes the post. Returns its pid. Raises OSError."""
        ...

    async def prepare(self, adjust: Callable[[Supervision, float], None]) -> bool:
        """Get ready for a reload; false keeps the old workers.

        May `adjust` the supervisor's settings, and the longest drain_timeout of the servers.
        """
        ...

    def started(self, worker_id: int) -> None:
        """Hear that a worker is ready. Raises nothing."""

    def ended(self, worker_id: int) -> None:
        """Hear that a worker which was ready has ended. Raises nothing."""


class ForkLauncher:
    """Workers that are forks of the supervisor, with the servers as they are."""

    def __init__(
        self,
        servers: tuple[Server, ...],
        slots: Sequence[Slots],
        backend: str,
        debug: bool | None,
        block_threshold: float | None,
    ) -> None:
        self._servers, self._slots = servers, slots
        self._loop = backend, debug, block_threshold

    def launch(self, post: Post) -> int:
        def main() -> int:
            gc.freeze()  # what is inherited stays on pages that all workers share
            if post.worker_id != STDIN_WORKER:
                leave_stdin()
            for slots in self._slots:
                slots.keep_only(post.worker_id - 1)
            return work(self._servers, post, *self._loop)

        return fork_child(main)

    async def prepare(self, adjust: Callable[[Supervision, float], None]) -> bool:
        return True

    def started(self, worker_id: int) -> None:
        for server in self._servers:
            _call(server._on_worker_start, server, worker_id)

    def ended(self, worker_id: int) -> None:
        for server in self._servers:
            _call(server._on_worker_stop, server, worker_id)


def _call(hook: Callable[[Server, int], None] | None, server: Server, worker_id: int) -> None:
    """Call a hook, whose exceptions are nobody else's."""
    try:
        if hook is not None:
            hook(server, worker_id)
    except Exception:
        log.exception("%r raised for worker %d of %r", hook, worker_id, server)
