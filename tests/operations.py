"""What a loop does all day, each kind as a function that does it `count` times and leaves nothing.

For tests/test_fastpath_leaks.py and its long run in tests/soak: after a first round, memory blocks
and references are as many after any number of operations.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

from encryption import encrypted, encrypted_native
from packets import WRITABLE, datagrams

import pyloop

CONTEXT = contextvars.copy_context()
AT_ONCE = 500


def fail() -> None:
    raise LookupError("a fault")


def turn(loop: pyloop.Loop) -> None:
    """Run what is ready and due."""
    loop.call_later(0, loop.stop)
    loop.run_forever()


def in_parts(count: int, loop: pyloop.Loop, do: Callable[[], Any]) -> None:
    """Do it `count` times, with a turn of the loop now and then."""
    for number in range(count):
        do()
        if number % AT_ONCE == 0:
            turn(loop)
    turn(loop)


# ---- scheduling ----


def soon(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_soon(int))


def soon_with_arguments(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_soon(max, 1, 2, 3, context=CONTEXT))


def soon_cancelled(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_soon(max, 1, 2).cancel())


def cancelled_after_it_ran(loop: pyloop.Loop, count: int) -> None:
    handles: list[Any] = []

    def do() -> None:
        handles.append(loop.call_soon(list, ()))
        handles.append(loop.call_later(0, list, ()))
        if len(handles) > AT_ONCE:
            turn(loop)
            for handle in handles:
                handle.cancel()
            handles.clear()

    in_parts(count, loop, do)


def later_cancelled(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_later(3600, list, ()).cancel())


def later_fired(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_later(0, list, (), context=CONTEXT))


def at_fired(loop: pyloop.Loop, count: int) -> None:
    in_parts(count, loop, lambda: loop.call_at(-1, list, ()))


def from_a_thread(loop: pyloop.Loop, count: int) -> None:
    def call() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(list, ())
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=call)
    thread.start()
    loop.run_forever()
    thread.join()


def raising(loop: pyloop.Loop, count: int) -> None:
    loop.set_exception_handler(lambda loop, context: None)
    in_parts(count, loop, lambda: loop.call_soon(fail))
    loop.set_exception_handler(None)


def exiting(loop: pyloop.Loop, count: int) -> None:
    for _ in range(count // 20):
        loop.call_soon(sys.exit)
        try:
            loop.run_forever()
        except SystemExit:
            pass


def refused(loop: pyloop.Loop, count: int) -> None:
    def do() -> None:
        for call in (lambda: loop.call_soon(), lambda: loop.call_later(float("nan"), int)):
            try:
                call()
            except (TypeError, ValueError):
                pass

    in_parts(count // 2, loop, do)


def weakly_referred_to(loop: pyloop.Loop, count: int) -> None:
    died: list[object] = []

    def do() -> None:
        refs = [weakref.ref(call, died.append) for call in (loop.call_soon(int),)]
        refs.append(weakref.ref(loop.call_later(0, int)))
        turn(loop)
        assert [ref() for ref in refs] == [None, None]

    for _ in range(count // 20):
        do()
    assert len(died) == count // 20


def in_debug_mode(loop: pyloop.Loop, count: int) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 3600
    in_parts(count // 20, loop, lambda: loop.call_later(0, loop.call_soon, int))
    loop.set_debug(False)
    turn(loop)


def tasks(loop: pyloop.Loop, count: int) -> None:
    async def switch() -> None:
        for _ in range(count // 20):
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(switch() for _ in range(10)))

    loop.run_until_complete(main())


def cycles(loop: pyloop.Loop, count: int) -> None:
    """Handles that hold themselves: the collector's."""
    for number in range(count):
        holds: list[Any] = []
        holds.append(loop.call_soon(int, holds))
        holds.append(loop.call_later(3600, int, holds))
        if number % AT_ONCE == 0:
            loop._ready.clear()
            loop._scheduled.clear()
    loop._ready.clear()
    loop._scheduled.clear()
    gc.collect()


def watchers(loop: pyloop.Loop, count: int) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        for _ in range(count // 20):
            loop.add_reader(ours, list, ())
            loop.add_writer(ours, list, ())
            loop.remove_reader(ours)
            loop.remove_writer(ours)
        peer.send(b"x")
        for _ in range(count // 20):
            loop.add_reader(ours, loop.stop)
            loop.run_forever()
        loop.remove_reader(ours)


def loops(loop: pyloop.Loop, count: int) -> None:
    for _ in range(count // 200):
        other = pyloop.Loop(loop.backend)
        other.call_soon(int, other)
        other.call_later(3600, int, other)
        turn(other)
        other.close()


# ---- connections ----


async def _pair(protocol: Any) -> tuple[Any, socket.socket]:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    return transport, peer


class Ended(asyncio.Protocol):
    """A protocol that tells when it is lost, and how many bytes it got."""

    def __init__(self) -> None:
        self.received = 0
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


def written(loop: pyloop.Loop, count: int) -> None:
    """Bytes of every type, and what is refused, also when it is closed."""

    async def main() -> None:
        protocol = Ended()
        transport, peer = await _pair(protocol)
        for number in range(count):
            try:
                transport.write(WRITABLE[number % len(WRITABLE)])
            except TypeError:
                pass
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
                peer.recv(1 << 20)
        transport.writelines([b"a", bytearray(b"b")])
        transport.abort()
        for data in WRITABLE * 3:
            try:
                transport.write(data)
            except TypeError:
                pass
        await protocol.lost
        peer.close()

    loop.run_until_complete(main())


def received(loop: pyloop.Loop, count: int) -> None:
    async def main() -> None:
        protocol = Ended()
        _, peer = await _pair(protocol)
        for _ in range(count // 20):
            peer.send(b"data")
            await asyncio.sleep(0)
        peer.close()
        await protocol.lost
        assert protocol.received == count // 20 * 4

    loop.run_until_complete(main())


def made_and_lost(loop: pyloop.Loop, count: int) -> None:
    async def main() -> None:
        for number in range(count // 100):
            protocol = Ended()
            transport, peer = await _pair(protocol)
            transport.write(b"data")
            if number % 3 == 0:
                transport.close()
            elif number % 3 == 1:
                transport.abort()
            peer.close()
            await protocol.lost

    loop.run_until_complete(main())


def native(loop: pyloop.Loop, count: int) -> None:
    """Messages and connections of a server, in all its kinds of handler, some of which raise."""

    def function(conn: Any, message: bytes) -> None:
        conn.send(message)
        for wrong in ("text", None, b"two\nlines"):
            try:
                conn.send(wrong)
            except (TypeError, ValueError):
                pass
        if message == b"raise":
            raise LookupError("a fault")

    class Class(pyloop.Protocol):
        def connection_made(self, conn: Any) -> None:
            self.conn = conn

        def message_received(self, message: bytes) -> None:
            function(self.conn, message)

    async def coroutine(conn: Any) -> None:
        async for message in conn:
            function(conn, message)

    async def visit(port: int, last: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"line\n" * 20 + last)
        writer.write_eof()
        for step in (reader.read(), writer.wait_closed()):
            try:
                await step
            except OSError:  # the handler that raises resets it
                pass
            writer.close()

    async def main() -> None:
        for handler in (function, Class, coroutine):
            server = pyloop.Server(handler, framing=pyloop.Lines())
            async with server:
                for number in range(count // 2000 + 1):
                    await visit(server.port, b"raise\n" if number % 2 else b"")

    loop.run_until_complete(main())


OPERATIONS: list[Callable[[pyloop.Loop, int], None]] = [
    *(soon, soon_with_arguments, soon_cancelled, cancelled_after_it_ran, later_cancelled),
    *(later_fired, at_fired, from_a_thread, raising, exiting, refused, weakly_referred_to),
    *(in_debug_mode, tasks, cycles, watchers, loops),
    *(written, received, made_and_lost, datagrams, native, encrypted, encrypted_native),
]


def growth(loop: pyloop.Loop, do: Callable[[pyloop.Loop, int], None], count: int) -> int:
    """Return by how many memory blocks a second round of `count` ends higher than the first."""
    counts = []
    for _ in range(2):
        do(loop, count)
        gc.collect()
        counts.append(sys.getallocatedblocks())
    return counts[1] - counts[0]


def traced_growth(loop: pyloop.Loop, do: Callable[[pyloop.Loop, int], None], count: int) -> int:
    """Return the same in bytes, of what tracemalloc sees."""
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            do(loop, count)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        return sizes[1] - sizes[0]
    finally:
        tracemalloc.stop()
