"""Connections of the asyncio face that come and go leave nothing: no fd, no object, no memory.

The garbage collector is off, so what goes, goes by reference counts. tests/soak is the long run
of `churn_leaves_nothing`.
"""

from __future__ import annotations

import pytest
from faults import Child, asan

CHURN = """if True:
    import asyncio, collections, contextvars, gc, os, resource, socket, struct, sys, pyloop
    from faults import open_fds, say
    from pyloop.stream_transport import StreamTransport

    AT_ONCE = 50
    RESET = struct.pack("ii", 1, 0)
    WAYS = "close", "reset", "time-out", "abort"
    KINDS = StreamTransport, socket.socket, contextvars.Context, asyncio.Future, asyncio.Handle

    class Peer(asyncio.Protocol):
        def __init__(self, ended):
            self.ended = ended

        def connection_made(self, transport):
            self.transport = transport

        def connection_lost(self, exc):
            del self.transport
            self.ended()

    class Served(Peer):
        def data_received(self, data):
            way = WAYS[data[0]]
            if way == "abort":
                self.transport.abort()
            elif way == "time-out":
                self.transport.write(data)
                loop = asyncio.get_running_loop()
                loop.call_later(0, self.transport.close)
            else:
                self.transport.write(data)

    class Client(Peer):
        def __init__(self, ended, way):
            super().__init__(ended)
            self.way = way

        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(bytes([self.way]))

        def data_received(self, data):
            finish(self.way, self.transport.get_extra_info("socket"), self.transport)

    def finish(way, sock, closing):
        if WAYS[way] == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if WAYS[way] in ("close", "reset"):
            closing.close()

    def raw_client(address, way):
        sock = socket.create_connection(address)
        sock.sendall(bytes([way]))
        finish(way, sock, sock)
        return sock

    async def round(loop, address, number):
        ends = 0
        idle = loop.create_future()

        def ended():
            nonlocal ends
            ends += 1
            if ends == expected and not idle.done():
                idle.set_result(None)

        served.ended = ended
        way = number % len(WAYS)
        if number // len(WAYS) % 4:
            expected = AT_ONCE
            clients = [raw_client(address, way) for _ in range(AT_ONCE)]
        else:
            expected, clients = 2 * AT_ONCE, []
            for _ in range(AT_ONCE):
                await loop.create_connection(lambda: Client(ended, way), *address)
        if ends < expected:
            await idle
        for sock in clients:
            sock.close()

    class served:
        ended = None

    def left():
        kinds = collections.Counter(type(each) for each in gc.get_objects())
        names = sorted({*KINDS, Served, Client, asyncio.TimerHandle}, key=str)
        return {kind.__name__: kinds[kind] for kind in names}

    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    async def main(warm_up, count):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Served(served.ended), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        told = []
        for rounds in (warm_up // AT_ONCE, count // AT_ONCE):
            for number in range(rounds):
                await round(loop, address, number)
            await asyncio.sleep(0)
            told.append({"fds": open_fds(), "objects": left(), "rss": rss()})
        server.close()
        await server.wait_closed()
        say(before=told[0], after=told[1])

    gc.collect()
    gc.disable()
    pyloop.run(main(int(sys.argv[2]), int(sys.argv[3])), backend=sys.argv[1])
"""


def churn_leaves_nothing(backend: str, warm_up: int, count: int, bound: int) -> int:
    """End `count` connections in each way there is; return the growth in bytes, below `bound`."""
    with Child(CHURN, backend, str(warm_up), str(count)) as child:
        told = child.next()
        assert child.finish() == 0 and child.errors() == ""
    assert told["after"]["fds"] == told["before"]["fds"]
    assert told["after"]["objects"] == told["before"]["objects"]
    grown: int = told["after"]["rss"] - told["before"]["rss"]
    assert grown <= bound or asan(), f"{grown} bytes more after {count} connections"
    return grown


def test_connections_that_come_and_go_leave_no_fd_no_object_and_no_memory() -> None:
    churn_leaves_nothing("auto", 2000, 8000, bound=1 << 20)


IDLE = """if True:
    import asyncio, gc, os, resource, socket, sys, pyloop
    from faults import say

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    async def hold(address, count):
        peers = [socket.create_connection(address) for _ in range(count)]
        for peer in peers:
            peer.setblocking(False)
            peer.send(b"x")
            await asyncio.get_running_loop().sock_recv(peer, 1)
        gc.collect()
        return peers

    async def main(warm_up, count):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=4096)
        address = server.sockets[0].getsockname()
        peers = await hold(address, warm_up)
        before = rss()
        peers += await hold(address, count)
        ours = sys.getsizeof(peers[0]) + 64  # the client's socket, and its share of the list
        say(each=(rss() - before) / count - ours)
        os._exit(0)

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    pyloop.run(main(100, int(sys.argv[2])), backend=sys.argv[1])
"""


@pytest.mark.skipif(asan(), reason="ASan's memory is larger")
def test_idle_connection_costs_at_most_1300_bytes() -> None:
    with Child(IDLE, "auto", "2000") as child:
        assert child.next()["each"] <= 1300
