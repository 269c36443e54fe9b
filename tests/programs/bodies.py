"""What the tests of real programs send, and how they find out that a sender was held back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

LARGE = 50 << 20
BLOCK = 1 << 16

on_two_backends = pytest.mark.parametrize("backend", ["select", "epoll"], indirect=True)
"""For what is too slow to be run on all."""


def blocks(size, block=BLOCK):
    """Yield `size` bytes, a multiple of `block`; no two blocks are alike."""
    for number in range(size // block):
        yield number.to_bytes(8, "big") * (block // 8)


async def blocks_async(size):
    for block in blocks(size):
        yield block


def digest(pieces):
    """The digest of all pieces together."""
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()


async def digest_async(pieces):
    """The same of an async iterator, and how many bytes there were."""
    sha, size = hashlib.sha256(), 0
    async for piece in pieces:
        sha.update(piece)
        size += len(piece)
    return sha.hexdigest(), size


async def standstill(count):
    """Wait until `count()` is more than 0 and no longer changes; return it.

    Who is not held back goes on in each turn of this loop. A sender in another process has longer
    than any break it takes: a stop that is seen too early lets a test pass, and fail never.
    """
    last, same = 0, 0
    while same < 20:
        await asyncio.sleep(0.01)
        now = count()
        last, same = now, same + 1 if now == last and now else 0
    return last


@contextlib.asynccontextmanager
async def running(coro):
    """Run a coroutine beside the block, and cancel it at the end if it goes on."""
    task = asyncio.create_task(coro)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
