"""The loop's C twins: what other code may do to a loop, its queues and its handles, by any name.

All of it holds without the fast path too, and most of it on asyncio's own loop: see `ORACLE`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import itertools
import math
import random
import sys
import weakref

import pytest
from transports import ORACLE

from pyloop import fast
from pyloop.running import Running

SCHEDULE = ["call_soon", "call_soon_threadsafe", "call_later", "call_at"]


def schedule(loop, name, callback, *args, **options):
    """Call one of SCHEDULE with a time that has come."""
    when = {"call_later": (0,), "call_at": (loop.time(),)}.get(name, ())
    return getattr(loop, name)(*when, callback, *args, **options)


def turn(loop):
    loop.call_later(0, loop.stop)
    loop.run_forever()


# ---- handles ----


@ORACLE
def test_handle_is_asyncios_and_shows_what_it_holds(loop):
    for name in SCHEDULE:
        context = contextvars.copy_context()
        handle = schedule(loop, name, print, 1, "two", context=context)
        kind = asyncio.TimerHandle if name in ("call_later", "call_at") else asyncio.Handle
        assert isinstance(handle, kind) and type(handle).__name__ == kind.__name__
        assert (handle._callback, handle._args, handle._loop) == (print, (1, "two"), loop)
        assert handle._context is context and handle._source_traceback is None
        if sys.version_info >= (3, 12):
            assert handle.get_context() is context
        assert repr(handle).startswith(f"<{kind.__name__} ") and "print(" in repr(handle)
        assert handle.cancelled() is False and handle._cancelled is False
        handle.cancel()
        handle.cancel()
        assert handle.cancelled() is True and handle._cancelled is True
        assert handle._callback is None and handle._args is None
        assert "cancelled" in repr(handle)
        with pytest.raises(AttributeError):
            handle.unknown = 1


@ORACLE
def test_argument_of_a_handle_that_is_cancelled_as_it_runs_dies_outside_of_its_context(loop):
    class Dying:
        def __del__(self):
            seen.append(var.get())

    def cancel(argument):
        var.set("inside")
        handle.cancel()

    var = contextvars.ContextVar("var", default="outside")
    seen = []
    handle = loop.call_soon(cancel, Dying())
    turn(loop)
    assert seen == ["outside"]


@ORACLE
def test_handle_can_be_run_by_hand_and_referred_to_weakly(loop):
    for name in SCHEDULE:
        ran, died = [], []
        handle = schedule(loop, name, ran.append, 1)
        ref = weakref.ref(handle, died.append)
        handle._run()
        turn(loop)
        assert ran == [1, 1] and ref() is handle
        del handle
        assert ref() is None and died == [ref]


@ORACLE
def test_handle_whose_fields_were_changed_runs_what_it_has(loop):
    reports, ran = [], []
    loop.set_exception_handler(lambda _, context: reports.append(type(context["exception"])))
    handles = [loop.call_soon(print) for _ in range(3)]
    handles[0]._callback, handles[0]._args = ran.append, ("changed",)
    handles[1]._args = [1]  # asyncio takes any iterable
    handles[1]._callback = ran.append
    handles[2]._context = None
    turn(loop)
    assert ran == ["changed", 1] and reports == [AttributeError]


@ORACLE
def test_timers_compare_by_when_they_are_due(loop):
    late, early = loop.call_at(20, print), loop.call_at(10, print)
    assert early < late and not late < early and late > early
    assert early <= early and early == early and early != late
    assert hash(early) == hash(10.0) and early.when() == 10.0 == early._when
    assert sorted([late, early]) == [early, late]
    for timer in (early, late):
        timer.cancel()


@ORACLE
def test_handle_that_cancels_itself_finishes_and_then_holds_nothing(loop):
    cell = []

    def run(token):
        cell.pop().cancel()
        gc.collect()
        seen.append(token)

    seen = []
    cell.append(loop.call_soon(run, "token"))
    turn(loop)
    assert seen == ["token"]


@ORACLE
def test_callback_that_raises_is_reported_and_the_next_ones_run(loop):
    reports, ran = [], []
    loop.set_exception_handler(lambda _, context: reports.append(context))

    def fail(exc):
        raise exc

    for exc in (LookupError("a"), asyncio.CancelledError(), BaseException("b")):
        handle = loop.call_soon(fail, exc)
        loop.call_soon(ran.append, exc)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert reports[-1]["exception"] is exc is ran[-1] and reports[-1]["handle"] is handle
        assert reports[-1]["message"].startswith("Exception in callback test_callback")


@ORACLE
@pytest.mark.parametrize("exc", [SystemExit, KeyboardInterrupt])
def test_exit_leaves_the_run_and_the_next_one_goes_on(loop, exc):
    ran = []

    def leave():
        raise exc

    loop.call_soon(leave)
    loop.call_soon(ran.append, 1)
    with pytest.raises(exc):
        loop.run_forever()
    assert ran == []
    turn(loop)
    assert ran == [1]


# ---- wrong arguments ----

WRONG = [
    (TypeError, (), {}),
    (TypeError, (print,), {"unknown": 1}),
    (TypeError, (print,), {"context": None, "unknown": 1}),
    (TypeError, (print,), {"callback": print}),
]


def test_wrong_arguments_are_refused_as_the_python_twin_does(loop):
    for name, (error, args, options) in itertools.product(SCHEDULE, WRONG):
        before = (1.0,) * (name in ("call_later", "call_at"))
        with pytest.raises(error) as wanted:
            getattr(Running, name)(loop, *before, *args, **options)
        with pytest.raises(error) as got:
            getattr(loop, name)(*before, *args, **options)
        assert str(got.value) == str(wanted.value)
        assert len(loop._ready) == len(loop._scheduled) == 0


@ORACLE
@pytest.mark.parametrize("debug", [False, True])
def test_callback_and_context_are_taken_by_keyword_too(loop, debug):
    loop.set_debug(debug)
    var, seen = contextvars.ContextVar("var", default=0), []
    context = contextvars.copy_context()
    context.run(var.set, 5)
    word = "".join(["con", "text"])  # not the interned one

    def see():
        seen.append(var.get())

    for name in SCHEDULE:
        when = {"call_later": {"delay": 0}, "call_at": {"when": loop.time()}}.get(name, {})
        schedule(loop, name, see, **{word: context})
        schedule(loop, name, see, context=None)
        getattr(loop, name)(callback=see, context=context, **when)
        turn(loop)
        turn(loop)
    assert sorted(seen) == [0] * 4 + [5] * 8


def test_closed_loop_refuses_and_debug_mode_asks_for_the_thread(loop):
    loop.set_debug(True)
    for name in SCHEDULE:
        with pytest.raises(TypeError, match=r"^a callable object was expected by call_"):
            schedule(loop, name, 5)
    loop._thread_id = -1  # as while another thread runs it
    for name in ("call_soon", "call_later", "call_at"):
        with pytest.raises(RuntimeError, match=r"^Non-thread-safe operation invoked on an event"):
            schedule(loop, name, print)
    loop._thread_id = None
    loop.set_debug(False)
    loop.close()
    for name in SCHEDULE:
        with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
            schedule(loop, name, print)


def test_every_number_that_is_past_is_a_timer_that_is_due(loop):
    ran, delays = [], [False, 0, -5, -math.inf, 1e-320]
    for delay in delays:
        loop.call_later(delay, ran.append, delay)
    turn(loop)
    assert sorted(ran) == sorted(delays)


def test_times_that_are_no_numbers_are_refused(loop):
    for delay in ("1", object(), 10**400):
        with pytest.raises((TypeError, OverflowError)):
            loop.call_later(delay, print)
    assert loop._scheduled == []


# ---- the loop's own attributes ----


# ---- tasks ----


async def nothing():
    return asyncio.current_task()


class OwnTask(asyncio.Task):
    pass


@ORACLE
@pytest.mark.parametrize("debug", [False, True])
def test_task_has_the_name_and_context_that_were_given(loop, debug):
    loop.set_debug(debug)
    context = contextvars.copy_context()
    var = contextvars.ContextVar("var", default=0)
    context.run(var.set, 1)

    async def look():
        return var.get()

    task = loop.create_task(look(), name="named", context=context)
    other = loop.create_task(coro=look())
    assert (task.get_name(), task.get_loop()) == ("named", loop) and type(task) is asyncio.Task
    assert loop.run_until_complete(task) == 1
    assert loop.run_until_complete(other) == 0


@ORACLE
def test_task_factory_makes_the_tasks_until_it_is_taken_away(loop):
    asked = []

    def factory(loop, coro, **options):
        asked.append(options)
        return OwnTask(coro, loop=loop, **options)

    context = contextvars.copy_context()
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    tasks = [loop.create_task(nothing()), loop.create_task(nothing(), context=context)]
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    tasks.append(loop.create_task(nothing()))
    assert [type(task) for task in tasks] == [OwnTask, OwnTask, asyncio.Task]
    assert [options.get("context") for options in asked] == [None, context]
    assert [loop.run_until_complete(task) for task in tasks] == tasks


@ORACLE
def test_class_of_tasks_may_be_replaced(loop, monkeypatch):
    monkeypatch.setattr(asyncio.tasks, "Task", OwnTask)
    task = loop.create_task(nothing())
    assert type(task) is OwnTask and loop.run_until_complete(task) is task


@ORACLE
def test_task_that_cannot_be_made_is_refused(loop):
    with pytest.raises(TypeError, match="a coroutine was expected, got 1"):
        loop.create_task(1)
    coro = nothing()
    wrong = (((), {}), ((coro, "name"), {}), ((coro,), {"no": 1}), ((coro,), {"loop": loop}))
    for arguments, options in wrong:
        with pytest.raises(TypeError):
            loop.create_task(*arguments, **options)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coro)
    coro.close()


@ORACLE
def test_queues_are_read_and_filled_as_a_deque_and_a_heap(loop):
    ran = []
    first, third = loop.call_soon(ran.append, 1), loop.call_soon(ran.append, 3)
    ready = loop._ready
    assert len(ready) == 2 and ready and list(ready) == [first, third] and third in ready
    assert ready[0] is first and ready[-1] is third
    with pytest.raises(IndexError):
        ready[2]
    assert ready.pop() is third
    ready.append(asyncio.Handle(ran.append, (2,), loop))
    ready.extend([third])
    assert ready.popleft() is first
    ready.appendleft(first)
    timer = loop.call_later(0, ran.append, 4)
    assert heapq.heappop(loop._scheduled) is timer
    ready.append(timer)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1, 2, 3, 4] and not loop._ready and len(loop._ready) == 0
    with pytest.raises(IndexError):
        loop._ready.popleft()
    with pytest.raises(IndexError):
        loop._ready.pop()
    loop.call_soon(print)
    loop._ready.clear()
    assert not loop._ready


@ORACLE
def test_state_that_others_read_is_there(loop):
    assert loop._thread_id is None and loop._default_executor is None
    assert (loop._closed, loop._stopping, loop._debug) == (False, False, loop.get_debug())
    seen = []
    loop.call_soon(lambda: seen.append((loop._thread_id is not None, loop._stopping)))
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: seen.append(loop._stopping))
    loop.run_forever()
    assert seen == [(True, False), True] and loop._stopping is False


def test_cancelled_timers_behind_a_thousand_others_go_with_the_next_one(loop):
    kept = [loop.call_at(loop.time() + 1000 + i % 7, int) for i in range(1200)]
    for _ in range(10):
        loop.call_later(5000, int).cancel()
    last = loop.call_later(6000, int)
    assert loop._timer_cancelled_count == (0 if fast.fastpath else 10)
    assert len(loop._scheduled) - loop._timer_cancelled_count == 1201
    turn(loop)
    assert last in loop._scheduled and all(timer in loop._scheduled for timer in kept)


@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_timers_fire_in_order_whoever_made_them(loop, seed):
    chance = random.Random(seed)
    now, fired, due = loop.time(), [], []
    for number in range(3000):
        when = now - chance.randrange(50)
        loop.set_debug(chance.random() < 0.01)  # then they are asyncio's own
        timer = loop.call_at(when, fired.append, (when, number))
        if chance.random() < 0.4:
            timer.cancel()
        else:
            due.append((when, number))
    loop.set_debug(False)
    turn(loop)
    assert [when for when, _ in fired] == sorted(when for when, _ in due)
    assert sorted(fired) == sorted(due)
