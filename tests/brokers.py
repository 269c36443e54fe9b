"""Servers that a bus can go over: real ones on free ports, and one that does as it is told.

with RedisServer(tmp_path) as server:
    broker = RedisBroker(server.url)
    server.restart()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyloop.nats_broker import NatsBroker
from pyloop.redis_broker import RedisBroker

TIMEOUT = 60.0


def no_preload() -> dict[str, str]:
    """The environment for programs of others, which need not stand ASan's library."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


class BrokerServer:
    """A server process, which keeps its port over a restart and nothing else.

    Args:
        directory: where it works, and leaves nothing that is needed.
        host: an address that it listens on, and only there.
        prefix: a command that starts it in other surroundings.
    """

    program: str
    scheme: str
    says_ready: str
    ends_by: signal.Signals = signal.SIGKILL

    def __init__(self, directory: Path, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()):
        self.directory, self.host, self.prefix = directory, host, prefix
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def require(cls) -> None:
        """Skip the test, with the reason, where there is no such server; fail in CI."""
        if cls.path() is None:
            assert "PYLOOP_CI" not in os.environ, f"{cls.program} is missing"
            pytest.skip(f"{cls.program} is not installed")

    @classmethod
    def path(cls) -> str | None:
        """Where it is: some are only in root's PATH."""
        return shutil.which(cls.program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

    def arguments(self) -> list[str]:
        raise NotImplementedError  # abstract: each server has its own options

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def __enter__(self) -> BrokerServer:
        self.require()
        for _ in range(5):  # the port that was free may be somebody's by now
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self.port = sock.getsockname()[1]
            if self.start():
                return self
        raise AssertionError(f"{self.program} does not start:\n{self.log()}")

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> bool:
        """Start it, wait until it accepts. Returns whether it does."""
        with open(self.directory / "log", "w") as log:
            self._process = subprocess.Popen(
                [*self.prefix, str(self.path()), *self.arguments()],
                cwd=self.directory,
                env=no_preload(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + TIMEOUT
        while self._process.poll() is None and time.monotonic() < end:
            if self.says_ready in self.log():
                return True
            time.sleep(0.005)
        self.stop()
        return False

    def stop(self) -> None:
        """End it, at once: all connections are cut off."""
        if self._process is not None:
            self._process.send_signal(self.ends_by)
            self._process.wait(TIMEOUT)
            self._process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Have it do nothing, and close nothing, within a block."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        assert self.start(), self.log()


class RedisServer(BrokerServer):
    program = "redis-server"
    scheme = "redis"
    says_ready = "Ready to accept connections"

    def arguments(self) -> list[str]:
        where = ["--bind", self.host, "--port", str(self.port), "--protected-mode", "no"]
        return [*where, "--save", "", "--appendonly", "no"]


class SecureRedisServer(RedisServer):
    """By TLS only, with a password: "word"; server.pem is in its directory."""

    scheme = "rediss"

    def arguments(self) -> list[str]:
        tls = {"port": str(self.port), "auth-clients": "no"}
        tls |= {"cert-file": "server.pem", "key-file": "server.pem", "ca-cert-file": "server.pem"}
        options = [word for name, value in tls.items() for word in (f"--tls-{name}", value)]
        return [*super().arguments(), "--port", "0", "--requirepass", "word", *options]


class NatsServer(BrokerServer):
    program = "nats-server"
    scheme = "nats"
    says_ready = "Server is ready"

    def arguments(self) -> list[str]:
        return ["--addr", self.host, "--port", str(self.port)]


BROKERS = {RedisServer: RedisBroker, NatsServer: NatsBroker}


def broker_of(url):
    return (RedisBroker if url.startswith("redis") else NatsBroker)(url)


@contextlib.asynccontextmanager
async def answering(answer: bytes | Callable[[int, bytes], bytes]):
    """A server that answers everybody and everything alike, and so greets too; or as it is told.

    Yields the server; `.port` is where it is, `.met` counts who came. A function as the answer is
    given the number of the connection, from 1, and what came.
    """
    talks = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.met += 1
        number = server.met
        talks.add(asyncio.current_task())
        try:
            if not callable(answer):
                writer.write(answer)
            while data := await reader.read(65536):
                writer.write(answer(number, data) if callable(answer) else answer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    server.met, server.port = 0, server.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.close()
        await asyncio.gather(*talks)
        await server.wait_closed()


class Hearing:
    """A broker that is open, and what it was told. None in `heard` is a gap of unknown size."""

    def __init__(self, url):
        self.broker = broker_of(url)
        self.heard = []
        self.new = asyncio.Event()
        self.broker.open(self.hear, self.miss)

    def hear(self, topic, message):
        self.heard.append((topic, message))
        self.new.set()

    def miss(self, count):
        self.heard.append(count)
        self.new.set()

    async def until(self, condition):
        while not condition(self.heard):
            self.new.clear()
            await self.new.wait()

    async def listen(self, *prefixes):
        self.broker.listen(frozenset(prefixes))
        await self.broker.ready()


@contextlib.asynccontextmanager
async def hearing(url, *prefixes):
    """A broker that listens, if it is to, and is closed at the end."""
    hearing = Hearing(url)
    try:
        if prefixes:
            await hearing.listen(*prefixes)
        yield hearing
    finally:
        await hearing.broker.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def numbers(count):
    return [b"%d" % number for number in range(count)]


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "pyloop"]


async def leaving_no_task(coro):
    """Await something, after which no task is left."""
    await coro
    assert asyncio.all_tasks() == {asyncio.current_task()}
