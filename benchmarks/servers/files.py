"""Servers of slices of one file: a request is 8 bytes, offset and length, big-endian.

    python files.py --way view --file FILE

Prints "listening PORT"; runs until SIGTERM. The file may be made later, before the first request.
"""

from __future__ import annotations

import argparse
import functools
import os
import select
import socket
import struct
from collections import deque

REQUEST = struct.Struct("!II")


# ---- plain Python: a loop around epoll, with what the standard library has ----


class Peer:
    """A connection, and the slices that it waits for."""

    def __init__(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.sock = sock
        self.asked = b""
        self.slices = deque()
        self.armed = select.EPOLLIN

    def receive(self):
        """Read requests; false at the end of stream."""
        data = self.sock.recv(65536)
        whole = len(self.asked + data) // REQUEST.size * REQUEST.size
        self.slices += REQUEST.iter_unpack((self.asked + data)[:whole])
        self.asked = (self.asked + data)[whole:]
        return bool(data)

    def send(self, send_slice):
        """Send what the kernel takes; true when nothing is left."""
        while self.slices:
            offset, length = self.slices.popleft()
            try:
                sent = send_slice(self.sock, offset, length)
            except BlockingIOError:
                sent = 0
            if sent < length:
                self.slices.appendleft((offset + sent, length - sent))
                return False
        return True


def serve_plainly(open_file, kind):
    def sendfile(sock, offset, length):
        return os.sendfile(sock.fileno(), open_file(), offset, length)

    def read(sock, offset, length):
        return sock.send(os.pread(open_file(), length, offset))

    send_slice = {"sendfile": sendfile, "read": read}[kind]
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print("listening", listener.getsockname()[1], flush=True)
    epoll, peers = select.epoll(), {}
    epoll.register(listener, select.EPOLLIN)
    while True:
        for fd, events in epoll.poll():
            if fd == listener.fileno():
                peer = Peer(listener.accept()[0])
                peers[peer.sock.fileno()] = peer
                epoll.register(peer.sock, select.EPOLLIN)
                continue
            peer = peers[fd]
            if events & ~select.EPOLLOUT and not peer.receive():
                peers.pop(fd).sock.close()
                continue
            wanted = select.EPOLLIN | (0 if peer.send(send_slice) else select.EPOLLOUT)
            if wanted != peer.armed:
                epoll.modify(fd, wanted)
                peer.armed = wanted


# ---- pyloop ----


def serve_with_pyloop(open_file, kind):
    import pyloop

    @functools.cache
    def mapped():
        return pyloop.MappedFile(open_file())

    def view(conn, request):
        offset, length = REQUEST.unpack(request)
        conn.write(mapped().view(offset, offset + length))

    def cut(conn, request):
        offset, length = REQUEST.unpack(request)
        conn.write(mapped()[offset : offset + length])

    def read(conn, request):
        offset, length = REQUEST.unpack(request)
        conn.write(os.pread(open_file(), length, offset))

    handler = {"view": view, "slice": cut, "pyloop-read": read}[kind]
    framing = pyloop.FixedSize(REQUEST.size)

    def announce(server):
        print("listening", server.port, flush=True)

    server = pyloop.Server(handler, framing=framing, backlog=4096, on_start=announce)
    pyloop.run(server, backend="epoll")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["sendfile", "read", "view", "slice", "pyloop-read"]
    parser.add_argument("--way", choices=kinds, required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--framing", choices=["raw"], help="of the answers")
    args = parser.parse_args()

    @functools.cache
    def open_file():
        return os.open(args.file, os.O_RDONLY)

    plain = args.way in ("sendfile", "read")
    (serve_plainly if plain else serve_with_pyloop)(open_file, args.way)


if __name__ == "__main__":
    main()
