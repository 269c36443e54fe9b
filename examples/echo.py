"""Send back whatever comes in: the smallest server.

    python examples/echo.py
    nc 127.0.0.1 8888

Run nc in another terminal; Ctrl-C ends either.
"""

from __future__ import annotations

import argparse

import pyloop


def echo(conn: pyloop.Connection, data: bytes) -> None:
    """Called with what one receive gave: Raw, the default framing, does not cut it up."""
    conn.send(data)


def announce(server: pyloop.Server) -> None:
    """Say where the server is: it listens by now, so port 0 has become a number."""
    host, port = server.sockets[0].getsockname()[:2]
    print(f"echo server on {host}:{port}; try: nc {host} {port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    pyloop.run(pyloop.Server(echo, args.host, args.port, on_start=announce))
