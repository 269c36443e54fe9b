"""A chat server: what one client types reaches all others, and so does what you type here.

    python examples/chat.py
    nc 127.0.0.1 8888              (in two more terminals)

Two processes serve, and share a bus (--bus redis://HOST:PORT: with those of other machines). All
that is said, who joins and who leaves goes over it, so all see the same, in the same order. For
the console see chat_console.py, for who is where chat_roll.py. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from chat_console import Console
from chat_roll import PATIENCE, Roll, label

import pyloop

LINES = pyloop.Lines()
MAX_NICK = 32  # bytes
CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"  # all but the tab


def clean(text: bytes) -> bytes:
    """Take out what could play tricks on somebody else's terminal."""
    return text.translate(None, CONTROLS)


class Room:
    """One worker's part of the chat: its own clients, and what it has heard of the others'."""

    def __init__(self) -> None:
        self.clients: dict[bytes, pyloop.Connection] = {}  # ours, by nickname
        self.mine: dict[bytes, bytes] = {}  # nicknames and addresses that we have announced
        self.turns: dict[tuple[str, bytes], asyncio.Future[None]] = {}
        self.roll = Roll(self)

    async def open(self, server: pyloop.Server) -> None:
        """Join the other rooms: called when a worker starts."""
        self.bus = server.bus
        self.key = f"{server.worker_id}-{os.urandom(4).hex()}"
        await self.bus.subscribe("chat.", self.hear, on_missed=self.miss).ready()
        self.publish("who")
        if server.worker_id <= 1:  # the others have no standard input
            host, port = server.sockets[0].getsockname()[:2]
            print(f"chat server on {host}:{port}; to join: nc {host} {port}", flush=True)
            Console(self.announce, self.roll.call).open()

    def close(self, server: pyloop.Server) -> None:
        self.publish("gone")

    # ---- one client ----

    async def chat(self, conn: pyloop.Connection) -> None:
        """Talk with one client, from its first line to its last: the handler."""
        if (nick := await self.ask_nick(conn)) is None:
            return
        self.mine[nick] = b"%s %d" % (conn.peername[0].encode(), conn.peername[1])
        try:
            await self.take_turn("joined", nick, b"* %s has joined" % self.shown(nick))
            self.clients[nick] = conn
            others = len(self.roll.everybody()) - 1
            conn.send(b"* Welcome, %s. Others here: %d" % (nick, others))
            async for line in conn:
                self.publish("say", nick, b"%s: %s" % (self.shown(nick), clean(line)))
                await asyncio.sleep(0)  # so that nobody fills the bus faster than we read it
        finally:
            del self.mine[nick]
            # Without a word if the server is stopping, and everybody leaves.
            notice = b"* %s has left" % self.shown(nick) if conn.server.sockets else b""
            try:
                await self.take_turn("left", nick, notice)
            finally:
                if self.clients.get(nick) is conn:  # and nobody has the name already
                    del self.clients[nick]

    async def ask_nick(self, conn: pyloop.Connection) -> bytes | None:
        """Ask until the answer is good; None if the client leaves instead."""
        conn.send(b"* What is your nickname?")
        async for line in conn:
            nick = clean(line).strip()
            if 0 < len(nick) <= MAX_NICK and nick not in self.mine:
                return nick
            conn.send(b"* It is taken, or not of 1 to %d bytes. Another one?" % MAX_NICK)
        return None

    async def take_turn(self, kind: str, nick: bytes, notice: bytes) -> None:
        """Publish, and wait until we hear it: what was said before has been heard then."""
        self.turns[kind, nick] = turn = asyncio.get_running_loop().create_future()
        self.publish(kind, nick, notice)
        await asyncio.wait([turn], timeout=PATIENCE)

    def shown(self, nick: bytes) -> bytes:
        """The nickname, with our number if somebody elsewhere has the same."""
        return nick + label(self.key) if self.roll.is_elsewhere(nick) else nick

    def say(self, line: bytes, exclude: bytes | None = None) -> None:
        """Send a line to all of ours; the longest one loses its end to the name before it."""
        for nick, conn in self.clients.items():
            if nick != exclude:
                conn.send(line[: LINES.max_size])

    # ---- the bus ----

    def publish(self, kind: str, nick: bytes = b"", text: bytes = b"") -> None:
        message = b"\n".join((nick, self.mine.get(nick, b""), text))
        self.bus.publish(f"chat.{kind}.{self.key}", message)

    def announce(self, line: bytes) -> None:
        """Say what the operator types."""
        self.publish("say", text=b"[operator] " + clean(line))

    def hear(self, topic: str, message: bytes) -> None:
        """Take what comes over the bus, from this room too."""
        _, kind, key = topic.split(".")
        nick, address, text = message.split(b"\n", 2)
        self.roll.hear(kind, key, nick, address)
        own = key == self.key
        if text:
            self.say(text, exclude=nick if own else None)
        if own and (turn := self.turns.pop((kind, nick), None)) and not turn.done():
            turn.set_result(None)

    def miss(self, missed: pyloop.Missed) -> None:
        """Tell our clients that they missed something, and ask who is there."""
        self.say(b"* Missed here: %s messages" % str(missed.count or "some").encode())
        self.publish("who")


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat server with an operator's console.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bus", default="shm://?capacity=8388608", help="a URL: see docs/bus.md")
    args = parser.parse_args()
    room = Room()
    try:
        server = pyloop.Server(
            room.chat,
            args.host,
            args.port,
            framing=LINES,
            workers=args.workers,
            bus=args.bus,
            on_start=room.open,
            on_stop=room.close,
        )
        pyloop.run(server)
    except (OSError, ValueError) as exc:  # the port is taken, say
        sys.exit(f"chat.py: {exc}")


if __name__ == "__main__":
    main()
