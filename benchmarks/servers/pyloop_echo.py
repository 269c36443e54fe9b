"""Echo servers written with pyloop's native face.

    python pyloop_echo.py --backend epoll --framing lines --handler function
    python pyloop_echo.py --model fork --handler blocking
    python pyloop_echo.py --workers 2 --path FILE

Prints "listening PORT", or the path, when all that serve are ready; runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import ssl

from work import compute

import pyloop

MAX_SIZE = 64 * 1024 * 1024  # the largest message of the benchmarks fits
MAX_CONNECTIONS = 4096  # threads or children: more than the benchmarks hold


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


def handle(conn):
    for message in conn:
        conn.send(message)


HANDLERS = {"function": echo, "class": Echo, "coroutine": converse, "blocking": handle}


def computing(steps):
    """Return a function handler that computes before each echo."""

    def echo_later(conn, message):
        compute(steps)
        conn.send(message)

    return echo_later


def make_framing(name, max_size):
    if name == "lines":
        return pyloop.Lines(max_size=max_size)
    if name.startswith("prefix"):
        return pyloop.LengthPrefixed(size=int(name[6:]), max_size=max_size)
    return pyloop.Raw()


def tell(server, path):
    print("listening", server.port or path, flush=True)


def telling(workers, path):
    """Return the hook that tells when the server, or the last of its workers, is ready."""
    if workers == 1:
        return {"on_start": lambda server: tell(server, path)}
    ready = itertools.count(1)

    def worker_started(server, worker_id):
        if next(ready) == workers:
            tell(server, path)

    return {"on_worker_start": worker_started}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backends = ["auto", "select", "poll", "epoll", "io_uring"]
    parser.add_argument("--backend", choices=backends, default="auto")
    framings = ["raw", "lines", "prefix2", "prefix4"]
    parser.add_argument("--framing", choices=framings, default="raw")
    parser.add_argument("--handler", choices=sorted(HANDLERS), default="function")
    parser.add_argument("--max-size", type=int, default=MAX_SIZE, metavar="BYTES")
    parser.add_argument("--model", choices=["loop", "thread", "fork"], default="loop")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--path", help="a Unix socket instead of a port")
    parser.add_argument("--tls", metavar="PEM", help="serve TLS; the file has key and certificates")
    text = "compute in the function handler, so many steps of work.py (0)"
    parser.add_argument("--work", type=int, default=0, metavar="STEPS", help=text)
    args = parser.parse_args()
    if args.work and args.handler != "function":
        parser.error("--work is for the function handler")
    more = telling(args.workers, args.path)
    if args.model != "loop":
        more |= {"model": args.model, "max_connections": MAX_CONNECTIONS}
    if args.workers != 1:
        more |= {"workers": args.workers}
    if args.tls:
        more["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        more["ssl"].load_cert_chain(args.tls)
    server = pyloop.Server(
        computing(args.work) if args.work else HANDLERS[args.handler],
        path=args.path,
        framing=make_framing(args.framing, args.max_size),
        backlog=4096,
        write_limit=4 * MAX_SIZE,
        **more,
    )
    pyloop.run(server, backend=args.backend)


if __name__ == "__main__":
    main()
