"""What a Loop takes over from asyncio, on every backend and as the Python version has it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from peers import until

import pyloop

since_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")


def has(method, argument):
    return argument in inspect.signature(method).parameters


# ---- signals ----


def test_signal_handler_runs_in_the_loop_and_also_in_a_second_run(loop, run):
    async def main():
        came = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, lambda: came.set())
        os.kill(os.getpid(), signal.SIGUSR1)
        await came.wait()
        assert threading.current_thread() is threading.main_thread()

    former = signal.getsignal(signal.SIGUSR1)
    try:
        run(main())
        run(main())
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_loop_run_inside_another_hears_its_own_signal_and_gives_the_other_back(backend, loop, run):
    heard = []

    def inner():
        async def wait():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, heard.append, "inner")
            os.kill(os.getpid(), signal.SIGUSR2)
            await until(lambda: heard)

        nested = pyloop.Loop(backend)
        asyncio.events._set_running_loop(None)
        try:
            nested.run_until_complete(wait())
        finally:
            asyncio.events._set_running_loop(loop)
            nested.close()

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "outer")
        inner()
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: len(heard) == 2)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())
    assert heard == ["inner", "outer"]


def test_signal_handler_that_cannot_be_is_refused(loop, run):
    async def main():
        with pytest.raises(RuntimeError, match="sig 9 cannot be caught"):
            loop.add_signal_handler(signal.SIGKILL, print)
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            loop.add_signal_handler(signal.SIGUSR1, asyncio.sleep)
        with ThreadPoolExecutor(1) as pool:
            adding = loop.run_in_executor(pool, loop.add_signal_handler, signal.SIGUSR1, print)
            with pytest.raises(RuntimeError, match="main thread"):
                await adding

    run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_out_of_a_callback_leaves_the_run_and_the_loop_usable(loop, run, error):
    def interrupt():
        raise error("now")

    later = []
    loop.call_soon(interrupt)
    loop.call_soon(later.append, 1)
    with pytest.raises(error, match="now"):
        loop.run_forever()
    run(asyncio.sleep(0))
    assert later == [1] and not loop.is_running()


# ---- executors, generators, handlers ----


def test_executor_returns_raises_and_may_be_chosen(loop, run):
    async def main():
        assert await loop.run_in_executor(None, pow, 2, 10) == 1024
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 1, 0)
        context = contextvars.ContextVar("context")
        context.set("copied")
        assert await asyncio.to_thread(context.get) == "copied"
        with ThreadPoolExecutor(1, thread_name_prefix="chosen") as pool:
            loop.set_default_executor(pool)
            name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
            assert name.startswith("chosen")
            await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="shutdown"):
            loop.run_in_executor(None, print)

    run(main())


def test_generators_that_are_left_are_closed(loop, run):
    ended = []

    async def numbers(name):
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def main():
        dropped, held = numbers("dropped"), numbers("held")
        await anext(dropped)
        await anext(held)
        del dropped
        gc.collect()
        await until(lambda: ended == ["dropped"])
        await loop.shutdown_asyncgens()
        assert ended == ["dropped", "held"]

    run(main())


def test_exception_handler_is_told_what_nobody_awaits(loop, run):
    told = []

    async def fail():
        raise ValueError("nobody looks")

    async def main():
        loop.set_exception_handler(lambda loop, context: told.append(context))
        loop.call_soon(lambda: 1 / 0)
        task = loop.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()
        await until(lambda: len(told) == 2)

    run(main())
    assert isinstance(told[0]["exception"], ZeroDivisionError) and "handle" in told[0]
    assert str(told[1]["exception"]) == "nobody looks"
    assert told[1]["message"] == "Task exception was never retrieved"
    assert loop.get_exception_handler() is not None


def test_thread_check_of_debug_mode_names_call_soon_threadsafe(loop, run):
    async def main():
        loop.set_debug(True)
        said = "Non-thread-safe operation invoked on an event loop other than the current one"
        for call in (lambda: loop.call_soon(print), lambda: loop.call_later(1, print)):
            with pytest.raises(RuntimeError, match=said):
                await loop.run_in_executor(None, call)

    run(main())


# ---- tasks ----


def test_create_task_takes_what_this_version_takes(loop, run):
    async def main():
        name = contextvars.ContextVar("name")
        context = contextvars.copy_context()
        context.run(name.set, "given")

        async def look():
            return name.get()

        task = loop.create_task(look(), name="looker", context=context)
        assert task.get_name() == "looker" and await task == "given"
        if sys.version_info >= (3, 14):
            assert await loop.create_task(asyncio.sleep(0, 1), eager_start=True) == 1

    run(main())


def test_task_factory_makes_the_tasks(loop, run):
    made = []

    def factory(loop, coro, **kwargs):
        made.append(kwargs)
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main():
        loop.set_task_factory(factory)
        context = contextvars.copy_context()
        assert await loop.create_task(asyncio.sleep(0, "done"), context=context) == "done"
        assert loop.get_task_factory() is factory
        loop.set_task_factory(None)

    run(main())
    assert made[0]["context"] is not None
    with pytest.raises(TypeError, match="must be a callable"):
        loop.set_task_factory(1)


@since_3_12
def test_eager_task_runs_to_its_first_wait_at_once(loop, run):
    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        steps = []

        async def work():
            steps.append("started")
            await asyncio.sleep(0)
            steps.append("ended")

        task = loop.create_task(work())
        assert steps == ["started"]
        await task
        assert steps == ["started", "ended"]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"there")
            task = loop.create_task(loop.sock_recv(ours, 8))
            assert task.done() and task.result() == b"there"

    run(main())


# ---- connecting ----


def answering(monkeypatch, loop, *addresses):
    async def resolve(host, port, **kwargs):
        kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(family, *kind, (address, port)) for family, address in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)


NOBODY_4 = (socket.AF_INET, "127.0.0.2")


def test_happy_eyeballs_reach_the_address_that_answers(loop, run, monkeypatch):
    async def main():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            someone = (socket.AF_INET, "127.0.0.1")
            answering(monkeypatch, loop, (socket.AF_INET6, "::1"), NOBODY_4, someone)
            reader, writer = await asyncio.open_connection(
                "name.test", port, happy_eyeballs_delay=0.01
            )
            assert writer.get_extra_info("peername") == ("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(main())


def test_all_addresses_that_fail_are_told(loop, run, monkeypatch):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        answering(monkeypatch, loop, NOBODY_4, (socket.AF_INET, "127.0.0.1"))
        with pytest.raises(OSError, match=r"Multiple exceptions: .*127.0.0.2.*127.0.0.1"):
            await loop.create_connection(asyncio.Protocol, "name.test", port)
        if has(loop.create_connection, "all_errors"):  # from 3.12 on
            with pytest.raises(ExceptionGroup) as caught:
                await loop.create_connection(asyncio.Protocol, "name.test", port, all_errors=True)
            assert [type(exc) for exc in caught.value.exceptions] == [ConnectionRefusedError] * 2

    run(main())


@pytest.mark.skipif(
    not has(asyncio.SelectorEventLoop.create_server, "keep_alive"), reason="new in Python 3.13"
)
def test_server_keeps_connections_alive_on_demand(loop, run):
    async def main():
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, keep_alive=True)
        async with server:
            sock = server.sockets[0]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(main())
