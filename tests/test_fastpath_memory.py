"""The C twins' memory: what the collector sees, and objects that are used when they are half there."""

from __future__ import annotations

import asyncio
import collections
import gc
import socket
import weakref

import pytest

import pyloop
from pyloop import fast

only_fast = pytest.mark.skipif(fast.fastpath is None, reason="there is no fast path")


def turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def keep_by_handler(loop, node):
    loop.set_exception_handler(lambda loop, context: setattr(node, "handle", context["handle"]))
    loop.call_soon(lambda node: 1 / 0, node)


def keep_weakly(loop, node):
    node.ref = weakref.ref(loop.call_soon(lambda node: setattr(node, "handle", node.ref()), node))


def keep_and_clear(loop, node):
    node.handle = loop.call_soon(int, node)
    loop._ready.clear()


def keep_and_replace(loop, node):
    node.handle = loop.call_soon(int, node)
    loop._ready = collections.deque()


def keep_and_close(loop, node):
    node.handle = loop.call_soon(int, node)
    loop.close()


@pytest.mark.parametrize(
    "keep", [keep_by_handler, keep_weakly, keep_and_clear, keep_and_replace, keep_and_close]
)
def test_handle_that_is_kept_in_a_cycle_is_collected(backend, keep):
    """The collector does not know a handle that is the queue's alone: it must, once it is not."""

    class Node:
        pass

    loop, node = pyloop.Loop(backend), Node()
    ref = weakref.ref(node)
    try:
        keep(loop, node)
        if not loop.is_closed():
            turn(loop)
            loop.set_exception_handler(None)
        assert isinstance(node.handle, asyncio.Handle)
        del node
        gc.collect()
        assert ref() is None
    finally:
        loop.close()


@only_fast
def test_queue_hands_out_what_is_not_its_own_as_it_is(loop):
    loop._ready.append(())
    assert loop._ready.popleft() == () and not gc.is_tracked(())


@only_fast
def test_heap_emptied_while_its_first_timer_is_looked_at_is_an_empty_heap(loop):
    class Rug(asyncio.TimerHandle):
        __slots__ = ()

        @property
        def _cancelled(self):
            loop._scheduled.clear()
            return False

        @_cancelled.setter
        def _cancelled(self, value):
            pass

    ours, peer = socket.socketpair()
    with ours, peer:
        peer.send(b"now")
        loop.add_reader(ours, loop.remove_reader, ours)
        loop._scheduled.append(Rug(loop.time() + 3600, int, (), loop))
        loop._run_once()
        assert loop._scheduled == [] and not loop.remove_reader(ours)
