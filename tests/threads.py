"""Servers of model thread in a thread of the test's process: tests can hold their connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import socket
import threading

import pyloop

SECONDS = 60
BIG = bytes(range(256)) * 40_000
"""More than a loopback connection buffers."""


class Serving:
    """A server of model thread, run in a thread of the test's process."""

    def __init__(self, handler, backend="auto", **options):
        options = {"framing": pyloop.Lines(), "model": "thread", **options}
        self.server = pyloop.Server(handler, on_start=self._started, **options)
        self._backend = backend
        self._is_up = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self.sockets = []

    def _started(self, server):
        self.loop = asyncio.get_running_loop()
        self.port = server.port
        self._is_up.set()

    def __enter__(self):
        self.ended = self._pool.submit(pyloop.run, self.server, backend=self._backend)
        self.ended.add_done_callback(lambda _: self._is_up.set())
        assert self._is_up.wait(SECONDS)
        return self

    def __exit__(self, *exc_info):
        for sock in self.sockets:
            sock.close()
        self._pool.shutdown(wait=False)
        if not self.ended.done():
            self.stop()
        if exc_info[0] is None:
            self.ended.result(SECONDS)

    def in_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS)

    def stop(self):
        with contextlib.suppress(concurrent.futures.CancelledError):
            self.in_loop(self.server.stop())

    def client(self, receive_buffer=0):
        sock = socket.socket()
        self.sockets.append(sock)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(SECONDS)
        sock.connect(("127.0.0.1", self.port))
        return sock


class Conversations:
    """A handler that hands its connections to the test, and stays until it is told to go."""

    def __init__(self):
        self.arrivals = queue.Queue()

    def __call__(self, conn):
        conn.state = Visit()
        self.arrivals.put(conn)
        try:
            while (line := conn.receive()) is not None:
                conn.state.got.append(line)
                if line == b"big":
                    conn.write(BIG)
        except BaseException as exc:
            conn.state.raised = exc
            raise
        finally:
            conn.state.over.set()

    def next(self):
        return self.arrivals.get(timeout=SECONDS)


class Visit:
    def __init__(self):
        self.got, self.raised, self.over = [], None, threading.Event()


def read_all(sock):
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def until(condition):
    """Wait for a state that no event tells of."""
    for _ in range(SECONDS * 200):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came about")
