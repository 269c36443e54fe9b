"""TLS over asyncio's transports: an echo server that tells what it saw, peers by hand, an oracle.

A peer (`TLSPeer`) runs in a thread and blocks; it sees each of its records and can spoil them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl

import trustme
from conftest import open_fds
from peers import RESET, until

HOST = "127.0.0.1"
TIMEOUT = 30.0


@functools.cache
def authority():
    return trustme.CA()


@functools.cache
def server_context(name=HOST, **settings):
    """A server's SSLContext with a certificate for `name`, and these attributes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().configure_trust(context)
    return _prepare(context, name, **settings)


@functools.cache
def client_context(trusting=True, name=None, **settings):
    """A client's SSLContext, which may trust the server, and has a certificate for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusting:
        authority().configure_trust(context)
    return _prepare(context, name, **settings)


def _prepare(context, name, ciphers=None, **attributes):
    if name:
        authority().issue_cert(name).configure_cert(context)
    if ciphers:
        context.set_ciphers(ciphers)
    for attribute, value in attributes.items():
        setattr(context, attribute, value)
    return context


class Echo(asyncio.Protocol):
    """Sends back what comes, and keeps account of what it is told."""

    def __init__(self):
        self.events = []
        self.received = bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def data_received(self, data):
        if not self.received:
            self.events.append("data")
        self.received += data
        self.transport.write(data)

    def eof_received(self):
        self.events.append("eof")

    def connection_lost(self, exc):
        self.events.append(f"lost {name_of(exc)}")
        self.lost.set_result(exc)


def name_of(exc):
    """What of an exception is the same in each run; of TLS's, OpenSSL's reason."""
    reason = getattr(exc, "reason", None) if isinstance(exc, ssl.SSLError) else None
    return " ".join(filter(None, (type(exc).__name__ if exc else "None", reason)))


class TLSPeer:
    """One end of TLS over a blocking socket, by hand."""

    def __init__(self, sock, context, server_side=False):
        self.sock, self.unsent = sock, b""
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else HOST
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, name)

    def call(self, function, *args, records=1 << 30):
        """Do what needs bytes to and fro, sending so many records at most. Returns its result.

        Raises:
            EOFError: the records are used up, or the other end has closed.
        """
        while True:
            try:
                result, done = function(*args), True
            except ssl.SSLWantReadError:
                done = False
            for record in split(self.outgoing.read()):
                if not records:
                    self.unsent = record
                    raise EOFError
                self.sock.sendall(record)
                records -= 1
            if done:
                return result
            if not (data := self.sock.recv(1 << 16)):
                raise EOFError
            self.incoming.write(data)

    def handshake(self, records=1 << 30):
        self.call(self.tls.do_handshake, records=records)

    def seal(self, data):
        """Return `data` as TLS sends it."""
        self.tls.write(data)
        return self.outgoing.read()

    def receive(self, count):
        """Return that many bytes."""
        data = b""
        while len(data) < count:
            data += self.call(self.tls.read, count - len(data))
        return data

    def receive_once(self):
        """Return what one record holds."""
        return self.call(self.tls.read, 1 << 16)

    def finish(self, how="close"):
        """End what was sent, close or reset; return once the other end has ended too."""
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.sock.close()
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
            self.stay_silent()

    def stay_silent(self):
        """Read until the other end has ended."""
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 16):
                pass
        self.sock.close()


class SlowPeer(TLSPeer):
    def __init__(self, port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((HOST, port))
        super().__init__(sock, client_context())
        self.handshake()

    def read_to_end(self):
        data = bytearray()
        with contextlib.suppress(ssl.SSLZeroReturnError):  # b"", had it not sent its own before
            while piece := self.call(self.tls.read, 1 << 16):
                data += piece
        self.call(self.tls.unwrap)
        self.stay_silent()
        return bytes(data)


def split(data):
    """Cut ciphertext into its records; what is left over comes last."""
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        yield data[:end]
        data = data[end:]


def in_thread(function, *args):
    """Start it; the result can be awaited."""
    return asyncio.get_running_loop().run_in_executor(None, function, *args)


@contextlib.contextmanager
def told():
    """A list of what the loop's exception handler is told meanwhile."""
    loop, entries = asyncio.get_running_loop(), []
    before = loop.get_exception_handler()
    loop.set_exception_handler(
        lambda loop, context: entries.append(
            (context["message"].split(" at 0x")[0], name_of(context.get("exception")))
        )
    )
    try:
        yield entries
    finally:
        loop.set_exception_handler(before)


def count_sockets():
    return sum(what.startswith("socket:") for what in open_fds().values())


@contextlib.asynccontextmanager
async def echo_server(context, protocol=Echo, **options):
    """Serve TLS: gives the port and a list of the protocols. Leaves no connection behind."""
    before, made = count_sockets(), []

    def factory():
        made.append(protocol())
        return made[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, HOST, 0, ssl=context, **options)
    async with server:
        yield server.sockets[0].getsockname()[1], made
        await until(lambda: count_sockets() <= before + 1)  # all are gone but the listening one


async def talk(port, context=None, data=b"ping"):
    """Be a client in good order; return what was sent back."""
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context or client_context())
    writer.write(data)
    back = await reader.readexactly(len(data))
    writer.close()
    await writer.wait_closed()
    return back


@functools.cache
def _on_asyncio(scenario, *args):
    async def limited():
        async with asyncio.timeout(TIMEOUT):
            return await scenario(*args)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(limited())


def alike(run, scenario, *args):
    """Run a scenario on asyncio's loop and on ours: its result, which must be the same."""
    expected = _on_asyncio(scenario, *args)
    assert run(scenario(*args), TIMEOUT) == expected
    return expected
