"""pyloop: Python network servers at the speed of plain C.

`import pyloop; pyloop.run(server)`: see README.md, and docs/tour.md for how it works inside.

What every server needs is imported here at once, and the rest when its name is first used.
"""

from typing import TYPE_CHECKING, Any

from pyloop.connection import Connection
from pyloop.errors import (
    ChannelClosed,
    ConnectionClosed,
    FramingError,
    PyloopError,
    WriteLimitError,
)
from pyloop.framing import Delimited, FixedSize, LengthPrefixed, Lines, Netstring, Raw
from pyloop.loop import Loop, new_event_loop
from pyloop.mapping import MappedView
from pyloop.protocol import Protocol
from pyloop.run import run
from pyloop.server import Server

if TYPE_CHECKING:
    from pyloop.about import Info, info
    from pyloop.blocking import BlockingConnection
    from pyloop.bus import Bus
    from pyloop.channel import Channel
    from pyloop.client import connect, dial
    from pyloop.mapped import MappedFile
    from pyloop.memory import SharedMemory
    from pyloop.semaphore import Semaphore
    from pyloop.shared_lock import SharedLock
    from pyloop.stats import Counters, LoopStats, ProcessStats, ServerStats, WorkerStats
    from pyloop.subscription import Missed, Subscription
else:
    _WHERE = {
        **dict.fromkeys(("Info", "info"), "about"),
        "BlockingConnection": "blocking",
        "Bus": "bus",
        "Channel": "channel",
        **dict.fromkeys(("connect", "dial"), "client"),
        "MappedFile": "mapped",
        "SharedMemory": "memory",
        "Semaphore": "semaphore",
        "SharedLock": "shared_lock",
        **dict.fromkeys(
            ("Counters", "LoopStats", "ProcessStats", "ServerStats", "WorkerStats"), "stats"
        ),
        **dict.fromkeys(("Missed", "Subscription"), "subscription"),
    }

    def __getattr__(name: str) -> Any:
        """Import what is used for the first time. Source: PEP 562."""
        if name not in _WHERE:
            raise AttributeError(f"module 'pyloop' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"pyloop.{_WHERE[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "BlockingConnection",
    "Bus",
    "Channel",
    "ChannelClosed",
    "Connection",
    "ConnectionClosed",
    "Counters",
    "Delimited",
    "FixedSize",
    "FramingError",
    "Info",
    "LengthPrefixed",
    "Lines",
    "Loop",
    "LoopStats",
    "MappedFile",
    "MappedView",
    "Missed",
    "Netstring",
    "ProcessStats",
    "Protocol",
    "PyloopError",
    "Raw",
    "Semaphore",
    "Server",
    "ServerStats",
    "SharedLock",
    "SharedMemory",
    "Subscription",
    "WorkerStats",
    "WriteLimitError",
    "connect",
    "dial",
    "info",
    "new_event_loop",
    "run",
]
