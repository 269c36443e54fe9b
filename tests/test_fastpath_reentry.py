"""The C twins when the code that they call pulls the rug away: queues, heap, loop, module."""

from __future__ import annotations

import asyncio
import collections
import gc
import heapq
import socket

import pytest
from faults import Child
from transports import Recorder, attached

import pyloop
from pyloop import fast
from pyloop.core import ffi

only_fast = pytest.mark.skipif(fast.fastpath is None, reason="there is no fast path")


class Rug(asyncio.TimerHandle):
    """A timer of another class, whose fields and comparisons call `pull` first."""

    __slots__ = ("due", "pull")

    def __init__(self, loop, due, pull, callback=int):
        super().__init__(due, callback, (), loop)
        self.due, self.pull = due, pull

    @property
    def _when(self):
        self.pull()
        return self.due

    @_when.setter
    def _when(self, value):
        pass

    def __lt__(self, other):
        self.pull()
        return self.due < getattr(other, "due", other._when)

    def __gt__(self, other):
        self.pull()
        return self.due > getattr(other, "due", other._when)


def push(loop, timer):
    timer._scheduled = True
    loop._scheduled.append(timer)


def turns(loop, count):
    """Turn so often, and return what was raised."""
    raised = []
    for _ in range(count):
        loop.call_soon(loop.stop)
        try:
            loop.run_forever()
        except (RuntimeError, IndexError) as exc:
            raised.append(str(exc))
    return raised


@only_fast
def test_queue_replaced_by_a_callback_loses_nothing(loop):
    ran = []

    def replace():
        rest = collections.deque(loop._ready)
        loop._ready.clear()
        loop._ready = rest
        gc.collect()

    loop.call_soon(replace)
    for number in range(100):
        loop.call_soon(ran.append, number)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert ran == [*range(100)]
    with pytest.raises(TypeError):
        loop._ready = 5
    with pytest.raises(AttributeError, match=r"^_ready cannot be deleted$"):
        del loop._ready
    with pytest.raises(TypeError, match=r"^_scheduled: expected a list, got 5$"):
        loop._scheduled = 5
    loop.call_soon(loop.stop)
    loop.run_forever()


@only_fast
@pytest.mark.parametrize("what", ["clear", "replace", "push"])
@pytest.mark.parametrize("ours_too", [False, True])
def test_heap_changed_while_timers_are_compared_is_noticed_and_the_loop_goes_on(
    loop, what, ours_too
):
    budget = iter(range(200))

    def pull():
        if next(budget, None) is None:
            return
        if what == "clear":
            loop._scheduled.clear()
        elif what == "replace":
            loop._scheduled = []
        else:
            push(loop, asyncio.TimerHandle(loop.time(), int, (), loop))
        gc.collect(0)

    refused = []
    for _ in range(20):
        for _ in range(5):
            push(loop, Rug(loop, loop.time(), pull))
        if ours_too:
            try:
                loop.call_later(0, int)
            except RuntimeError as exc:
                refused.append(str(exc))
        refused += turns(loop, 3)
    assert [error for error in refused if "the loop's timers changed while" not in error] == []
    for _ in budget:
        pass
    loop._scheduled.clear()
    ran = []
    loop.call_later(0, ran.append, 1)
    assert turns(loop, 2) == [] and ran == [1]


def test_timer_scheduled_by_a_finalizer_while_cancelled_ones_are_dropped_is_not_lost(loop):
    """The collector may run where the heap is made smaller."""
    ran, count = [], 40

    class Cycle:
        def __init__(self, number):
            self.me, self.number = self, number

        def __del__(self):
            loop.call_at(loop.time(), ran.append, self.number)

    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1, 1000, 1000)
    try:
        for number in range(count):
            for timer in [loop.call_later(3600, int) for _ in range(60)]:
                timer.cancel()
            Cycle(number)
            loop.call_later(3600, int).cancel()  # drops those above
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert turns(loop, 3) == []
    assert sorted(ran) == [*range(count)]


@only_fast
def test_queue_that_is_cleared_ends_though_what_it_lets_go_adds_to_it(loop):
    class Again:
        def __del__(self):
            loop.call_soon(int, Again())

    loop.call_soon(int, Again())
    loop._ready.clear()
    assert len(loop._ready) == 1
    Again.__del__ = lambda self: None
    loop._ready.clear()


@only_fast
def test_turn_within_a_turn_runs_the_rest_once_and_in_order(loop):
    ran = []

    def inner():
        ran.append("inner")
        if len(ran) < 50:
            loop.call_soon(inner)
        loop._run_once()

    loop.call_soon(inner)
    for number in range(5):
        loop.call_soon(ran.append, number)
    loop.call_later(0, ran.append, "timer")
    assert turns(loop, 60) == []
    assert [each for each in ran if each != "inner"] == [0, 1, 2, 3, 4, "timer"]


@only_fast
def test_turn_within_a_protocols_callback_delivers_every_event_once(loop, run):
    class Turns(Recorder):
        def data_received(self, data):
            super().data_received(data)
            loop.call_soon(int)
            loop._run_once()

        def eof_received(self):
            loop.call_soon(int)
            loop._run_once()
            return super().eof_received()

    async def main():
        protocols = [Turns() for _ in range(3)]
        async with attached(protocols[0]) as (_, a), attached(protocols[1]) as (_, b):
            async with attached(protocols[2]) as (_, c):
                for peer in (a, b, c):
                    peer.send(b"data")
                    peer.shutdown(socket.SHUT_WR)
                for protocol in protocols:
                    await protocol.lost
        assert [protocol.calls for protocol in protocols] == [["made", b"data", "eof", "lost"]] * 3

    run(main())


@pytest.mark.parametrize("name", ["call_soon", "time", "_run_once", "call_later"])
def test_method_of_a_subclass_is_called(backend, name):
    called = []

    class Sub(pyloop.Loop):
        pass

    def method(self, *args, **options):
        called.append(name)
        return getattr(super(Sub, self), name)(*args, **options)

    setattr(Sub, name, method)
    loop = Sub(backend)
    try:
        loop.run_until_complete(asyncio.sleep(0.001))
    finally:
        loop.close()
    assert called


def test_loop_closed_by_a_callback_of_a_turn_that_is_nobodys_run_ends_well(backend):
    """Such code turns the loop by hand: close() does not know that it runs."""
    loop, ran = pyloop.Loop(backend), []
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.close)
    loop._run_once()
    assert ran == [1] and loop.is_closed()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.call_soon(print)


# ---- the module's own objects, by hand ----


@only_fast
def test_objects_made_by_hand_refuse_what_they_cannot_do(loop):
    module = fast.fastpath
    for kind in (module.Handle, module.TimerHandle):
        with pytest.raises(TypeError, match="cannot create"):
            kind()
        with pytest.raises(TypeError, match="not an acceptable base type"):
            type("Sub", (kind,), {})
    with pytest.raises(ValueError, match=r"^Walk: there is no core$"):
        module.Walk(ffi.NULL, print)
    walk = module.Walk.__new__(module.Walk)
    with pytest.raises(ValueError, match=r"^a batch of 5 events$"):
        walk.begin(5)
    walk.walk()
    assert walk.take() is None and walk.at(3) is None and walk.end() == []
    with pytest.raises(TypeError, match=r"^put: expected a slot, and a connection"):
        walk.put(1, object())
    with pytest.raises(ValueError, match="there are no so many"):
        walk.put(1 << 31, None)
    other = module.Walk(loop._core.ptr, print)
    with pytest.raises(ValueError, match=r"^_use_core: the loop has another walk$"):
        loop._use_core(loop._core.ptr, other)


@only_fast
def test_turn_without_a_loop_refuses_its_work(loop):
    turn = fast.fastpath.Turn()
    for name in ("call_soon", "call_later", "call_at", "_run_once"):
        with pytest.raises((TypeError, AttributeError)):
            getattr(turn, name)(*(1, print)[: 2 * (name != "_run_once")])
    for base in (fast.fastpath.ConnectionBase, fast.fastpath.TransportBase):
        conn = base.__new__(base)
        with pytest.raises(AttributeError):
            conn.write(b"data")
        with pytest.raises(AttributeError):
            conn.write("text")
        assert conn._ptr is ffi.NULL and conn._context is None
        with pytest.raises(AttributeError, match=r"^_ptr: cannot be deleted"):
            del conn._ptr


@only_fast
def test_deep_chain_of_handles_is_let_go_without_recursion(loop):
    for callback_of in (lambda handle: print, lambda handle: handle.cancel):
        handle = loop.call_soon(print)
        for _ in range(50_000):
            handle = loop.call_soon(callback_of(handle), handle)
            loop._ready.pop()
        del handle
        loop._ready.clear()


@only_fast
@pytest.mark.parametrize("order", ["module", "loop"])
def test_module_that_is_garbage_with_its_objects_is_freed(order):
    script = """if True:
        import gc, sys, weakref
        from collections import deque
        from importlib import util
        import pyloop
        from pyloop import core, fast
        from faults import say

        gc.disable()
        other = pyloop.Loop()
        spec = util.spec_from_file_location("pyloop._fastpath", fast.fastpath.__file__)
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.connect(core.address_of(core.lib.pl_api()))
        module.use_core(core.ffi.NULL, core.address_of)

        class Loop(module.Turn):
            time = staticmethod(lambda: 0.0)

        loop = Loop()
        loop._ready, loop._scheduled, loop.module = deque(), [], module
        loop.walk = module.Walk(other._core.ptr, print)
        loop.walk.put(3, module.ConnectionBase())
        kept = [loop.call_soon(print, loop) for _ in range(600)]
        kept += [loop.call_at(5, print, loop) for _ in range(600)]
        died = []
        refs = [weakref.ref(each, died.append) for each in (module, loop, kept[0], kept[-1])]
        conn = module.ConnectionBase()
        conn.state = [loop, *(conn.receive() for _ in range(600))]
        if sys.argv[1] == "loop":
            loop.kept = kept
            del kept[300:]
            loop._ready.clear()
        del module, spec, loop, kept, Loop, conn
        gc.collect()
        say(left=[str(ref()) for ref in refs if ref() is not None])
        other.close()
    """
    with Child(script, order) as child:
        assert child.next() == {"left": []}
        assert child.finish() == 0, child.errors()


def test_loop_with_everything_pending_at_the_interpreters_end_is_no_crash():
    script = """if True:
        import asyncio, socket, sys, warnings, pyloop
        warnings.simplefilter("ignore")
        loop = pyloop.Loop()
        asyncio.set_event_loop(loop)
        ours, peer = socket.socketpair()
        transport, _ = loop.run_until_complete(
            loop.create_connection(asyncio.Protocol, sock=ours))
        transport.write(b"data")
        handles = [loop.call_later(1000, print), loop.call_soon(print, transport)]
        task = loop.create_task(asyncio.sleep(1000))
        loop.me = loop, handles, task
        if len(sys.argv) > 1:
            for name in [name for name in sys.modules if name.startswith("pyloop")]:
                del sys.modules[name]
    """
    for args in ((), ("unload",)):
        with Child(script, *args) as child:
            assert child.finish() == 0, child.errors()
            assert "Fatal" not in child.errors()


def test_heap_of_others_is_one_for_heapq_too(loop):
    timers = [loop.call_at(number % 7, print) for number in range(50)]
    assert [heapq.heappop(loop._scheduled) for _ in timers] == sorted(
        timers, key=lambda timer: timer.when()
    )
