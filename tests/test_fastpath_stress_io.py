"""Random programs whose protocols do anything to any connection, at every callback they get.

The same program runs on a loop whose turn is the Python twin's; both must have called the same
protocols in the same order. And on each loop a protocol is made and lost once, and gets a
beginning of what its peer wrote. A failure names its seed; more seeds by PYLOOP_STRESS_SEEDS.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import socket

import pytest
from test_fastpath_stress import SEEDS, OurLoop, TwinLoop, same

PAIRS = 4


class Fault(Exception):
    pass


class Noisy(asyncio.Protocol):
    """One end of a connection; `other` is what its peer wrote."""

    def __init__(self, program, name):
        self.program, self.name, self.log = program, name, []
        self.transport, self.lost = None, False
        self.wrote, self.got = bytearray(), bytearray()

    def _called(self, what):
        assert not self.lost, f"{self.name}: {what} after it was lost"
        self.log.append(what)
        self.program.step(self, what)

    def connection_made(self, transport):
        assert self.transport is None
        self.transport = transport
        self.program.log.append((self.name, "made"))

    def data_received(self, data):
        self.got += data
        self._called(f"data {len(data)}")

    def eof_received(self):
        self._called("eof")
        return self.program.random.random() < 0.5

    def pause_writing(self):
        self._called("pause")

    def resume_writing(self):
        self._called("resume")

    def connection_lost(self, exc):
        assert not self.lost
        self.lost = True
        self.program.log.append((self.name, "lost", type(exc).__name__))


class Second(Noisy):
    """What takes a connection over; its predecessor still counts what was written and came."""

    def __init__(self, first):
        super().__init__(first.program, first.name)
        self.transport, self.wrote, self.got = first.transport, first.wrote, first.got


class Connections:
    """Connections whose ends do things by a seed."""

    def __init__(self, loop, seed, budget=300):
        self.loop, self.random, self.budget = loop, random.Random(seed), budget
        self.log, self.ends, self.numbers = [], [], itertools.count()
        self.deeds = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        loop.set_exception_handler(self.reported)

    def reported(self, loop, context):
        assert not isinstance(context.get("exception"), AssertionError), context
        self.log.append(("reported", repr(context.get("exception"))))

    def step(self, end, what):
        self.log.append((end.name, what))
        self.budget -= 1
        if self.budget > 0:
            for deed in self.random.choices(self.deeds, k=self.random.randrange(1, 5)):
                deed(self.random.choice([end, self.random.choice(self.ends)]))

    # ---- what is done to one end ----

    def write(self, end, data):
        if "eof written" in end.log:
            with pytest.raises(RuntimeError, match=r"^Cannot call write\(\) after write_eof\(\)$"):
                end.transport.write(data)
            return
        end.wrote += data  # before, since pause_writing may write more
        end.transport.write(data)  # one that closes takes it as long as something is queued

    def do_write(self, end):
        self.write(end, bytes([next(self.numbers) % 256]) * self.random.choice([1, 10, 3000]))

    def do_write_views(self, end):
        data = bytearray(b"%d;" % next(self.numbers))
        self.write(
            end, self.random.choice([data, memoryview(data)[::1], memoryview(data * 2)[::2]])
        )
        data[:] = b"x" * len(data)  # it was taken as it was

    def do_write_much(self, end):
        self.write(end, bytes(self.random.choice([70_000, 300_000])))

    def do_pause(self, end):
        end.transport.pause_reading()
        self.loop.call_soon(end.transport.resume_reading)

    def do_resume(self, end):
        end.transport.resume_reading()

    def do_soon(self, end):
        self.loop.call_soon(self.step, end, "soon")

    def do_replace(self, end):
        if self.random.random() < 0.2 and not end.lost and not end.transport.is_closing():
            second = Second(end)
            second.log = end.log
            end.transport.set_protocol(second)
            self.ends[self.ends.index(end)] = second
            end.lost = True  # and must not be called again

    def do_write_eof(self, end):
        if self.random.random() < 0.1 and not end.transport.is_closing():
            end.log.append("eof written")
            end.transport.write_eof()

    def do_close(self, end):
        if self.random.random() < 0.06:
            end.transport.close()

    def do_abort(self, end):
        if self.random.random() < 0.03:
            end.transport.abort()

    def do_raise(self, end):
        if self.random.random() < 0.1:
            raise self.random.choice([Fault, asyncio.CancelledError])("raised")

    def do_leave(self, end):
        if self.random.random() < 0.03:
            raise self.random.choice([SystemExit, KeyboardInterrupt])

    # ---- the run ----

    async def connect(self):
        for pair in range(PAIRS):
            for side, sock in enumerate(socket.socketpair()):
                end = Noisy(self, f"{pair}{'ab'[side]}")
                self.ends.append(end)
                await self.loop.create_connection(lambda end=end: end, sock=sock)

    def kick(self):
        """Have something happen once in a turn, as long as the program goes on."""
        if self.budget > 0 and not all(end.lost for end in self.ends):
            self.loop.call_soon(self.kick)
            self.step(self.random.choice(self.ends), "kick")
        else:
            self.loop.stop()

    def run(self):
        self.loop.run_until_complete(self.connect())
        self.loop.call_soon(self.kick)
        for _ in range(1000):
            try:
                self.loop.run_forever()
                break
            except (SystemExit, KeyboardInterrupt) as exc:
                self.log.append(("left", type(exc).__name__))
        self.loop.run_until_complete(self.end())
        return self.log

    async def end(self):
        self.budget = 0
        for end in self.ends:
            end.transport.resume_reading()
            end.transport.close()
        async with asyncio.timeout(60):
            while not all(end.lost for end in self.ends):
                for end in self.ends:
                    if any(each.lost for each in self.ends):
                        end.transport.abort()
                await asyncio.sleep(0)

    def check(self):
        for one, other in zip(self.ends[::2], self.ends[1::2], strict=True):
            for writer, reader in ((one, other), (other, one)):
                beginning = bytes(writer.wrote[: len(reader.got)])
                assert beginning == reader.got, f"{reader.name} got what was not written"


def log_of(loop, seed):
    gc.collect()
    gc.disable()
    try:
        it = Connections(loop, seed)
        log = it.run()
        it.check()
        return log
    finally:
        gc.enable()
        loop.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_connections_whose_protocols_do_anything_are_called_in_the_twins_order(backend, seed):
    ours = log_of(OurLoop(backend), seed)
    same(ours, log_of(TwinLoop(backend), seed), seed)
    assert len(ours) > 50
