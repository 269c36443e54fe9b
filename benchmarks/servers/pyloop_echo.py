"""Echo servers written with pyloop's native face.

    python pyloop_echo.py --backend epoll --framing lines --handler function

Prints "listening PORT" when ready and runs until SIGTERM.
"""

from __future__ import annotations

import argparse

import pyloop

MAX_SIZE = 64 * 1024 * 1024  # the largest message of the benchmarks fits


def echo(conn, message):
    conn.send(message)


class Echo(pyloop.Protocol):
    def connection_made(self, conn):
        self.conn = conn

    def message_received(self, message):
        self.conn.send(message)


async def converse(conn):
    async for message in conn:
        conn.send(message)
        await conn.drain()


HANDLERS = {"function": echo, "class": Echo, "coroutine": converse}


def make_framing(name, max_size):
    if name == "lines":
        return pyloop.Lines(max_size=max_size)
    if name.startswith("prefix"):
        return pyloop.LengthPrefixed(size=int(name[6:]), max_size=max_size)
    return pyloop.Raw()


def tell(server):
    print("listening", server.port, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backends = ["auto", "select", "poll", "epoll", "io_uring"]
    parser.add_argument("--backend", choices=backends, default="auto")
    framings = ["raw", "lines", "prefix2", "prefix4"]
    parser.add_argument("--framing", choices=framings, default="raw")
    parser.add_argument("--handler", choices=sorted(HANDLERS), default="function")
    parser.add_argument("--max-size", type=int, default=MAX_SIZE, metavar="BYTES")
    args = parser.parse_args()
    server = pyloop.Server(
        HANDLERS[args.handler],
        port=0,
        framing=make_framing(args.framing, args.max_size),
        backlog=4096,
        write_limit=4 * MAX_SIZE,
        on_start=tell,
    )
    pyloop.run(server, backend=args.backend)


if __name__ == "__main__":
    main()
