"""Random programs whose callbacks do anything to the loop that runs them, at every point.

The same program runs on pyloop's loop and on an oracle, and both must have called the same things
in the same order: asyncio's own loop, and one whose turn is the Python twin's, with finalizers that
schedule. The program moves the clock, so no loop waits. A failure names its seed; more seeds by
PYLOOP_STRESS_SEEDS.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import os
import random
import weakref

import pytest

import pyloop
from pyloop.running import Running

SEEDS = int(os.environ.get("PYLOOP_STRESS_SEEDS", "2"))
VAR = contextvars.ContextVar("VAR", default=0)


class Fault(Exception):
    pass


class Clock:
    """Puts a clock of the program's own into a loop."""

    now = 0.0

    def time(self):
        return self.now


class OurLoop(Clock, pyloop.Loop):
    pass


class TheirLoop(Clock, asyncio.SelectorEventLoop):
    pass


class TwinLoop(OurLoop):
    """Schedules and turns as without the fast path."""

    call_soon = Running.call_soon
    call_soon_threadsafe = Running.call_soon_threadsafe
    call_later = Running.call_later
    call_at = Running.call_at
    _run_once = Running._run_once


class Dying:
    """An argument that schedules something when it is let go."""

    def __init__(self, program, number):
        self.program, self.number = program, number

    def __del__(self):
        program = self.program
        if not program.loop.is_closed() and program.budget > 0:
            program.loop.call_soon(program.step, f"died {self.number}")


class Program:
    """Callbacks that choose, by a seed, what they do next."""

    but_not = ("do_collect",)

    def __init__(self, loop, seed, budget=300):
        self.loop, self.random, self.budget, self.seen = loop, random.Random(seed), budget, 0
        self.log, self.handles, self.tasks, self.refs = [], [], [], []
        self.numbers = itertools.count()
        deeds = [name for name in dir(self) if name.startswith("do_") and name not in self.but_not]
        self.deeds = [getattr(self, name) for name in deeds]
        loop.set_exception_handler(self.reported)

    def reported(self, loop, context):
        self.log.append(("reported", repr(context.get("exception"))))

    # ---- what a callback does ----

    def step(self, name, *held):
        self.log.append((name, VAR.get(), self.loop._debug))
        self.budget -= 1
        if self.budget > 0:
            VAR.set(VAR.get() + 1)
            for deed in self.random.choices(self.deeds, k=self.random.randrange(1, 4)):
                deed()

    def chosen(self, handles):
        return self.random.choice(handles) if handles else None

    def keep(self, handle):
        if self.random.random() < 0.7:
            self.handles.append(handle)

    def do_soon(self):
        self.keep(self.loop.call_soon(self.step, f"soon {next(self.numbers)}"))

    def do_soon_in_context(self):
        context = contextvars.copy_context()
        self.keep(self.loop.call_soon(self.step, f"own {next(self.numbers)}", context=context))

    def do_threadsafe(self):
        self.keep(self.loop.call_soon_threadsafe(self.step, f"safe {next(self.numbers)}"))

    def do_later(self):
        number = next(self.numbers)  # no two are due at once: asyncio's order is then any
        delay = self.random.randrange(6) / 4 + number / (1 << 20)
        self.keep(self.loop.call_later(delay, self.step, f"later {number}"))

    def do_dying(self):
        number = next(self.numbers)
        self.keep(self.loop.call_soon(self.step, f"holds {number}", Dying(self, number)))

    def do_cancel(self):
        if self.handles:
            self.chosen(self.handles).cancel()

    def do_cancel_all(self):
        for handle in self.handles[::2]:
            handle.cancel()

    def do_many_cancelled(self):
        for number in range(60):
            self.loop.call_later(1000 + number, self.step, "never").cancel()

    def do_let_go(self):
        del self.handles[self.random.randrange(5) :]

    def do_refer(self):
        self.refs = [weakref.ref(handle, lambda ref: None) for handle in self.handles]

    def do_collect(self):
        if self.random.random() < 0.05:
            gc.collect()

    def do_run_by_hand(self):
        handle = self.chosen(self.handles)
        if handle and not handle.cancelled() and self.random.random() < 0.2:
            handle.cancel()
            assert handle.cancelled() and handle._callback is None

    def do_debug(self):
        if self.random.random() < 0.2:
            self.loop.set_debug(not self.loop.get_debug())

    def do_task(self):
        async def walk(number):
            try:
                for _ in range(number % 3):
                    await asyncio.sleep(0)
                    self.step(f"task {number}")
            except asyncio.CancelledError:
                self.step(f"cancelled {number}")

        self.tasks.append(self.loop.create_task(walk(next(self.numbers))))

    def do_cancel_task(self):
        if self.tasks:
            self.chosen(self.tasks).cancel()

    def do_raise(self):
        if self.random.random() < 0.3:
            raise self.random.choice([Fault, asyncio.CancelledError, GeneratorExit])("raised")

    def do_stop(self):
        if self.random.random() < 0.2:
            self.loop.stop()

    def do_leave(self):
        if self.random.random() < 0.05:
            raise self.random.choice([SystemExit, KeyboardInterrupt])

    # ---- the run ----

    def tick(self):
        """Move the clock, and have the loop never wait."""
        self.loop.now += 0.25
        if self.budget > 0:
            if len(self.log) == self.seen:
                self.loop.call_soon(self.step, "again")
            self.seen = len(self.log)
            self.loop.call_soon(self.tick)
        else:
            self.loop.stop()

    def run(self):
        for _ in range(10_000):
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:
                self.log.append(("left", type(exc)))
            if self.budget <= 0:
                break
        self.loop.set_debug(False)
        self.end()
        return self.log

    def end(self):
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
        self.tasks.clear()
        self.handles.clear()


def log_of(loop, seed, program):
    loop.slow_callback_duration = 1e9
    gc.collect()
    gc.disable()  # else finalizers come whenever it runs
    try:
        it = program(loop, seed)
        loop.call_soon(it.tick)
        return it.run()
    finally:
        gc.enable()
        loop.close()


class WithoutDeaths(Program):
    """When an exception's frames go is another matter on asyncio's loop."""

    but_not = ("do_dying",)


def same(ours, theirs, seed):
    for at, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
        assert one == other, f"seed {seed}, step {at}, after {ours[max(0, at - 5) : at]}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_callbacks_that_do_anything_run_in_asyncios_order(backend, seed):
    ours = log_of(OurLoop(backend), seed, WithoutDeaths)
    same(ours, log_of(TheirLoop(), seed, WithoutDeaths), seed)
    assert len(ours) > 200


@pytest.mark.parametrize("seed", range(SEEDS))
def test_callbacks_that_do_anything_run_in_the_twins_order(backend, seed):
    ours = log_of(OurLoop(backend), seed, Program)
    same(ours, log_of(TwinLoop(backend), seed, Program), seed)
    assert len(ours) > 200
