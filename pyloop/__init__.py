"""pyloop: Python network servers at the speed of plain C.

`import pyloop; pyloop.run(server)`: see README.md, and docs/tour.md for how it works inside.
"""

from pyloop.blocking import BlockingConnection
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
from pyloop.protocol import Protocol
from pyloop.run import run
from pyloop.server import Server
from pyloop.stats import Counters, LoopStats, ProcessStats, ServerStats, WorkerStats

__all__ = [
    "BlockingConnection",
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
    "Netstring",
    "ProcessStats",
    "Protocol",
    "PyloopError",
    "Raw",
    "Server",
    "ServerStats",
    "WorkerStats",
    "WriteLimitError",
    "connect",
    "dial",
    "new_event_loop",
    "run",
]
