"""Two connected sockets, and a task that waits at one of them."""

from __future__ import annotations

import asyncio
import socket


def pair(kind=socket.SOCK_STREAM):
    """A non-blocking socketpair."""
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setblocking(False)
    return ends


async def started(coro):
    """A task of it that has run until it waits for the first time."""
    task = asyncio.get_running_loop().create_task(coro)
    await asyncio.sleep(0)
    return task
