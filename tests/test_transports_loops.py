"""asyncio's stream transports whose loop is closed, one of two, or another thread's."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings

import pytest
from conftest import open_fds
from peers import until
from transports import Recorder, attached, receive

import pyloop

# ---- loops ----


def test_loop_closed_with_open_transports_warns_and_closes_their_fds(backend):
    gc.collect()
    before = open_fds()
    loop = pyloop.Loop(backend)

    async def main():
        pairs = [socket.socketpair() for _ in range(3)]
        transports = [(await loop.create_connection(Recorder, sock=mine))[0] for mine, _ in pairs]
        transports[1].write(bytes(3 << 20))
        transports[2].write(bytes(3 << 20))
        transports[2].close()
        return transports, [peer for _, peer in pairs]

    transports, peers = loop.run_until_complete(main())
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transports
        gc.collect()
    texts = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert sum(text.startswith("unclosed transport <StreamTransport open") for text in texts) == 2
    for peer in peers:
        peer.close()
    assert open_fds() == before


@pytest.mark.parametrize("end", ["close", "abort"])
def test_transport_ended_after_its_loop_is_closed_closes_its_fd(backend, end):
    loop = pyloop.Loop(backend)
    mine, peer = socket.socketpair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=mine))
    with peer:
        loop.close()
        assert not transport.is_closing()
        getattr(transport, end)()
        getattr(transport, end)()
        assert transport.is_closing() and mine.fileno() == -1
        assert repr(transport) == "<StreamTransport closed>"
        assert peer.recv(1) == b"" and protocol.calls == ["made"]
        transport.write(b"dropped")
        transport.write_eof()
        transport.pause_reading()
        transport.resume_reading()
        assert transport.get_write_buffer_size() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del transport
        gc.collect()


def test_two_loops_in_two_threads_serve_each_other(backend):
    count, results = 20, []

    def serve(ready, done):
        async def main():
            async def echo(reader, writer):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
                writer.close()

            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            ready.append(server.sockets[0].getsockname())
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait, 60)
            server.close()
            await server.wait_closed()

        pyloop.run(main(), backend=backend)

    ready, started, done = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=serve, args=(ready, done))
    thread.start()
    try:
        assert started.wait(60)

        async def client(number):
            reader, writer = await asyncio.open_connection(*ready[0])
            data = b"%d" % number * 20_000
            writer.write(data)
            writer.write_eof()
            results.append(await reader.read() == data)
            writer.close()
            await writer.wait_closed()

        async def main():
            async with asyncio.timeout(60):
                await asyncio.gather(*map(client, range(count)))

        pyloop.run(main(), backend=backend)
    finally:
        done.set()
        thread.join(60)
    assert results == [True] * count


CALLS = {
    "write": lambda transport: transport.write(b"x"),
    "write bytearray": lambda transport: transport.write(bytearray(b"x")),
    "writelines": lambda transport: transport.writelines([b"x"]),
    "write_eof": lambda transport: transport.write_eof(),
    "close": lambda transport: transport.close(),
    "abort": lambda transport: transport.abort(),
    "pause": lambda transport: transport.pause_reading(),
    "limits": lambda transport: transport.set_write_buffer_limits(5),
    "set_protocol": lambda transport: transport.set_protocol(asyncio.BufferedProtocol()),
}


def test_call_from_another_thread_is_refused_and_changes_nothing(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            refused = r"from another thread .* use loop\.call_soon_threadsafe\(\)"
            for call in CALLS.values():
                with pytest.raises(RuntimeError, match=refused):
                    await asyncio.to_thread(call, transport)
                assert transport.is_reading() and not transport.is_closing()
                assert transport.get_protocol() is protocol
                assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            peer.send(b"data")
            await until(lambda: protocol.data == b"data")
            transport.write(b"answer")
            assert await receive(peer, 6) == b"answer"

    run(main())


def test_close_that_a_signal_interrupts_has_closed(run):
    class Interrupted(socket.socket):
        closes = 0

        def close(self):
            Interrupted.closes += 1
            super().close()
            raise InterruptedError("as close(2) says on Linux when it has closed")

    async def main():
        mine, peer = socket.socketpair()
        protocol = Recorder()
        async with attached(protocol, (Interrupted(fileno=mine.detach()), peer)) as (transport, _):
            transport.close()
            assert await protocol.lost is None
            assert await receive(peer, 1) == b"" and Interrupted.closes == 1

    run(main())
