"""connect(): a Connection of one's own on the running loop."""

from __future__ import annotations

import asyncio
import socket

import pytest
from peers import until

import pyloop

FRAMINGS = [
    pyloop.Raw(),
    pyloop.Lines(),
    pyloop.Delimited(b"--"),
    pyloop.LengthPrefixed(),
    pyloop.LengthPrefixed("varint"),
    pyloop.FixedSize(5),
    pyloop.Netstring(),
]


def echo(conn, message):
    conn.send(message)


async def hang(conn):
    await asyncio.get_running_loop().create_future()


async def leave(conn):
    """Close, and wait until the socket is gone."""
    conn.close()
    await conn.wait_closed()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_send_and_receive_with_every_framing(run, framing):
    async def main():
        async with pyloop.Server(echo, framing=framing) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=framing)
            assert isinstance(conn, pyloop.Connection)
            for message in (b"hello", b"again"):
                conn.send(message)
                assert await conn.receive() == message
            await leave(conn)

    run(main())


def test_raw_is_the_default_framing_and_names_are_known(run):
    async def main():
        async with pyloop.Server(echo) as server:
            conn = await pyloop.connect("127.0.0.1", server.port)
            assert conn.peername == ("127.0.0.1", server.port)
            assert conn.sockname[0] == "127.0.0.1"
            assert conn.server is None and conn.state is None
            conn.write(b"raw")
            assert await conn.receive() == b"raw"
            await leave(conn)
            assert conn.peername == ("127.0.0.1", server.port)

    run(main())


def test_iteration_ends_at_the_servers_end_of_stream(run):
    async def counting(conn):
        for number in range(1000):
            conn.send(b"%d" % number)

    async def main():
        async with pyloop.Server(counting, framing=pyloop.Lines()) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines())
            assert [line async for line in conn] == [b"%d" % number for number in range(1000)]
            assert await conn.receive() is None
            await leave(conn)

    run(main())


class Client(pyloop.Protocol):
    def __init__(self):
        self.calls = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, conn):
        self.calls.append(("made", conn))
        conn.send(b"hello")

    def message_received(self, message):
        self.calls.append(message)
        self.calls[0][1].close()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


def test_protocol_class_and_instance_get_the_calls(run):
    async def main():
        async with pyloop.Server(echo) as server:
            for protocol in (Client(), made := Client, lambda: Client()):
                conn = await pyloop.connect("127.0.0.1", server.port, protocol=protocol)
                client = conn._target
                assert isinstance(client, made)
                with pytest.raises(RuntimeError, match=r"receive\(\) is for coroutine handlers"):
                    await conn.receive()
                assert await client.lost is None
                assert client.calls == [("made", conn), b"hello"]

    run(main())


@pytest.mark.parametrize("name", ["socket", "@pyloop-connect", "\0pyloop-connect"])
def test_unix_path_and_abstract_name(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = name.replace("connect", tmp_path.name)

    async def main():
        async with pyloop.Server(echo, path=name):
            conn = await pyloop.connect(path=name)
            conn.send(b"ping")
            assert await conn.receive() == b"ping"
            await leave(conn)

    run(main())


def test_ipv6_and_a_name_with_several_addresses(run):
    async def main():
        async with pyloop.Server(echo, "::1") as server:
            conn = await pyloop.connect("::1", server.port)
            assert conn.peername[:2] == ("::1", server.port)
            await leave(conn)
        async with pyloop.Server(echo, "127.0.0.1") as server:  # ::1, if tried first, refuses
            conn = await pyloop.connect("localhost", server.port)
            assert conn.peername == ("127.0.0.1", server.port)
            await leave(conn)

    run(main())


# ---- the end ----


def test_server_that_closes_is_none_and_one_that_resets_is_raised(run):
    async def main():
        def handler(conn, message):
            conn.abort() if message == b"abort" else conn.close()

        async with pyloop.Server(handler) as server:
            conn = await pyloop.connect("127.0.0.1", server.port)
            conn.send(b"close")
            assert await conn.receive() is None
            await leave(conn)
            conn = await pyloop.connect("127.0.0.1", server.port)
            conn.send(b"abort")
            with pytest.raises(ConnectionResetError):
                await conn.receive()
            with pytest.raises(ConnectionResetError):
                await anext(conn)
            await conn.wait_closed()

    run(main())


def test_framing_error_is_raised(run):
    async def main():
        def handler(conn, message):
            conn.write(b"good\n" + bytes(100))

        async with pyloop.Server(handler) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, framing=pyloop.Lines(10))
            conn.send(b"x")
            assert await conn.receive() == b"good"
            with pytest.raises(pyloop.FramingError, match="message over max_size"):
                await conn.receive()
            await conn.wait_closed()

    run(main())


def test_closed_client_raises_connection_closed(run):
    async def main():
        async with pyloop.Server(echo) as server:
            conn = await pyloop.connect("127.0.0.1", server.port)
            conn.close()
            for operation in (conn.receive, conn.drain):
                with pytest.raises(pyloop.ConnectionClosed):
                    await operation()
            await conn.wait_closed()
            for operation in (conn.receive, conn.drain):
                with pytest.raises(pyloop.ConnectionClosed):
                    await operation()

    run(main())


def test_write_limit_is_the_clients_own(run):
    async def main():
        class Paused(pyloop.Protocol):
            def connection_made(self, conn):
                conn.pause_reading()

        async with pyloop.Server(Paused, drain_timeout=0) as server:
            conn = await pyloop.connect("127.0.0.1", server.port, write_limit=1000)
            conn.send(bytes(16 << 20))
            conn.send(b"one more")
            with pytest.raises(pyloop.WriteLimitError, match="write_limit=1000"):
                await conn.receive()
            await conn.wait_closed()

    run(main())


def test_read_limit_bounds_what_waits(run):
    async def flood(conn):
        for _ in range(10_000):
            conn.send(bytes(1000))
            await conn.drain()

    async def main():
        framing = pyloop.LengthPrefixed()
        async with pyloop.Server(flood, framing=framing) as server:
            conn = await pyloop.connect(
                "127.0.0.1", server.port, framing=framing, read_limit=10_000
            )
            await until(lambda: conn._target.size >= 10_000)
            assert conn._target.size <= 11_000
            assert [len(message) async for message in conn] == [1000] * 10_000
            await leave(conn)

    run(main())


# ---- failures ----


def test_refused_names_the_address(run):
    port = free_port()

    async def main():
        where = rf"cannot connect to 127\.0\.0\.1:{port}: "
        with pytest.raises(ConnectionRefusedError, match=where):
            await pyloop.connect("127.0.0.1", port)
        with pytest.raises(OSError, match=rf"localhost:{port}|127\.0\.0\.1:{port}"):
            await pyloop.connect("localhost", port)

    run(main())


def test_missing_path_and_unknown_host_are_named(run):
    async def main():
        with pytest.raises(FileNotFoundError, match="cannot connect to no/such/path: No such file"):
            await pyloop.connect(path="no/such/path")
        with pytest.raises(OSError, match="@no-such-name"):
            await pyloop.connect(path="@no-such-name")
        with pytest.raises(OSError, match="no such host"):
            await pyloop.connect("no such host", 80)

    run(main())


def test_unknown_host_is_named_with_what_getaddrinfo_said(run, monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def main():
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        text = r"cannot connect to no-such-host\.invalid:1: Name or service not known"
        with pytest.raises(socket.gaierror, match=text) as info:
            await pyloop.connect("no-such-host.invalid", 1)
        assert info.value.errno == socket.EAI_NONAME

    run(main())


def test_cancelled_connect_leaves_nothing_open(run):
    async def main():
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pyloop.connect(*address), 0.05)
            for filler in fillers:
                filler.close()

    run(main())


BAD = [
    ({}, TypeError, "expected host and port, or path; got host=None, port=None"),
    ({"host": "::1"}, TypeError, "expected host and port, or path; got host='::1', port=None"),
    ({"host": 1, "port": 2}, TypeError, "got host=1, port=2"),
    ({"host": "::1", "port": "80"}, TypeError, "port: expected an integer, got '80'"),
    ({"host": "::1", "port": 0}, ValueError, "port: expected 1 to 65535, got 0"),
    ({"host": "::1", "port": 1, "path": "x"}, ValueError, "host and port, or path; got both"),
    ({"path": "x", "framing": pyloop.Lines}, TypeError, "framing: expected"),
    ({"path": "x", "ssl": 1}, TypeError, "ssl: expected an ssl.SSLContext or None, got 1"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD)
def test_bad_arguments_are_refused_by_name(arguments, error, text):
    with pytest.raises(error, match=text):
        pyloop.connect(**arguments).send(None)
    with pytest.raises(error, match=text):
        pyloop.dial(**arguments)


def test_bad_protocol_is_refused_and_connects_nowhere(run):
    async def main():
        with pytest.raises(TypeError, match=r"protocol: expected a pyloop\.Protocol"):
            await pyloop.connect("127.0.0.1", 1, protocol=object)
        with pytest.raises(TypeError, match="protocol"):
            await pyloop.connect("127.0.0.1", 1, protocol=3)

    run(main())


def test_connect_without_a_pyloop_loop_names_run():
    with pytest.raises(RuntimeError, match=r"pyloop\.Loop .*pyloop\.run\(\)"):
        asyncio.run(pyloop.connect("127.0.0.1", 1))
    with pytest.raises(RuntimeError, match=r"no loop is running.*pyloop\.run\(\)"):
        pyloop.connect("127.0.0.1", 1).send(None)
