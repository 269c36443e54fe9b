"""What receive() and `async for` await: as a coroutine, with and without the fast path."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import weakref

import pytest
from peers import until

import pyloop
from pyloop.inbox import FULL, Inbox, PythonInbox

CLASSES = {PythonInbox: "python", Inbox: "served"}
"""The twin that serves, and the Python class, which may be the same."""


class Owner:
    """What an inbox asks of a connection and of its owner, and what it tells the connection."""

    read_limit = 100

    def __init__(self, loop):
        self.loop = loop
        self._owner = self
        self._gate = 0
        self.told = []

    def _pause(self, why):
        self._gate |= why
        self.told.append("pause")

    def _resume(self, why):
        self._gate &= ~why
        self.told.append("resume")

    def _end(self, exc):
        self.told.append(exc)


@pytest.fixture(params=CLASSES, ids=CLASSES.values())
def inbox(request, loop):
    owner = Owner(loop)
    yield (made := request.param(owner))
    assert made.waiter is None  # whatever a test did to who waited
    assert made.conn in (owner, None)


def step(awaiting):
    """Take one step: what it waits for, or ("returned", its result)."""
    try:
        return awaiting.send(None)
    except StopIteration as stop:
        return "returned", stop.value


# ---- a message ----


def test_message_that_is_there_is_returned_by_the_first_step(inbox):
    inbox.push(b"one")
    inbox.push(b"two")
    assert step(inbox.get()) == ("returned", b"one")
    assert step(inbox.get()) == ("returned", b"two")
    assert inbox.size == len(inbox.messages) == 0


def test_ctrl_c_while_a_full_inbox_pauses_has_woken_who_waits(inbox):
    def interrupt(why):
        raise KeyboardInterrupt

    receiving = inbox.get()
    future = step(receiving)
    inbox.conn._pause = interrupt
    with pytest.raises(KeyboardInterrupt):
        inbox.push(b"x" * Owner.read_limit)
    assert future.done()
    assert step(receiving) == ("returned", b"x" * Owner.read_limit)


def test_receive_that_was_never_awaited_takes_nothing(inbox):
    inbox.push(b"one")
    inbox.get().close()
    assert step(inbox.get()) == ("returned", b"one")


def test_message_that_comes_ends_the_wait(inbox, run):
    async def main():
        for n in range(3):
            asyncio.get_running_loop().call_soon(inbox.push, b"%d" % n)
            assert await inbox.get() == b"%d" % n

    run(main())


def test_receive_as_a_task_gives_the_message(inbox, run):
    async def main():
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        assert inbox.waiter is not None
        inbox.push(b"one")
        assert await task == b"one"

    run(main())


def test_wait_for_that_is_late_loses_nothing(inbox, run):
    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.get(), 0.001)
        assert inbox.waiter is None
        inbox.push(b"one")
        assert await asyncio.wait_for(inbox.get(), 30) == b"one"

    run(main())


def test_cancelled_receive_leaves_the_message_of_the_same_turn(inbox, run):
    async def main():
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        inbox.push(b"one")
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inbox.waiter is None
        assert await inbox.get() == b"one"

    run(main())


def test_second_receive_at_once_is_refused(inbox, run):
    async def main():
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError) as refused:
            await inbox.get()
        assert str(refused.value) == "another receive() is already waiting on this connection"
        inbox.push(b"one")
        assert await task == b"one"

    run(main())


def test_wake_without_a_message_waits_again(inbox, run):
    async def main():
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        first = inbox.waiter
        first.set_result(None)
        await until(lambda: inbox.waiter is not first)
        inbox.push(b"one")
        assert await task == b"one"

    run(main())


def test_messages_of_a_batch_wake_once(inbox, loop, run):
    woken = []

    class Future(asyncio.Future):
        def set_result(self, result):
            woken.append(result)
            super().set_result(result)

    async def main():
        loop.create_future = lambda: Future(loop=loop)
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        for n in range(10):
            inbox.push(b"%d" % n)
        assert await task == b"0"
        assert [await inbox.get() for _ in range(9)] == [b"%d" % n for n in range(1, 10)]
        assert woken == [None]

    run(main())


# ---- its limit, and its end ----


def test_full_inbox_pauses_and_goes_on_at_half(inbox):
    for _ in range(4):
        inbox.push(b"x" * 25)
    assert (inbox.conn.told, inbox.conn._gate) == (["pause"], FULL)
    step(inbox.get())
    assert inbox.conn.told == ["pause"]
    step(inbox.get())
    assert (inbox.conn.told, inbox.conn._gate) == (["pause", "resume"], 0)


def test_empty_messages_fill_it_too(inbox):
    for _ in range(Owner.read_limit):
        assert inbox.conn.told == []
        inbox.push(b"")
    assert inbox.conn.told == ["pause"]
    for _ in range(Owner.read_limit):
        assert step(inbox.get()) == ("returned", b"")
    assert inbox.size == 0


def test_many_messages_keep_their_order_while_some_are_taken(inbox):
    inbox.conn.read_limit = 1 << 20
    pushed = taken = 0
    for count in (1, 63, 64, 65, 200, 1000):
        for _ in range(count):
            inbox.push(b"%d" % pushed)
            pushed += 1
        for _ in range(count - 1):
            assert step(inbox.get()) == ("returned", b"%d" % taken)
            taken += 1
    while taken < pushed:
        assert step(inbox.get()) == ("returned", b"%d" % taken)
        taken += 1
    assert not inbox.messages


def test_end_in_good_order_comes_after_the_messages(inbox):
    inbox.push(b"one")
    inbox.end(None)
    assert [step(inbox.get()) for _ in range(3)] == [
        *[("returned", b"one"), ("returned", None), ("returned", None)]
    ]


def test_end_because_of_an_error_raises_a_copy_of_it(inbox):
    error = ConnectionResetError(104, "reset")
    inbox.end(error)
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="reset") as raised:
            inbox.get().send(None)
        assert raised.value is not error
    assert [str(told) for told in inbox.conn.told] == [str(error)] * 2


def test_end_wakes_who_waits(inbox, run):
    async def main():
        task = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        inbox.end(None)
        inbox.conn = None
        assert await task is None

    run(main())


def test_dropped_messages_are_gone(inbox):
    inbox.push(b"one")
    inbox.drop(pyloop.ConnectionClosed("closed here"))
    with pytest.raises(pyloop.ConnectionClosed, match="closed here"):
        inbox.get().send(None)
    assert inbox.size == len(inbox.messages) == 0


# ---- as a coroutine ----


def test_it_passes_for_a_coroutine(inbox):
    waiting = inbox.get()
    assert inspect.isawaitable(waiting)
    assert asyncio.iscoroutine(waiting)
    assert isinstance(waiting, collections.abc.Coroutine)
    assert not asyncio.isfuture(waiting)
    waiting.close()


def test_done_it_cannot_be_awaited_again(inbox, run):
    inbox.push(b"one")
    inbox.push(b"two")

    async def main():
        waiting = inbox.get()
        assert await waiting == b"one"
        with pytest.raises(RuntimeError, match=r"^cannot reuse already awaited coroutine$"):
            await waiting
        with pytest.raises(RuntimeError, match=r"^cannot reuse already awaited coroutine$"):
            waiting.throw(KeyError("late"))
        waiting.close()

    run(main())
    assert list(inbox.messages) == [b"two"]


def test_waiting_it_cannot_be_awaited_by_another(inbox, run):
    async def main():
        waiting = inbox.get()

        async def wait():
            return await waiting

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"^coroutine is being awaited already$"):
            await waiting
        inbox.push(b"one")
        assert await task == b"one"

    run(main())


def test_first_step_takes_no_value(inbox):
    inbox.push(b"one")
    waiting = inbox.get()
    with pytest.raises(TypeError, match=r"^can't send non-None value to a just-started coroutine$"):
        waiting.send(1)
    assert step(waiting) == ("returned", b"one")


@pytest.mark.parametrize("steps", [0, 1])
def test_thrown_exception_ends_it(inbox, steps):
    waiting = inbox.get()
    for _ in range(steps):
        assert step(waiting) is inbox.waiter
    with pytest.raises(KeyError, match="thrown") as raised:
        waiting.throw(error := KeyError("thrown"))
    assert raised.value is error
    assert inbox.waiter is None
    inbox.push(b"one")
    assert step(inbox.get()) == ("returned", b"one")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exception_may_be_thrown_in_three_parts(inbox):
    try:
        raise ValueError
    except ValueError as exc:
        traceback = exc.__traceback__
    with pytest.raises(KeyError, match="thrown") as raised:
        inbox.get().throw(KeyError, "thrown", traceback)
    assert traceback in [entry._rawentry for entry in raised.traceback]
    with pytest.raises(KeyError):
        inbox.get().throw(KeyError)


WRONG = {
    "no exception": ((1,), "exceptions must be classes or instances deriving from BaseException"),
    "value twice": ((KeyError(), 1), "instance exception may not have a separate value"),
    "no traceback": ((KeyError, None, 1), "throw.. third argument must be a traceback object"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("args", "text"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_thrown_is_refused(inbox, args, text):
    waiting = inbox.get()
    with pytest.raises(TypeError, match=text):
        waiting.throw(*args)
    waiting.close()


@pytest.mark.parametrize("steps", [0, 1])
def test_closed_it_waits_no_more(inbox, steps):
    waiting = inbox.get()
    for _ in range(steps):
        step(waiting)
    waiting.close()
    waiting.close()
    assert inbox.waiter is None
    with pytest.raises(RuntimeError, match=r"^cannot reuse already awaited coroutine$"):
        step(waiting)


def test_dropped_while_it_waits_it_waits_no_more(inbox):
    waiting = inbox.get()
    step(waiting)
    assert inbox.waiter is not None
    del waiting
    assert inbox.waiter is None


def test_collected_while_it_waits_it_leaves_nothing(inbox, loop):
    destroyed = []
    loop.set_exception_handler(lambda loop, context: destroyed.append(context["message"]))

    async def wait(other):
        await other.get()

    owner = Owner(loop)
    task = loop.create_task(wait(type(inbox)(owner)))  # it, its inbox and its future: a cycle
    loop.run_until_complete(asyncio.sleep(0))
    owner, gone = None, weakref.ref(owner)
    del task
    gc.collect()
    assert gone() is None
    assert destroyed == ["Task was destroyed but it is pending!"]
