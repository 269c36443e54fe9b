"""Whatever a loop does leaves no memory block and no reference. tests/soak has the long run."""

from __future__ import annotations

import contextvars
import gc
import logging
import sys

import pytest
from operations import OPERATIONS, fail, growth, traced_growth, turn

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython counts references"
)
COUNT = 20_000
NOISE = 60
"""Blocks that come and go by themselves: caches, logging, the interpreter's free lists."""


@pytest.mark.parametrize("backend", ["auto"], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
def test_operations_of_each_kind_leave_no_memory_block(loop, monkeypatch, operation):
    for name in ("pyloop", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    operation(loop, 2000)
    for measure, count, noise in ((growth, COUNT, NOISE), (traced_growth, 500, 4096)):
        grown = [measure(loop, operation, count)]
        while grown[-1] > noise and len(grown) < 3:  # a cache was filled; a leak grows again
            grown.append(measure(loop, operation, count))
        assert min(grown) <= noise, f"{measure.__name__} of {count} operations: {grown}"


class Counted:
    """A callable, an argument and a context, and how often each is referred to."""

    def __init__(self):
        self.context = contextvars.copy_context()
        self.argument = object()
        self.callback = lambda *args: None

    def counts(self):
        return [sys.getrefcount(each) for each in (self.context, self.argument, self.callback)]


def test_each_way_a_handle_goes_gives_back_callback_arguments_and_context(loop):
    it = Counted()
    loop.set_exception_handler(lambda loop, context: None)
    turn(loop)
    gc.collect()
    before, loops = it.counts(), sys.getrefcount(loop)
    kept = []

    def make(call, *when):
        return call(*when, it.callback, it.argument, context=it.context)

    ways = (
        *((loop.call_soon,), (loop.call_soon_threadsafe,)),
        *((loop.call_later, 0), (loop.call_at, -1.0)),
    )
    for way in ways:
        make(*way)
        assert [more - less for more, less in zip(it.counts(), before, strict=True)] == [1] * 3
        turn(loop)
        assert it.counts() == before, way
        make(*way).cancel()
        assert it.counts()[1:] == before[1:], way
        turn(loop)
        assert it.counts() == before, way
        kept.append(make(*way))
        turn(loop)
        kept.pop().cancel()
        assert it.counts() == before, way
        make(*way)._run()
        turn(loop)
        assert it.counts() == before, way
    for wrong in ({"wrong": 1}, {"context": it.context, "wrong": 1}):
        with pytest.raises(TypeError):
            loop.call_soon(it.callback, it.argument, **wrong)
    loop.call_soon(fail, context=it.context)
    loop.call_soon(it.callback, it.argument, context=it.argument)  # no context at all
    turn(loop)
    del wrong, ways, way  # bound methods of the loop among them
    gc.collect()  # tracebacks
    assert it.counts() == before and sys.getrefcount(loop) == loops


def test_handles_of_a_loop_that_is_closed_give_back_what_they_hold(loop):
    it = Counted()
    before = it.counts()
    for _ in range(1000):
        loop.call_soon(it.callback, it.argument, context=it.context)
        loop.call_later(5, it.callback, it.argument, context=it.context)
    loop.close()
    assert it.counts() == before
