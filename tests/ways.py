"""One server, in each of the ways in which pyloop can run it, in a process of its own.

In the test:

    with serving("thread", idle_timeout=1.0) as server:
        peer = server.new()
        assert peer.echo(b"hello")
        peer.close()
        assert server.ended(peer) == (None, "")

The server answers lines: most come back, some are orders (see `answer`). It says how each of its
conversations ended: the class and text of what `receive` raised, or connection_lost was told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Any

import faults

import pyloop


@dataclasses.dataclass(frozen=True)
class Way:
    """How a server is run: options of Server, and a kind of handler in HANDLERS."""

    options: dict[str, Any]
    handler: str

    @property
    def acceptors(self) -> int:
        """How many processes accept, each as many connections as it may have."""
        workers: int = self.options.get("workers", 1)
        return workers


WAYS = {
    "loop": Way({}, "protocol"),
    "thread": Way({"model": "thread"}, "blocking"),
    "fork": Way({"model": "fork"}, "blocking"),
    "workers": Way({"workers": 2}, "protocol"),
    "workers with coroutines": Way({"workers": 2}, "coroutine"),
    "workers of threads": Way({"workers": 2, "model": "thread"}, "blocking"),
}

SCRIPT = "import sys, ways; ways.main(*sys.argv[1:])"


# ---- in the test ----


class Running(faults.Child):
    """A server in a process of its own."""

    def __init__(self, way: str, backend: str, options: dict[str, Any], **popen: Any) -> None:
        super().__init__(SCRIPT, way, backend, json.dumps(options), **popen)
        self._sockets: list[socket.socket] = []
        self._ports: dict[Any, int] = {}  # of the clients' ends
        self._endings: dict[int, tuple[str | None, str]] = {}  # by port, those not asked for
        self._before: dict[str, Any] = {}
        self.tls = self.next()["authority"] if options.get("tls") else None
        self.port: int = self.next()["port"]

    def ended(self, client: Any) -> tuple[str | None, str]:
        """Wait until the conversation with a client has ended; return how."""
        port = self._ports[client]
        while port not in self._endings:
            self._note(self.next())
        return self._endings.pop(port)

    def _note(self, told: dict[str, Any]) -> None:
        port, kind, text = told["ended"]
        self._endings[port] = kind, text

    def ask(self, command: str) -> Any:
        answer = super().ask(command)
        while "ended" in answer:
            self._note(answer)
            answer = self.next()
        return answer

    def stats(self) -> dict[str, Any]:
        """Return what the server has counted since `begin_anew`."""
        stats, before = self.ask("stats"), self._before
        numbers = {name: n - before.get(name, 0) for name, n in stats.items() if type(n) is int}
        return stats | numbers

    def counted(self, **expected: int) -> bool:
        """Does the server come to count so? What threads in workers count is added up in time."""
        end = time.monotonic() + faults.TIMEOUT
        while True:
            stats = self.stats()
            if all(stats[name] == value for name, value in expected.items()):
                return True
            if time.monotonic() > end:
                print({name: stats[name] for name in expected})
                return False

    def begin_anew(self) -> None:
        """Close all clients, so that another test finds a server like a new one."""
        for client in (*self._sockets, *self._peers):
            client.close()
        faults.wait_until(self, "open", 0)
        for of_clients in (self._sockets, self._peers, self._ports, self._endings):
            of_clients.clear()
        self._before = self.ask("stats")

    def connect(self) -> socket.socket:
        """Return a client's socket, with TLS if the server wants it; closed with the server."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=faults.TIMEOUT)
        port = sock.getsockname()[1]
        self._sockets.append(sock)
        if self.tls is not None:
            context = ssl.create_default_context(cadata=self.tls)
            sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
            self._sockets.append(sock)
        self._ports[sock] = port
        return sock

    def new(self) -> faults.Peer:
        """Return a client that is closed, at the latest, with the server."""
        peer = faults.Peer.__new__(faults.Peer)
        peer.sock = self.connect()
        peer._file = peer.sock.makefile("rb")
        self._peers.append(peer)
        self._ports[peer] = self._ports[peer.sock]
        return peer

    def __exit__(self, *exc_info: Any) -> None:
        for sock in self._sockets:
            sock.close()
        super().__exit__(*exc_info)

    def children(self) -> dict[int, str]:
        """Return the child processes of the server and their states: R, S, Z ..."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
                if int(parent) == self.pid:
                    found[int(name)] = state
        return found

    def terminate(self) -> int:
        """SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(faults.TIMEOUT)


@contextlib.contextmanager
def serving(way: str, backend: str = "auto", **options: Any) -> Iterator[Running]:
    """Run a server; at the end it is stopped in good order, unless it has ended."""
    with Running(way, backend, options) as server:
        yield server
        if server.process.poll() is None:
            server.stop()


def read_all(sock: socket.socket) -> bytes:
    """Return all up to the end of stream."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


# ---- in the server ----


def answer(conn: Any, line: bytes) -> None:
    """Obey an order, or send the line back."""
    order, _, argument = line.partition(b" ")
    if order == b"raise":
        raise LookupError("as ordered")
    elif order == b"pid":
        conn.send(b"%d" % os.getpid())
    elif order == b"sleep":
        conn.send(b"sleeping")
        time.sleep(float(argument))
    elif order == b"big":
        conn.write(bytes(range(256)) * (int(argument) // 256))
    elif order == b"close":
        conn.close()
    elif order == b"abort":
        conn.abort()
    elif order == b"exit":
        raise SystemExit(int(argument))
    elif order == b"fds":
        conn.send(json.dumps(faults.open_fds()).encode())
    else:
        conn.send(line)


def ended(conn: Any, exc: BaseException | None) -> None:
    faults.say(ended=(conn.peername[1], type(exc).__name__ if exc else None, str(exc or "")))


class Answering(pyloop.Protocol):
    def connection_made(self, conn: Any) -> None:
        self.conn = conn

    def message_received(self, message: bytes) -> None:
        answer(self.conn, message)

    def connection_lost(self, exc: BaseException | None) -> None:
        ended(self.conn, exc)


def blocking(conn: Any) -> None:
    try:
        for line in conn:
            answer(conn, line)
    except BaseException as exc:
        ended(conn, exc)
        raise
    ended(conn, None)


async def coroutine(conn: Any) -> None:
    try:
        async for line in conn:
            answer(conn, line)
            await conn.drain()
    except BaseException as exc:
        ended(conn, exc)
        raise
    ended(conn, None)


HANDLERS = {"protocol": Answering, "blocking": blocking, "coroutine": coroutine}


def tls_context() -> ssl.SSLContext:
    """Make a certificate, and say who vouches for it."""
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    faults.say(authority=authority.cert_pem.bytes().decode())
    return context


def main(name: str, backend: str, arguments: str) -> None:
    """Serve until told to stop. Options are Server's, and: framing as source, tls, fds."""
    logging.basicConfig()
    options = json.loads(arguments)
    way = WAYS[name]
    framing = options.pop("framing", "Lines()")
    if options.pop("tls", False):
        options["ssl"] = tls_context()
    if fds := options.pop("fds", 0):
        faults.limit_fds(fds)
    options["framing"] = eval(framing, vars(pyloop))
    faults.serve(HANDLERS[way.handler], backend, **way.options, **options)
    sys.exit(0)
