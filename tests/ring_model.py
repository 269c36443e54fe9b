"""The protocol of csrc/ring.c as a state machine, and an explorer that tries every interleaving.

A process is where it is in its operation (`at`); one transition is one atomic action of a process:
a load or store of a word that others may change meanwhile, to take or let go of a lock, a ring.
What stands between two of them in ring.c touches only what no other process may change. Each place
names the function of ring.c whose step it is. Any process may be killed at any place: it is gone,
and what it had locked can be taken.

    ENTER        attempt: region_lock
    LOOK, LOOK2  attempt: read_marks, the words that the other side writes; a getter: shut first
    HALF, WHOLE  put_record, get_record: write_bytes, read_bytes; a message is two halves
    RING, CLEAR, COMMIT     commit
    LET_GO, FULL, ENDED     attempt: region_unlock: done, NOT_YET, PL_E_SHUT
    LATCH        carry_out: region_latch. Rings are remembered from here on, and lost before
    ARM, ARM_LOOK, ARM_LOOK2, ARM_SET, ARMED, READY    arm, under the other side's lock
    WAIT         wait_turn: region_wait

Left out: the spin before LATCH, which only looks; what a side remembers of the other one's mark
(read_own_marks), which is a look that was taken earlier; time-outs; the padding of records, as a
slot holds one message.

`explore` returns the number of states, or raises Fault with the way that leads to it. A fault is a
torn message, one that comes twice, out of order or never, and a process that waits although what
it waits for is there, when nobody else can move. RULES_THAT_FAIL breaks the protocol in one place
each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

PUT, GET, SHUT = "PUT", "GET", "SHUT"
DEAD, DONE = "DEAD", "DONE"
RULES_THAT_FAIL = (
    "commit before the ring",
    "clear before the ring",
    "arm without the lock",
    "arm under one's own lock",
    "latch after arming",
    "commit before the write",
    "look at shut last",
    "shut before its ring",
    "try without the lock",
)
_WRITE_OR_READ, _COMMIT = ("HALF", "WHOLE"), ("RING", "CLEAR", "COMMIT")
_OWN_LOCK = {"LOOK", "LOOK2", *_WRITE_OR_READ, *_COMMIT, "LET_GO", "FULL", "ENDED"}
_OTHER_LOCK = {"ARM_LOOK", "ARM_LOOK2", "ARM_SET", "ARMED", "READY"}
_ORDERS = {
    "commit before the ring": ("HALF", "WHOLE", "COMMIT", "RING", "CLEAR", "LET_GO"),
    "clear before the ring": ("HALF", "WHOLE", "CLEAR", "RING", "COMMIT", "LET_GO"),
    "commit before the write": ("COMMIT", "HALF", "WHOLE", "RING", "CLEAR", "LET_GO"),
}
_ORDER = (*_WRITE_OR_READ, *_COMMIT, "LET_GO")
_OTHER = {PUT: GET, GET: PUT}


class Ring(NamedTuple):
    """What lies in the shared memory, and what was got of each putter."""

    slots: tuple[tuple[int, int], ...]  # the two halves of a message
    marks: tuple[int, int] = (0, 0)  # tail, head
    waits: tuple[bool, bool] = (False, False)  # for the tail, for the head
    shut: bool = False
    got: tuple[int, int] = (0, 0)  # the last number of each putter

    @property
    def used(self) -> int:
        return self.marks[0] - self.marks[1]


class Process(NamedTuple):
    side: str
    who: int = 0  # of the putters
    left: int = 1  # operations to do
    at: str = "ENTER"
    rung: int = -1  # its latch: 1 rung, 0 not, -1: it has none
    seen: int = 0  # the mark of the other side, as it was loaded
    saw_shut: bool = False
    half: int = 0


class State(NamedTuple):
    ring: Ring
    processes: tuple[Process, ...]
    kills: int  # that may still happen


Move: TypeAlias = tuple[Ring, Process, bool]  # and whether the bell rings


class Fault(Exception):
    """The protocol is broken; the text is the way to it."""


def place(side: str) -> int:
    """Of a side's mark and flag."""
    return 0 if side == PUT else 1


def changed(pair: tuple[Any, Any], index: int, value: Any) -> Any:
    return (value, pair[1]) if index == 0 else (pair[0], value)


class Model:
    """All that can happen next, with one rule broken or none."""

    def __init__(self, broken: str | None = None) -> None:
        self.broken = broken
        self.order = _ORDERS.get(broken or "", _ORDER)

    def lock_of(self, p: Process) -> str | None:
        """The side whose lock `p` has."""
        own = PUT if p.side == SHUT else p.side
        if p.at in _OWN_LOCK:
            return None if self.broken == "try without the lock" else own
        if p.at not in _OTHER_LOCK or self.broken == "arm without the lock":
            return None
        return own if self.broken == "arm under one's own lock" else _OTHER[own]

    def after(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield each thing that can happen next: its name, and what it leads to."""
        for index, p in enumerate(state.processes):
            if p.at in (DEAD, DONE):
                continue
            if self.may_move(state, p):
                ring, moved, rings = getattr(self, p.at.lower())(state.ring, p)
                yield f"{p.side} {p.at}", with_process(state, index, ring, moved, rings)
            if state.kills:
                gone, less = Process(p.side, p.who, 0, DEAD), state._replace(kills=state.kills - 1)
                yield f"{p.side} {p.at} killed", with_process(less, index, state.ring, gone, False)

    def may_move(self, state: State, p: Process) -> bool:
        if p.at == "WAIT":
            return p.rung == 1
        if p.at not in ("ENTER", "ARM"):
            return True
        wanted = self.lock_of(p._replace(at="LOOK" if p.at == "ENTER" else "ARM_LOOK"))
        return wanted is None or all(self.lock_of(other) != wanted for other in state.processes)

    def following(self, at: str) -> str:
        return self.order[self.order.index(at) + 1]

    # ---- attempt ----

    def enter(self, ring: Ring, p: Process) -> Move:
        return ring, p._replace(at="LOOK"), False

    def look(self, ring: Ring, p: Process) -> Move:
        if p.side == SHUT:
            early = self.broken == "shut before its ring"
            return ring._replace(shut=early), p._replace(at="COMMIT"), not early
        if p.side == PUT:
            return (
                ring,
                self.decide(ring, p._replace(seen=ring.marks[1], saw_shut=ring.shut)),
                False,
            )
        return (
            ring,
            self.load(ring, p, self.broken != "look at shut last")._replace(at="LOOK2"),
            False,
        )

    def look2(self, ring: Ring, p: Process) -> Move:
        """Only a getter: the tail."""
        return (
            ring,
            self.decide(ring, self.load(ring, p, self.broken == "look at shut last")),
            False,
        )

    def load(self, ring: Ring, p: Process, shut: bool) -> Process:
        return p._replace(saw_shut=ring.shut) if shut else p._replace(seen=ring.marks[0])

    def decide(self, ring: Ring, p: Process) -> Process:
        if p.side == PUT:
            may, ended = ring.marks[0] - p.seen < len(ring.slots), p.saw_shut
        else:
            may = p.seen > ring.marks[1]
            ended = p.saw_shut and not may
        return p._replace(at="ENDED" if ended else self.order[0] if may else "FULL")

    # ---- put_record, get_record ----

    def half(self, ring: Ring, p: Process) -> Move:
        if p.side == GET:
            read = ring.slots[ring.marks[1] % len(ring.slots)][0]
            return ring, p._replace(half=read, at=self.following("HALF")), False
        return self.write(ring, p, whole=False), p._replace(at=self.following("HALF")), False

    def whole(self, ring: Ring, p: Process) -> Move:
        if p.side == PUT:
            return self.write(ring, p, whole=True), p._replace(at=self.following("WHOLE")), False
        if ring.slots[ring.marks[1] % len(ring.slots)] != (p.half, p.half):
            raise Fault("a torn message")
        return ring, p._replace(at=self.following("WHOLE")), False

    def write(self, ring: Ring, p: Process, whole: bool) -> Ring:
        at = ring.marks[0] % len(ring.slots)
        message = p.who * 100 + 50 - p.left  # the numbers of a putter rise
        slot = (message, message if whole else ring.slots[at][1])
        return ring._replace(slots=(*ring.slots[:at], slot, *ring.slots[at + 1 :]))

    # ---- commit ----

    def ring(self, ring: Ring, p: Process) -> Move:
        asked = ring.waits[place(p.side)] or self.broken == "clear before the ring"
        nxt = self.following("RING") if asked else self.following("CLEAR")
        if self.broken == "clear before the ring":
            nxt = "COMMIT"
        return ring, p._replace(at=nxt), asked

    def clear(self, ring: Ring, p: Process) -> Move:
        asked = ring.waits[place(p.side)]
        cleared = ring._replace(waits=changed(ring.waits, place(p.side), False))
        skip = self.broken == "clear before the ring" and not asked
        return cleared, p._replace(at="COMMIT" if skip else self.following("CLEAR")), False

    def commit(self, ring: Ring, p: Process) -> Move:
        if p.side == SHUT:
            late = self.broken == "shut before its ring"
            return ring._replace(shut=True), p._replace(at="LET_GO"), late
        side = place(p.side)
        ring = ring._replace(marks=changed(ring.marks, side, ring.marks[side] + 1))
        if p.side == GET:
            who, number = divmod(p.half, 100)
            if number <= ring.got[who]:
                raise Fault("a message twice, or out of order")
            ring = ring._replace(got=changed(ring.got, who, number))
        return ring, p._replace(at=self.following("COMMIT"), half=0), False

    # ---- the lock let go of ----

    def let_go(self, ring: Ring, p: Process) -> Move:
        more = p.left > 1
        return ring, Process(p.side, p.who, p.left - 1, "ENTER" if more else DONE), False

    def ended(self, ring: Ring, p: Process) -> Move:
        if p.side == GET and ring.used:
            raise Fault("told of the end with messages left")
        return ring, Process(p.side, p.who, 0, DONE), False

    def full(self, ring: Ring, p: Process) -> Move:
        late = self.broken == "latch after arming"
        return ring, calm(p, "LATCH" if p.rung < 0 and not late else "ARM"), False

    def latch(self, ring: Ring, p: Process) -> Move:
        late = self.broken == "latch after arming"
        return ring, p._replace(rung=0, at="WAIT" if late else "ENTER"), False

    # ---- arm, wait ----

    def arm(self, ring: Ring, p: Process) -> Move:
        return ring, p._replace(at="ARM_LOOK"), False

    def arm_look(self, ring: Ring, p: Process) -> Move:
        """A putter loads `shut`, a getter the head."""
        if p.side == PUT:
            return ring, p._replace(saw_shut=ring.shut, at="ARM_LOOK2"), False
        ready = ring.shut or ring.used > 0
        return ring, p._replace(at="READY" if ready else "ARM_SET"), False

    def arm_look2(self, ring: Ring, p: Process) -> Move:
        """Only a putter: the tail."""
        ready = p.saw_shut or ring.used < len(ring.slots)
        return ring, p._replace(at="READY" if ready else "ARM_SET"), False

    def arm_set(self, ring: Ring, p: Process) -> Move:
        waits = changed(ring.waits, place(_OTHER[p.side]), True)
        return ring._replace(waits=waits), p._replace(at="ARMED"), False

    def armed(self, ring: Ring, p: Process) -> Move:
        return ring, calm(p, "LATCH" if p.rung < 0 else "WAIT"), False

    def ready(self, ring: Ring, p: Process) -> Move:
        return ring, calm(p, "ENTER"), False

    def wait(self, ring: Ring, p: Process) -> Move:
        return ring, p._replace(rung=0, at="ENTER"), False


def calm(p: Process, at: str) -> Process:
    """Without what it saw under a lock that it has no longer: that makes no difference."""
    return Process(p.side, p.who, p.left, at, p.rung)


def with_process(state: State, index: int, ring: Ring, p: Process, rings: bool) -> State:
    processes = [*state.processes[:index], p, *state.processes[index + 1 :]]
    if rings:
        processes = [q._replace(rung=1) if q.rung == 0 else q for q in processes]
    processes.sort()  # those of one kind are alike
    return State(ring, tuple(processes), state.kills)


def check_end(state: State) -> None:
    """Nobody can move: is it because there is nothing to wait for?"""
    ring = state.ring
    for p in state.processes:
        there = ring.used > 0 if p.side == GET else ring.used < len(ring.slots)
        if p.at not in (DEAD, DONE) and (p.at != "WAIT" or there or ring.shut):
            raise Fault(f"{p.side} hangs at {p.at}")


def explore(state: State, broken: str | None = None) -> int:
    """Try all that can happen, breadth first, so that the way to a fault is a shortest one."""
    model = Model(broken)
    came_from: dict[State, tuple[State, str] | None] = {state: None}
    waiting = deque([state])
    while waiting:
        here = waiting.popleft()
        try:
            moves = list(model.after(here))
            if all(name.endswith("killed") for name, _ in moves):
                check_end(here)
        except Fault as fault:
            raise Fault(f"{fault}: {' -> '.join(way_to(here, came_from))}") from None
        for name, there in moves:
            if there not in came_from:
                came_from[there] = here, name
                waiting.append(there)
    return len(came_from)


def way_to(state: State, came_from: dict[State, tuple[State, str] | None]) -> list[str]:
    way = []
    while origin := came_from[state]:
        state, name = origin
        way.append(name)
    return way[::-1]


def start(
    putters: int, getters: int, each: int = 1, slots: int = 1, kills: int = 0, shut: bool = False
) -> State:
    """Begin with an empty ring; each of the processes does `each` operations."""
    processes = [Process(PUT, who, each) for who in range(putters)]
    processes += [Process(GET, 0, each) for _ in range(getters)]
    processes += [Process(SHUT)] * shut
    return State(Ring(((0, 0),) * slots), tuple(sorted(processes)), kills)
