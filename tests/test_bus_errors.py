"""Bus over shared memory: what is refused, and what is said then."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading

import pytest
from test_bus import SECONDS, in_child, take

import pyloop


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        (
            b"shm://",
            TypeError,
            "bus: expected a URL, shm://, redis://, rediss:// or nats://, got b",
        ),
        ("", ValueError, "bus: expected a URL, shm://, redis://, rediss:// or nats://, got ''"),
        ("http://x", ValueError, "rediss:// or nats://, got 'http://x'"),
        ("shm:", ValueError, "rediss:// or nats://, got 'shm:'"),
        (
            "shm://a/b",
            ValueError,
            "'shm://a/b': expected shm:// or .* has no slash or NUL",
        ),
        ("shm://a\0b", ValueError, r"'shm://a\\x00b': expected shm:// or .* has no slash or NUL"),
        ("shm://" + "x" * 201, ValueError, "expected a name of 1 to 200 bytes"),
        ("shm://x.bell", ValueError, 'shm://x.bell: expected a name .* does not end in ".bell"'),
        ("shm://?size=1", ValueError, r"expected \?capacity=BYTES, got 'size=1'"),
        ("shm://?capacity=1e6", ValueError, r"expected \?capacity=BYTES, got 'capacity=1e6'"),
        ("shm://?capacity=4095", ValueError, "capacity: expected 4096 to 1073741824, got 4095"),
    ],
)
def test_bad_url_is_refused(url, error, text):
    with pytest.raises(error, match=text):
        pyloop.Bus(url)


def test_bad_arguments_are_refused(run):
    async def main():
        async with pyloop.Bus("shm://?capacity=4096") as bus:
            with pytest.raises(TypeError, match="topic: expected a str, got b't'"):
                bus.publish(b"t", b"")
            with pytest.raises(TypeError, match="expected bytes-like, got str: 'x'"):
                bus.publish("t", "x")
            too_long = r"1025 bytes of topic and message are more than the 1024 that shm://\?cap"
            with pytest.raises(ValueError, match=too_long):
                bus.publish("t", b"x" * 1024)
            with pytest.raises(TypeError, match="prefix: expected a str, got None"):
                bus.subscribe(None)
            with pytest.raises(TypeError, match="callback: expected a callable or None, got 1"):
                bus.subscribe("", 1)
            with pytest.raises(ValueError, match="on_missed: expected a callback beside it"):
                bus.subscribe("", on_missed=print)
            with pytest.raises(TypeError, match="a subscription with a callback cannot be iter"):
                async for _ in bus.subscribe("", print):
                    pass
            with pytest.raises(ValueError, match="only an open one of shm://NAME has a name"):
                bus.unlink()

    run(main())


def test_subscribing_needs_one_loop(run):
    bus = pyloop.Bus()
    with pytest.raises(RuntimeError, match=r"Bus.subscribe\(\): needs a running event loop, over"):
        bus.subscribe()

    async def other():
        with pytest.raises(RuntimeError, match=r"subscribe\(\): the bus is in use on another ev"):
            bus.subscribe()

    async def main():
        async with bus.subscribe():
            thread = threading.Thread(target=lambda: asyncio.run(other()))
            thread.start()
            await asyncio.to_thread(thread.join, SECONDS)
            assert not thread.is_alive()
        await bus.close()

    run(main())


def test_unlinking_again_names_what_was_gone():
    name = f"pyloop-test-gone-{os.getpid()}"
    bus = pyloop.Bus(f"shm://{name}")
    bus.unlink()
    with pytest.raises(FileNotFoundError, match=f"cannot unlink the bus: No such .*: '{name}'"):
        bus.unlink()


def test_name_of_something_else_is_refused():
    name = f"pyloop-test-other-{os.getpid()}"
    path = f"/dev/shm/{name}"
    with open(path, "wb") as file:
        file.write(b"x" * 10000)
    try:
        with pytest.raises(ValueError, match=f"shm://{name}: the shared memory was not made by"):
            pyloop.Bus(f"shm://{name}")
    finally:
        os.unlink(path)


def test_lock_whose_holder_was_stopped_is_an_error_and_is_waited_for_no_longer():
    bus = pyloop.Bus()
    with open("/proc/self/stat", "rb") as file:
        start = int(file.read().rpartition(b")")[2].split()[19])
    ours = (start & 0xFFFFFFFF) << 32 | os.getpid()  # a lock word of a process that lives
    os.pwrite(bus._fds[0], ours.to_bytes(8, sys.byteorder), 64)
    with pytest.raises(TimeoutError, match="the bus is locked by a process that does not run"):
        bus.publish("t", b"")
    os.pwrite(bus._fds[0], bytes(8), 64)
    bus.publish("t", b"")


def test_more_memory_than_there_is_is_refused():
    def ask():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(OSError, match="cannot share 1048576 bytes of memory as shm://: File"):
            pyloop.Bus()

    in_child(ask)


def test_scribbled_memory_is_an_error_and_no_crash(run, caplog):
    async def main():
        async with pyloop.Bus() as bus, bus.subscribe() as messages:
            bus.publish("t", b"1")
            await take(messages, 1)
            os.pwrite(bus._fds[0], b"\xff" * 16, 72)
            broken = "the shared memory was truncated, or written to by somebody else"
            with pytest.raises(pyloop.PyloopError, match=broken):
                bus.publish("t", b"2")
            os.write(bus._fds[1], (1).to_bytes(8, sys.byteorder))
            assert await take(messages, 1) == [pyloop.Missed(None)]
            assert f"nothing more is heard on the bus: {broken}" in caplog.messages

    run(main())
