"""Guess a number: a thread for each player, so the game is written as one plain loop.

    python examples/guess.py
    nc 127.0.0.1 8888

Where a player is in the game is where his thread is in `play`. An announcement to all players is a
broadcast, which any thread may send.
"""

from __future__ import annotations

import argparse
import random
import time

import pyloop


def play(conn: pyloop.BlockingConnection) -> None:
    """Play with one client until he has found the number, or leaves."""
    number = random.randint(1, 100)
    conn.send(b"* I think of a number from 1 to 100. Which one is it?")
    for tries, line in enumerate(conn, 1):  # ends when the client leaves or the server stops
        time.sleep(0.01)  # think hard: nobody else has to wait meanwhile
        if not line.strip().isdigit():
            conn.send(b"* That is no number.")
        elif int(line[:9]) < number:
            conn.send(b"* It is greater.")
        elif int(line[:9]) > number:
            conn.send(b"* It is less.")
        else:
            conn.send(b"* That is it!")
            conn.server.broadcast(b"* Somebody has found it in %d tries." % tries)
            return  # what is queued is sent, then the connection is closed


def announce(server: pyloop.Server) -> None:
    host, port = server.sockets[0].getsockname()[:2]
    print(f"guessing game on {host}:{port}; to play: nc {host} {port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A guessing game, one thread for each player.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    server = pyloop.Server(
        *(play, args.host, args.port),
        framing=pyloop.Lines(200),
        model="thread",
        idle_timeout=600,
        on_start=announce,
    )
    pyloop.run(server)
