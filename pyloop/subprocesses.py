"""Subprocesses without a thread each on Python 3.11, as asyncio itself has them from 3.12 on.

asyncio's default there is a watcher that waits for each child in a thread of its own. A pidfd does
as well, and is watched by the loop; the stdlib's PidfdChildWatcher has the code. Who has set
a watcher gets that one.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import unix_events
from typing import Any

__all__ = ["Subprocesses"]


class Subprocesses(asyncio.SelectorEventLoop):
    """The part of a Loop that starts subprocesses."""

    _pidfds: Any = None

    if sys.version_info < (3, 12):

        async def _make_subprocess_transport(
            self, protocol: Any, args: Any, *popen: Any, extra: Any = None, **kwargs: Any
        ) -> Any:
            if type(asyncio.get_child_watcher()) is not asyncio.ThreadedChildWatcher:
                return await super()._make_subprocess_transport(  # type: ignore[misc]
                    protocol, args, *popen, extra=extra, **kwargs
                )
            waiter = self.create_future()
            transport: Any = unix_events._UnixSubprocessTransport(  # type: ignore[attr-defined]
                self, protocol, args, *popen, waiter=waiter, extra=extra, **kwargs
            )
            self._watch_child(transport)
            try:
                await waiter
            except BaseException as exc:
                if not isinstance(exc, SystemExit | KeyboardInterrupt):
                    transport.close()
                    await transport._wait()
                raise
            return transport

        def _watch_child(self, transport: Any) -> None:
            if self._pidfds is None:
                self._pidfds = asyncio.PidfdChildWatcher()
                self._pidfds.attach_loop(self)
            child: Any = (transport.get_pid(), self._child_watcher_callback, transport)  # type: ignore[attr-defined]
            try:
                self._pidfds.add_child_handler(*child)
            except (AttributeError, OSError):  # no pidfds here, or no fd is left
                asyncio.get_child_watcher().add_child_handler(*child)

        def close(self) -> None:
            if self._pidfds is not None and not self.is_running():
                self._pidfds.close()  # with a RuntimeWarning when a child runs on
            super().close()
