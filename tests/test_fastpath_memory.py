"""The C twins' memory: what the collector sees, and objects that are used half made."""

from __future__ import annotations

import asyncio
import collections
import gc
import socket
import weakref

import pytest

import pyloop
from pyloop import fast
from pyloop.core import ffi

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


@only_fast
def test_walk_that_has_no_batch_of_its_own_takes_none(loop):
    class ByHand(fast.fastpath.Turn):
        time = staticmethod(loop.time)

    kind = fast.fastpath.Walk
    for walk in (kind.__new__(kind), kind(loop._core.ptr, print)):
        walk.end()  # of the second one
        turns = ByHand()
        turns._ready, turns._scheduled = [], []
        turns._use_core(loop._core.ptr, walk)
        ours, peer = socket.socketpair()
        with ours, peer:
            peer.send(b"now")
            loop.add_reader(ours, int)
            turns._run_once()
            assert loop.remove_reader(ours) and walk.take() is None


@only_fast
@pytest.mark.parametrize("wrong", [8, "8", None, ffi.new("int *")])
def test_pointer_to_anything_but_a_core_is_refused(loop, wrong):
    conn = fast.fastpath.ConnectionBase()
    with pytest.raises(TypeError, match="struct pl_loop"):
        conn._ptr = wrong
    with pytest.raises(TypeError, match="struct pl_loop"):
        fast.fastpath.Turn()._use_core(wrong, loop._core.dispatch)
    assert conn._ptr is ffi.NULL


@only_fast
def test_time_that_is_no_number_of_a_timer_of_another_class_does_not_wait(loop):
    ran = []
    timer = asyncio.TimerHandle(float("nan"), ran.append, (1,), loop)
    timer._scheduled = True
    loop._scheduled.append(timer)
    loop._run_once()
    assert ran == [1]
