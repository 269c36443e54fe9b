"""pyloop: Python network servers at the speed of plain C.

`import pyloop; pyloop.run(server)`: see README.md, and docs/tour.md for how it works inside.
"""

from pyloop.blocking import BlockingConnection
from pyloop.bus import Bus
from pyloop.channel import Channel
from pyloop.client import connect, dial
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
from pyloop.mapped import MappedFile
from pyloop.mapping import MappedView
from pyloop.memory import SharedMemory
from pyloop.protocol import Protocol
from pyloop.run import run
from pyloop.semaphore import Semaphore
from pyloop.server import Server
from pyloop.shared_lock import SharedLock
from pyloop.stats import Counters, LoopStats, ProcessStats, ServerStats, WorkerStats
from pyloop.subscription import Missed, Subscription

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
    "new_event_loop",
    "run",
]
