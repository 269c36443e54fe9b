"""Channel in coroutines: put_async, get_async, async for, on every backend and asyncio's loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels import TIMEOUT, Maker, make, named, start, status_of
from conftest import open_fds

import pyloop

__all__ = ["make", "named"]


@pytest.fixture
def channel() -> Iterator[pyloop.Channel]:
    """A nameless one with room for 144 bytes: one message of 128, or 9 of up to 8."""
    with pyloop.Channel(capacity=144, max_message=128) as channel:
        yield channel


async def settle() -> None:
    """Let the tasks that were just made come to their waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiters(channel: pyloop.Channel, count: int) -> list[asyncio.Task[bytes]]:
    return [asyncio.create_task(channel.get_async()) for _ in range(count)]


# ---- on every backend ----


def test_coroutine_and_process_exchange_messages(run: Callable[..., Any], make: Maker) -> None:
    there, back = make(capacity=144), make(capacity=144)

    def answer() -> None:
        for message in there:
            back.put(message.upper(), TIMEOUT)
        back.shutdown()

    async def put_all() -> None:
        for number in range(100):
            await there.put_async(b"message %d" % number)
        there.shutdown()

    async def talk() -> list[bytes]:
        putting = asyncio.create_task(put_all())
        got = [message async for message in back]
        await putting
        return got

    pid = start(answer)
    assert run(talk()) == [b"MESSAGE %d" % number for number in range(100)]
    assert status_of(pid) == 0
    for each in (there, back):
        each.close()


def test_waiters_are_served_in_order(run: Callable[..., Any], channel: pyloop.Channel) -> None:
    async def main() -> list[bytes]:
        tasks = waiters(channel, 5)
        await settle()
        for number in range(5):
            channel.put_nowait(b"%d" % number)
        return await asyncio.gather(*tasks)

    assert run(main()) == [b"0", b"1", b"2", b"3", b"4"]


def test_newcomer_waits_behind_those_who_wait(
    run: Callable[..., Any], channel: pyloop.Channel
) -> None:
    async def main() -> list[bytes]:
        tasks = waiters(channel, 2)
        await settle()
        channel.put_nowait(b"first")  # the loop has not heard of it yet
        tasks += waiters(channel, 1)
        await settle()
        channel.put_nowait(b"second")
        channel.put_nowait(b"third")
        return await asyncio.gather(*tasks)

    assert run(main()) == [b"first", b"second", b"third"]


def test_cancelled_waiters_lose_no_message(
    run: Callable[..., Any], channel: pyloop.Channel
) -> None:
    """At each point between the bell and the wake-up that it causes."""

    async def main(turns: int) -> None:
        tasks = waiters(channel, 3)
        await settle()
        channel.put_nowait(b"a")
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = tasks[0].cancel()
        channel.put_nowait(b"b")
        channel.put_nowait(b"c")
        got = await asyncio.gather(*tasks, return_exceptions=True)
        if cancelled:
            assert isinstance(got[0], asyncio.CancelledError)
            assert [*got[1:], channel.get_nowait()] == [b"a", b"b", b"c"]
        else:
            assert got == [b"a", b"b", b"c"]

    for turns in range(6):
        run(main(turns))


def test_writers_wait_for_room_in_order(run: Callable[..., Any], channel: pyloop.Channel) -> None:
    async def main() -> list[bytes]:
        messages = [bytes([number]) * 120 for number in range(4)]
        tasks = [asyncio.create_task(channel.put_async(message)) for message in messages]
        await settle()
        tasks[2].cancel()
        got = [await channel.get_async() for _ in range(3)]
        await asyncio.gather(*tasks, return_exceptions=True)
        return [message[:1] for message in got]

    assert run(main()) == [b"\x00", b"\x01", b"\x03"]
    assert channel.used == 0


def test_message_is_taken_as_it_was_at_the_call(
    run: Callable[..., Any], channel: pyloop.Channel
) -> None:
    async def main() -> None:
        await channel.put_async(bytes(128))
        mutable = bytearray(b"before")
        putting = asyncio.create_task(channel.put_async(mutable))
        await settle()
        mutable[:] = b"after!"
        await channel.get_async()
        await putting
        assert await channel.get_async() == b"before"

    run(main())


def test_a_busy_channel_leaves_the_loop_its_turns(
    run: Callable[..., Any], channel: pyloop.Channel
) -> None:
    async def main() -> int:
        done = asyncio.Event()
        asyncio.get_running_loop().call_soon(done.set)
        count = 0
        while not done.is_set() and count < 10_000:
            await channel.put_async(b"x")
            await channel.get_async()
            count += 1
        return count

    assert run(main()) < 100


def test_close_and_shutdown_wake_all_waiters(
    run: Callable[..., Any], channel: pyloop.Channel
) -> None:
    async def main(end: Callable[[], None]) -> set[str]:
        tasks = waiters(channel, 3)
        await settle()
        end()
        return {str(exc) for exc in await asyncio.gather(*tasks, return_exceptions=True)}

    assert run(main(channel.shutdown)) == {"the nameless channel was shut down"}
    with pyloop.Channel() as channel:
        assert run(main(channel.close)) == {"the nameless channel is closed in this process"}


def test_wrong_messages_are_refused(run: Callable[..., Any], channel: pyloop.Channel) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"129 bytes is over the max_message .*, 128"):
            await channel.put_async(bytes(129))
        with pytest.raises(TypeError, match="expected bytes-like, got str"):
            await channel.put_async("text")  # type: ignore[arg-type]

    run(main())


# ---- other loops ----


def test_loops_of_several_threads_share_a_channel(channel: pyloop.Channel) -> None:
    got: list[bytes] = []

    async def take() -> None:
        got.extend([message async for message in channel])

    factories = [pyloop.Loop, asyncio.SelectorEventLoop, pyloop.Loop]

    def serve(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(take())

    threads = [threading.Thread(target=serve, args=(factory,)) for factory in factories]
    for thread in threads:
        thread.start()
    for number in range(300):
        channel.put(b"%d" % number, TIMEOUT)
    channel.shutdown()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(map(int, got)) == list(range(300))


def test_waiters_of_a_closed_loop_hold_nobody_up(channel: pyloop.Channel) -> None:
    loop = asyncio.SelectorEventLoop()
    task = loop.create_task(channel.get_async())
    loop.run_until_complete(settle())
    loop.close()

    async def main() -> bytes:
        tasks = waiters(channel, 1)
        await settle()
        channel.put_nowait(b"for the living")
        return await tasks[0]

    assert asyncio.run(main()) == b"for the living"
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_forked_child_waits_with_fds_of_its_own(channel: pyloop.Channel) -> None:
    async def main() -> None:
        tasks = waiters(channel, 1)
        await settle()
        pid = start(in_child)
        assert await tasks[0] == b"for the parent"
        os.write(tell, b"!")
        channel.put_nowait(b"for the child")
        assert await asyncio.get_running_loop().run_in_executor(None, status_of, pid) == 0

    def in_child() -> None:
        with pytest.raises(TimeoutError):
            channel.get(0.01)
        channel.put(b"for the parent")
        os.read(told, 1)  # or we might take it ourselves
        assert channel.get(TIMEOUT) == b"for the child"

    told, tell = os.pipe()
    asyncio.run(main())
    os.close(told)
    os.close(tell)


def test_no_fd_is_left_by_waiting() -> None:
    async def main() -> None:
        for close in (True, False):
            channel = pyloop.Channel()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await channel.get_async()
            if close:
                del channel
            await asyncio.sleep(0)  # until then the task keeps what cancelled it, and its frames
            gc.collect()

    async def count() -> int:
        before = open_fds()
        await main()
        return len(open_fds().items() - before.items())

    assert asyncio.run(count()) == 0
