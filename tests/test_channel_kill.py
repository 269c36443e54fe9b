"""Channel, and processes that are killed with SIGKILL while they put and get.

Two put and two get, without a pause; one of the four is killed at any moment and replaced, again
and again. What each of them did it writes down in memory that outlives it, right after it was done:
so of a killed one, one put may be done and not be written down, and so may one get. To kill at each
step of the core in turn is for tests/c/test_ring_steps.c, to go on for long for tests/soak.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
import zlib
from dataclasses import dataclass, field

import pytest
from channels import Maker, make, named, start, status_of

import pyloop

__all__ = ["make", "named"]

PUTTERS, GETTERS = 2, 2
LOG_BYTES = 1 << 26  # of one place's log; what is not touched takes no memory
NUMBER_BITS = 40
STEP_SECONDS = 0.02


class Log:
    """Words in memory that all processes of a test see: a count, and then so many words."""

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, LOG_BYTES)).cast("Q")

    def add(self, word: int) -> None:
        count = self.words[0] + 1
        self.words[count] = word
        self.words[0] = count

    def __len__(self) -> int:
        return self.words[0]

    def read(self) -> list[int]:
        return self.words[1 : 1 + len(self)].tolist()


def message_of(word: int) -> bytes:
    """A checksum, who put it and which one it is, and bytes as many as that says."""
    body = word.to_bytes(8, "little") + bytes([word & 255]) * (word * 37 % 300)
    return zlib.crc32(body).to_bytes(4, "little") + body


@dataclass
class Game:
    """One channel, its putters and getters, and what they wrote down."""

    channel: pyloop.Channel
    dice: random.Random
    pids: list[int] = field(default_factory=list)
    logs: list[Log] = field(default_factory=lambda: [Log() for _ in range(PUTTERS + GETTERS)])
    stop: Log = field(default_factory=Log)
    torn: Log = field(default_factory=Log)
    born: int = 0
    killed: list[int] = field(default_factory=lambda: [0, 0])  # putters, getters

    def put_all(self, log: Log, who: int) -> None:
        number = who << NUMBER_BITS
        while not self.stop:
            number += 1
            self.channel.put(message_of(number))
            log.add(number)

    def get_all(self, log: Log) -> None:
        for message in self.channel:
            word = int.from_bytes(message[4:12], "little")
            if message_of(word) != message:
                self.torn.add(word)
            log.add(word)

    def launch(self, place: int) -> int:
        self.born += 1
        log, who = self.logs[place], self.born
        if place < PUTTERS:
            return start(lambda: self.put_all(log, who))
        return start(lambda: self.get_all(log))

    def play(self, rounds: int) -> None:
        self.pids = [self.launch(place) for place in range(PUTTERS + GETTERS)]
        try:
            for _ in range(rounds):
                self.kill_one()
            self.stop.add(1)
            assert [status_of(pid) for pid in self.pids[:PUTTERS]] == [0] * PUTTERS
            self.channel.shutdown()
            assert [status_of(pid) for pid in self.pids[PUTTERS:]] == [0] * GETTERS
            self.pids = []
        finally:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)

    def kill_one(self) -> None:
        """Kill one of the four, at any moment after all of them together have got on."""
        done = sum(map(len, self.logs))
        end = time.monotonic() + 60
        time.sleep(self.dice.random() * STEP_SECONDS)
        while sum(map(len, self.logs)) == done:
            assert time.monotonic() < end, "nobody gets on"
            time.sleep(0.001)
        place = self.dice.randrange(len(self.pids))
        os.kill(self.pids[place], signal.SIGKILL)
        assert status_of(self.pids[place]) == -signal.SIGKILL
        self.killed[place >= PUTTERS] += 1
        self.pids[place] = self.launch(place)

    def check(self) -> tuple[int, int]:
        """Each put was got once; return how many there were, and how many a killed hand kept."""
        put = {word for log in self.logs[:PUTTERS] for word in log.read()}
        got = [word for log in self.logs[PUTTERS:] for word in log.read()]
        assert len(self.torn) == 0
        assert len(set(got)) == len(got), "got twice"
        assert len(put - set(got)) <= self.killed[1], "more was lost than killed hands held"
        extra = set(got) - put
        assert len(extra) <= self.killed[0], "got more than was put"
        assert {word - 1 for word in extra} <= put | {
            w << NUMBER_BITS for w in range(self.born + 1)
        }
        for log in self.logs[PUTTERS:]:
            assert is_in_order(log.read())
        return len(put), len(put - set(got))


def is_in_order(words: list[int]) -> bool:
    """Do the numbers of each putter rise?"""
    last: dict[int, int] = {}
    for word in words:
        who = word >> NUMBER_BITS
        if word <= last.get(who, 0):
            return False
        last[who] = word
    return True


def kill_rounds(channel: pyloop.Channel, rounds: int) -> tuple[int, int]:
    """Play so many rounds; how many messages were put, and how many were in a killed hand."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    game = Game(channel, random.Random(seed))
    game.play(rounds)
    return game.check()


@pytest.mark.parametrize("capacity", [1024, 1 << 16])
def test_killed_processes_tear_nothing_and_stop_nobody(make: Maker, capacity: int) -> None:
    put, _ = kill_rounds(make(capacity, 512), rounds=13)
    assert put > 100
