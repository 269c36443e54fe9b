"""The operator's console of chat.py: standard input, watched by the same loop as the clients.

A line goes to everybody, /who lists the clients, and end of input leaves the server running.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import pyloop
from pyloop.lowlevel import ReadBuffer

STDIN = 0
LINES = pyloop.Lines()


class Console:
    """The operator's lines. The fd stays blocking, because a terminal shares that flag with the
    shell; one read each time that the loop finds it readable does not block."""

    def __init__(self, say: Callable[[bytes], None], who: Callable[[], None]) -> None:
        self.say, self.who, self.buffer = say, who, ReadBuffer()

    def open(self) -> None:
        """Begin to read."""
        if sys.stdin is not None:  # None: started without one, and fd 0 may be anything by now
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background, fail, do not stop
            asyncio.get_running_loop().add_reader(STDIN, self.read)

    def read(self) -> None:
        """Take what is there; at the end of input, or on an error, read no more."""
        try:
            data = os.read(STDIN, 65536)
            self.buffer.feed(data)
            cut = self.buffer.next if data else self.buffer.finish
            while (line := cut(LINES)) is not None:
                self.obey(line)
            ended = "" if data else "end of input"
        except (OSError, pyloop.FramingError) as exc:
            ended = str(exc)
        if ended:
            asyncio.get_running_loop().remove_reader(STDIN)
            print(f"console closed ({ended}); the server goes on", flush=True)

    def obey(self, line: bytes) -> None:
        if line.strip() == b"/who":
            self.who()
        else:
            self.say(line)
