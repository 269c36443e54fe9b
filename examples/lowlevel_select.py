"""An echo server of nothing but sockets and pyloop.lowlevel: what a loop does, by hand.

Usage: python examples/lowlevel_select.py [port]
"""

from __future__ import annotations

import socket
import sys

from pyloop import Lines
from pyloop.lowlevel import FdSet, ReadBuffer, select, set_nonblocking

LINES = Lines()


def echo(conn: socket.socket, buffer: ReadBuffer) -> bool:
    """Answer the lines that have arrived; False when the connection is over."""
    try:
        data = conn.recv(65536)
        buffer.feed(data)
        cut = buffer.next if data else buffer.finish
        while (line := cut(LINES)) is not None:
            conn.sendall(line + b"\n")  # a peer that does not read is dropped, not waited for
    except (OSError, ValueError):  # ValueError: a line over LINES.max_size
        return False
    return bool(data)


def serve(listener: socket.socket) -> None:
    """Wait, accept, answer, for ever."""
    set_nonblocking(listener)
    watched = FdSet([listener])
    clients: dict[int, tuple[socket.socket, ReadBuffer]] = {}
    while True:
        ready = watched.copy()
        select(ready)
        for fd in ready:
            if fd == listener.fileno():
                try:
                    conn, _ = listener.accept()
                    set_nonblocking(conn)
                    watched.add(conn)
                except (OSError, ValueError):  # the peer has left; or fd >= FD_SETSIZE
                    continue
                clients[conn.fileno()] = conn, ReadBuffer()
            elif not echo(*clients[fd]):
                watched.discard(fd)
                clients.pop(fd)[0].close()


if __name__ == "__main__":
    try:
        port = int(sys.argv[1]) if len(sys.argv) > 1 else 8888
        with socket.create_server(("127.0.0.1", port)) as server:
            print("listening on {}:{}".format(*server.getsockname()), flush=True)
            serve(server)
    except KeyboardInterrupt:
        pass
