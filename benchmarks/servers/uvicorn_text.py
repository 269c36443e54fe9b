"""uvicorn with an application that answers every request with the same plain text.

    python uvicorn_text.py --loop uvloop --http httptools

Prints "listening PORT" when it serves; runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Awaitable, Callable

import uvicorn

FACTORIES = {"pyloop": "pyloop:new_event_loop", "rloop": "rloop:new_event_loop"}
TEXT = b"Hello, world!"
HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(TEXT))],
}
BODY = {"type": "http.response.body", "body": TEXT}


async def application(
    scope: dict[str, object], receive: object, send: Callable[[object], Awaitable[None]]
) -> None:
    await send(HEAD)
    await send(BODY)


class Server(uvicorn.Server):
    """Tells when it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        port = sockets[0].getsockname()[1]  # rloop takes the fd away
        await super().startup(sockets)
        print("listening", port, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=["asyncio", "uvloop", *FACTORIES], default="asyncio")
    parser.add_argument("--http", choices=["h11", "httptools"], default="httptools")
    args = parser.parse_args()
    loop = FACTORIES.get(args.loop, args.loop)
    more = {"lifespan": "off", "log_level": "warning", "access_log": False}
    config = uvicorn.Config(application, loop=loop, http=args.http, **more)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        Server(config).run([listener])


if __name__ == "__main__":
    main()
