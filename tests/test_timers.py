"""Timers: never early, in order, finer than a millisecond, and no memory for the cancelled."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import tracemalloc

import pytest

import pyloop

MANY = 3000
SPREAD = 0.05
SMALL = 1.0 / (1 << 20)


def run_all(loop, seconds=SPREAD):
    """Run until what is scheduled within `seconds` has fired."""
    loop.call_at(loop.time() + seconds + SMALL, loop.stop)
    loop.run_forever()


@pytest.mark.parametrize("debug", [False, True])
def test_timer_is_never_early(loop, debug):
    """Deadlines wherever they fall between two ticks of the clock, each looked at as it fires."""
    loop.set_debug(debug)
    loop.slow_callback_duration = math.inf
    rng, fired, early = random.Random(1), [], []

    def fire(timer):
        now = loop.time()
        fired.append(timer[0])
        if now < timer[0].when():
            early.append((now, timer[0].when()))

    count = MANY // 10 if debug else MANY
    timers = []
    for _ in range(count):
        cell = []
        cell.append(loop.call_later(rng.random() * SPREAD, fire, cell))
        timers.append(cell[0])
    run_all(loop)
    assert len(fired) == count and early == []
    assert fired == sorted(timers, key=lambda timer: timer.when())


@pytest.mark.parametrize("debug", [False, True])
def test_equal_deadlines_fire_in_the_order_of_their_calls(loop, debug):
    loop.set_debug(debug)
    rng, fired = random.Random(2), []
    start = loop.time()
    wanted = [(start + rng.randrange(5) / 1000, number) for number in range(1000)]
    for when, number in wanted:
        timer = loop.call_at(when, fired.append, (when, number))
        if number % 3 == 0:  # holes in the heap change nothing of it
            timer.cancel()
    run_all(loop)
    assert fired == sorted(pair for pair in wanted if pair[1] % 3)


def test_timers_are_finer_than_a_millisecond(loop):
    """Twenty steps of 0.2 ms end before 18 ms have passed: with waits of whole ones they never do.

    Some attempt of many: others use the machine too.
    """

    async def steps_first():
        order = []
        late = loop.call_later(0.018, order.append, "late")
        for _ in range(20):
            step = loop.create_future()
            loop.call_later(0.0002, step.set_result, None)
            await step
        order.append("steps")
        late.cancel()
        return order[0] == "steps"

    async def main():
        for _ in range(200):
            if await steps_first():
                return True
        return False

    assert loop.run_until_complete(main())


def test_call_later_of_nothing_is_a_timer_that_fires_with_the_next_turn(loop):
    order = []
    before = loop.time()
    timers = [loop.call_later(delay, order.append, delay) for delay in (0, -1)]
    loop.call_soon(order.append, "soon")
    assert [type(timer).__name__ for timer in timers] == ["TimerHandle"] * 2
    assert isinstance(timers[0], asyncio.TimerHandle) and not timers[0].cancelled()
    assert before <= timers[0].when() <= loop.time() and timers[1].when() < before
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["soon", -1, 0]


# ---- cancelled ----


def test_cancelled_timers_do_not_pile_up_within_a_callback(loop):
    kept = [loop.call_later(3600 + number, print) for number in range(10)]
    loop.run_until_complete(asyncio.sleep(0))  # what a first run makes once
    most = []

    def churn():
        for count in (100_000, 10_000):
            for _ in range(count):
                loop.call_later(3600, print).cancel()
            most.append(len(loop._scheduled))
            tracemalloc.start()  # slow, so not for all of them
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        loop.stop()

    loop.call_soon(churn)
    loop.run_forever()
    assert max(most[:2]) < 200 and most[2] < 64 * 1024
    assert all(timer in loop._scheduled for timer in kept)
    assert not any(timer.cancelled() for timer in kept)


def test_timers_cancelled_at_once_are_let_go_with_the_next_turn(loop):
    kept = loop.call_later(3600, print)
    timers = [loop.call_later(3600, print) for _ in range(1000)]
    for timer in timers:
        timer.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop._scheduled == [kept] and not any(timer._scheduled for timer in timers)


@pytest.mark.parametrize("debug", [False, True])
def test_any_mixture_of_cancelling_fires_the_others_once_and_in_order(loop, debug):
    loop.set_debug(debug)
    rng, fired, alive = random.Random(3), [], {}
    start = loop.time()
    for number in range(2000):
        when = start + rng.randrange(40) / 1000
        alive[number] = when, loop.call_at(when, fired.append, number)
        for _ in range(rng.randrange(3)):
            if alive and rng.random() < 0.6:
                _, timer = alive.pop(rng.choice(list(alive)))
                timer.cancel()
                timer.cancel()  # which changes nothing
    run_all(loop)
    assert fired == sorted(alive, key=lambda number: (alive[number][0], number))
    assert loop._scheduled == [] and loop._timer_cancelled_count == 0


def test_timer_cancelled_by_one_that_fires_with_it_does_not_fire(loop):
    fired = []
    when = loop.time() + 0.001
    first = loop.call_at(when, lambda: (fired.append("first"), second.cancel()))
    second = loop.call_at(when, fired.append, "second")
    run_all(loop)
    assert fired == ["first"] and second.cancelled() and not first.cancelled()


def test_cancelled_timer_holds_neither_callback_nor_arguments(loop):
    timer = loop.call_later(3600, print, object())
    timer.cancel()
    assert timer._callback is None and timer._args is None
    assert repr(timer).startswith("<TimerHandle cancelled when=")


# ---- times that are none ----


@pytest.mark.parametrize("delay", [1e12, math.inf, 10**30])
def test_far_timer_leaves_the_loop_as_it_is(loop, delay):
    timer = loop.call_later(delay, print, "never")
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert timer.when() >= delay
    loop._write_to_self()  # and alone, it is waited for until something else comes
    timer2 = loop.call_later(delay, print, "never")
    loop.run_in_executor(None, loop.call_soon_threadsafe, loop.stop)
    loop.run_forever()
    timer.cancel()
    timer2.cancel()


@pytest.mark.parametrize("debug", [False, True])
def test_wrong_times_are_refused(loop, debug):
    loop.set_debug(debug)
    with pytest.raises(TypeError, match=r"^delay must not be None$"):
        loop.call_later(None, print)
    with pytest.raises(TypeError, match=r"^when cannot be None$"):
        loop.call_at(None, print)
    for call in (loop.call_later, loop.call_at):
        with pytest.raises(ValueError, match=r"^a timer's time is NaN: expected seconds$"):
            call(math.nan, print)
    assert loop._scheduled == []


def test_closed_loop_takes_no_timers():
    loop = pyloop.Loop()
    loop.close()
    for call in (loop.call_later, loop.call_at, loop.call_soon):
        with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
            call(1, print)


def test_debug_mode_checks_callbacks_and_remembers_who_scheduled(loop):
    async def coroutine():
        pass

    loop.set_debug(True)
    timers = [loop.call_later(1, print), loop.call_at(1, print), loop.call_soon(print)]
    for timer in timers:
        assert (
            timer._source_traceback[-1].name
            == "test_debug_mode_checks_callbacks_and_remembers_who_scheduled"
        )
        timer.cancel()
    for call, args in ((loop.call_at, (1,)), (loop.call_later, (1,)), (loop.call_soon, ())):
        with pytest.raises(TypeError, match="coroutines cannot be used with"):
            call(*args, coroutine)
        with pytest.raises(TypeError, match="a callable object was expected by"):
            call(*args, "text")


# ---- other people's ----


def test_timers_of_asyncio_stand_in_the_same_heap(loop):
    fired, when = [], loop.time() + 0.001
    for number in range(20):
        if number % 2:
            timer = asyncio.TimerHandle(when, fired.append, (number,), loop)
            timer._scheduled = True
            heapq.heappush(loop._scheduled, timer)
        else:
            loop.call_at(when, fired.append, number)
    loop.call_at(when - SMALL, fired.append, -1)
    run_all(loop)
    assert fired[0] == -1 and sorted(fired) == [-1, *range(20)]


def test_clock_of_a_subclass_is_asked(backend):
    class Fast(pyloop.Loop):
        def time(self):
            return super().time() * 1000

    loop = Fast(backend)
    try:
        timer = loop.call_later(0.02, loop.stop)
        loop.run_forever()
        assert loop.time() >= timer.when() > pyloop.Loop.time() * 500
    finally:
        loop.close()
