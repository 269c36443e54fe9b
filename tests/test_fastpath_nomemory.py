"""No memory: each allocation of each operation fails in turn, which is a MemoryError and no crash.

By CPython's own `_testcapi.set_nomemory`, in a process of its own.
"""

from __future__ import annotations

import importlib.util

import pytest
from faults import Child

from pyloop import fast

pytestmark = pytest.mark.skipif(
    fast.fastpath is None or importlib.util.find_spec("_testcapi") is None,
    reason="needs the fast path, and CPython's _testcapi",
)

SCRIPT = """if True:
    import asyncio, contextvars, faulthandler, gc, logging, socket, ssl, sys, time, pyloop
    from _testcapi import remove_mem_hooks, set_nomemory
    from faults import say

    faulthandler.enable()
    faulthandler.dump_traceback_later(90, exit=True)
    logging.disable()
    sys.unraisablehook = lambda what: None
    loop = pyloop.Loop(sys.argv[1])
    loop.set_exception_handler(lambda loop, context: None)
    context, ran = contextvars.copy_context(), []

    class Peer(asyncio.Protocol):
        received, lost = 0, False

        def data_received(self, data):
            Peer.received += len(data)
            self.transport.write(data)
            self.transport.write(bytearray(data))

        def connection_made(self, transport):
            self.transport = transport

        def connection_lost(self, exc):
            Peer.lost = True

    def connect():
        Peer.lost = False
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        loop.run_until_complete(loop.create_connection(Peer, sock=ours))
        return peer

    def turn():
        loop.call_soon(loop.stop)
        loop.run_forever()

    def soon():
        loop.call_soon(max, 1, 2)
        loop.call_soon(ran.append, 1, context=context)
        loop.call_soon_threadsafe(int)

    def later():
        loop.call_later(0, max, 1, 2).cancel()
        loop.call_at(0.0, int)

    def many():
        for _ in range(80):
            loop.call_soon(int)

    def cancelled():
        for _ in range(60):
            loop.call_later(3600, int).cancel()
        loop.call_later(0, int)

    async def nothing():
        pass

    def tasks():
        coro = nothing()
        try:
            loop.create_task(coro, name="named", context=context)
        except MemoryError:
            coro.close()
            raise

    def fail():
        raise LookupError

    def failing():  # no more than that: 3.12 itself crashes without memory in what reports it
        loop.call_soon(fail)

    def message():  # not run_forever: asyncio's way out of that needs memory
        loop._run_once()

    def failures(do, after):
        '''How many of the allocations of `do` were told of as a MemoryError.'''
        count = 0
        for start in range(1, 400):
            done = False
            set_nomemory(start, start + 1)
            try:
                do()
                done = True
            except MemoryError:
                count += 1
            finally:
                remove_mem_hooks()
            after()
            if done and start > 150:
                break
        return count
"""

PLAIN = """
    gc.collect()
    gc.disable()
    peer = connect()
    told = {}
    for do in (soon, later, many, cancelled, tasks, failing):
        told[do.__name__] = failures(do, turn)
        ran.clear()
        soon()
        turn()
        assert ran == [1], ran

    def received():
        global peer
        for _ in range(3):
            turn()
        if Peer.lost:  # what the protocol could not have ended its connection only
            peer.close()
            peer = connect()
        else:
            try:
                peer.recv(100)
            except BlockingIOError:
                pass
        peer.send(b"data")
        loop.call_soon(int)

    received()
    told["message"] = failures(message, received)
    peer.close()
    peer = connect()
    Peer.received = 0
    for _ in range(5):
        peer.send(b"data")
        turn()
        turn()
    assert Peer.received == 20, Peer.received
    peer.close()
    while not Peer.lost:
        turn()
    loop.close()
    say(**told)
"""


def test_every_allocation_that_fails_is_a_memory_error_and_the_loop_goes_on(backend):
    with Child(SCRIPT + PLAIN, backend) as child:
        told = child.next()
        assert child.finish() == 0, child.errors()
    assert all(told[name] > 0 for name in ("soon", "later", "many", "cancelled", "tasks")), told


ENCRYPTED = """
    from tls import SlowPeer, server_context

    def echo(conn, message):
        conn.send(message)
        conn.write(bytearray(message))

    async def serve(face):
        if face == "native":
            server = pyloop.Server(echo, ssl=server_context())
            await server.start()
            return server, server.port
        server = await loop.create_server(Peer, "127.0.0.1", 0, ssl=server_context())
        return server, server.sockets[0].getsockname()[1]

    def meet():
        peer = loop.run_until_complete(loop.run_in_executor(None, SlowPeer, port))
        peer.sock.setblocking(False)
        return peer

    def is_answered():
        # All of it, or the connection has ended.
        got = b""
        for _ in range(5000):
            turn()
            try:
                data = peer.sock.recv(1 << 16)
                peer.incoming.write(data)
                while data:
                    data = peer.tls.read(100)
                    got += data
                return False
            except (BlockingIOError, ssl.SSLWantReadError):
                time.sleep(0.0001)
            except OSError:
                return False
            if len(got) == 8:
                return got == b"datadata"
        raise AssertionError(got)

    def turns():
        for _ in range(3):  # received, delivered, encrypted
            loop.call_soon(int)
            loop._run_once()

    def after():
        global peer, ended
        if not is_answered():
            ended += 1
            peer.sock.close()
            peer = meet()
        peer.sock.send(peer.seal(b"data"))
        loop.call_soon(int)

    gc.collect()
    gc.disable()
    server, port = loop.run_until_complete(serve(sys.argv[2]))
    peer = meet()
    peer.sock.send(peer.seal(b"data"))
    loop.call_soon(int)
    ended = 0
    failures(turns, after)
    peer.sock.close()
    peer = meet()
    for _ in range(5):
        peer.sock.send(peer.seal(b"data"))
        assert is_answered()
    say(ended=ended)
"""


@pytest.mark.parametrize("face", ["asyncio", "native"])
def test_every_allocation_that_fails_under_tls_ends_no_more_than_a_connection(backend, face):
    with Child(SCRIPT + ENCRYPTED, backend, face) as child:
        assert child.next()["ended"] > 3
        assert child.finish() == 0, child.errors()


DATAGRAMS = """
    class Echo(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)
            self.transport.sendto(data, addr=addr)

        def connection_made(self, transport):
            self.transport = transport

    made = loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    transport, _ = loop.run_until_complete(made)
    address = transport.get_extra_info("sockname")
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setblocking(False)

    def answers():
        count = 0
        try:
            while True:
                count += sock.recv(100) == b"data"
        except BlockingIOError:
            return count

    def received():
        for _ in range(3):
            turn()
        answers()
        if FORGET:
            transport._senders.clear()
            transport._packed.clear()
        for _ in range(3):
            sock.sendto(b"data", address)
        loop.call_soon(int)

    told = {}
    for FORGET in (False, True):
        received()
        told[str(FORGET)] = failures(message, received)
    for _ in range(3):
        turn()
    answers()
    sock.sendto(b"data", address)
    count = 0
    for _ in range(1000):
        turn()
        count += answers()
        if count == 2:
            break
    assert count == 2, count
    sock.close()
    transport.abort()
    turn()
    loop.close()
    say(**told)
"""


def test_datagrams_without_memory_are_lost_and_the_transport_goes_on(backend):
    with Child(SCRIPT + DATAGRAMS, backend) as child:
        assert set(child.next()) == {"False", "True"}
        assert child.finish() == 0, child.errors()
