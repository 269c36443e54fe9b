"""A chat server: what one client types reaches all others, and so does what you type here.

    python examples/chat.py
    nc 127.0.0.1 8888              (in two more terminals)

The operator's console is standard input, watched by the same loop as the clients: a line goes to
everybody, /who lists the clients, and end of input leaves the server running. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import pyloop
from pyloop.lowlevel import ReadBuffer

STDIN = 0
LINES = pyloop.Lines()
MAX_NICK = 32  # bytes
CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"  # all but the tab


def clean(text: bytes) -> bytes:
    """Take out what could play tricks on somebody else's terminal."""
    return text.translate(None, CONTROLS)


class Room:
    """Who is here, by nickname. A client that has not given one yet is not."""

    def __init__(self) -> None:
        self.clients: dict[bytes, pyloop.Connection] = {}

    def say(self, line: bytes, exclude: pyloop.Connection | None = None) -> None:
        """Send a line to everybody; the longest one loses its end to the name before it."""
        for conn in self.clients.values():
            if conn is not exclude:
                conn.send(line[: LINES.max_size])

    async def chat(self, conn: pyloop.Connection) -> None:
        """Talk with one client, from its first line to its last: the handler."""
        if (nick := await self.ask_nick(conn)) is None:
            return
        conn.send(b"* Welcome, %s. Others here: %d" % (nick, len(self.clients)))
        self.say(b"* %s has joined" % nick)
        self.clients[nick] = conn
        try:
            async for line in conn:
                self.say(b"%s: %s" % (nick, clean(line)), exclude=conn)
        finally:
            del self.clients[nick]
            if conn.server.sockets:  # else the server is stopping, and everybody leaves
                self.say(b"* %s has left" % nick)

    async def ask_nick(self, conn: pyloop.Connection) -> bytes | None:
        """Ask until the answer is good; None if the client leaves instead."""
        conn.send(b"* What is your nickname?")
        async for line in conn:
            nick = clean(line).strip()
            if 0 < len(nick) <= MAX_NICK and nick not in self.clients:
                return nick
            conn.send(b"* It is taken, or not of 1 to %d bytes. Another one?" % MAX_NICK)
        return None


class Console:
    """The operator's lines. The fd stays blocking, because a terminal shares that flag with the
    shell; one read each time that the loop finds it readable does not block."""

    def __init__(self, room: Room) -> None:
        self.room, self.buffer = room, ReadBuffer()

    def open(self, server: pyloop.Server) -> None:
        """Say where the server is, and begin to read: called when it starts."""
        host, port = server.sockets[0].getsockname()[:2]
        print(f"chat server on {host}:{port}; to join: nc {host} {port}", flush=True)
        if sys.stdin is not None:  # None: started without one, and fd 0 may be anything by now
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background, fail, do not stop
            asyncio.get_running_loop().add_reader(STDIN, self.read)

    def read(self) -> None:
        """Take what is there; at the end of input, or on an error, read no more."""
        try:
            data = os.read(STDIN, 65536)
            self.buffer.feed(data)
            cut = self.buffer.next if data else self.buffer.finish
            while (line := cut(LINES)) is not None:
                self.obey(clean(line))
            ended = "" if data else "end of input"
        except (OSError, pyloop.FramingError) as exc:
            ended = str(exc)
        if ended:
            asyncio.get_running_loop().remove_reader(STDIN)
            print(f"console closed ({ended}); the server goes on", flush=True)

    def obey(self, line: bytes) -> None:
        if line.strip() != b"/who":
            self.room.say(b"[operator] " + line)
            return
        for nick, conn in self.room.clients.items():
            print(nick.decode(errors="replace"), *conn.peername[:2])
        print("clients:", len(self.room.clients), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat server with an operator's console.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    room = Room()
    start = Console(room).open
    try:
        pyloop.run(pyloop.Server(room.chat, args.host, args.port, framing=LINES, on_start=start))
    except OSError as exc:  # the port is taken, say
        sys.exit(f"chat.py: {exc}")
