"""Echo servers written with gevent's StreamServer: a greenlet for each connection.

    python gevent_echo.py --framing lines

Prints "listening PORT" when ready; runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import socket

import gevent
from gevent.server import StreamServer

BACKLOG = 4096


def echo_raw(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := sock.recv(256 * 1024):
        sock.sendall(data)


def echo_lines(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock.makefile("rb") as lines:
        for line in lines:
            sock.sendall(line)


HANDLERS = {"raw": echo_raw, "lines": echo_lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framing", choices=sorted(HANDLERS), default="raw")
    args = parser.parse_args()
    server = StreamServer(("127.0.0.1", 0), HANDLERS[args.framing], backlog=BACKLOG)
    server.start()
    gevent.signal_handler(signal.SIGTERM, server.stop)
    print("listening", server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
