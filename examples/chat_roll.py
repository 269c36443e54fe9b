"""Who is in which room of chat.py: what the rooms say of it over the bus, and the roll call.

Somebody asks "who"; each room answers "is" for each of its clients, and then "here". Who does not
answer in time is forgotten: its worker was killed.
"""

from __future__ import annotations

import asyncio
from typing import Any

PATIENCE = 2.0  # seconds


def label(key: str) -> bytes:
    """The number of a room's worker, to put behind a nickname."""
    return b"#" + key.partition("-")[0].encode()


class Roll:
    """What one room knows of all of them: nicknames and addresses, by the room's key."""

    def __init__(self, room: Any) -> None:
        self.room = room
        self.rooms: dict[str, dict[bytes, bytes]] = {}
        self.answers: dict[str, dict[bytes, bytes]] = {}
        self.silent: set[str] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.asked = False  # by the operator

    def everybody(self) -> list[tuple[bytes, str]]:
        return sorted((nick, key) for key, names in self.rooms.items() for nick in names)

    def is_elsewhere(self, nick: bytes) -> bool:
        return any(nick in names for key, names in self.rooms.items() if key != self.room.key)

    def hear(self, kind: str, key: str, nick: bytes, address: bytes) -> None:
        """Take in what is said of who is where."""
        if kind == "joined":
            self.rooms.setdefault(key, {})[nick] = address
        elif kind == "left":
            self.rooms.get(key, {}).pop(nick, None)
        elif kind == "gone":
            self.rooms.pop(key, None)
            self.answered(key)
        elif kind == "who":
            self.answer()
        elif kind == "is":
            self.answers.setdefault(key, {})[nick] = address
        elif kind == "here":
            self.rooms[key] = self.answers.pop(key, {})
            self.answered(key)

    # ---- the roll call ----

    def call(self) -> None:
        """Ask all rooms, and print the answers."""
        self.asked = True
        self.room.publish("who")

    def answer(self) -> None:
        for nick in self.room.mine:
            self.room.publish("is", nick)
        self.room.publish("here")
        self.silent = {*self.rooms, self.room.key}
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(PATIENCE, self.end)

    def answered(self, key: str) -> None:
        self.silent.discard(key)
        if self.timer and not self.silent:
            self.timer.cancel()
            self.end()

    def end(self) -> None:
        """All have answered, or their time is over."""
        self.timer = None
        for key in self.silent:
            self.rooms.pop(key, None)
        if self.asked:
            self.asked = False
            self.tell()

    def tell(self) -> None:
        nicks = [nick for nick, _ in self.everybody()]
        for nick, key in self.everybody():
            name = nick + label(key) if nicks.count(nick) > 1 else nick
            print(name.decode(errors="replace"), self.rooms[key][nick].decode())
        for key in self.silent:
            print(f"worker {key.partition('-')[0]} did not answer")
        print("clients:", len(nicks), flush=True)
