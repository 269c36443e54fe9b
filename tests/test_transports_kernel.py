"""asyncio's stream transports when the kernel says no, or has made a child of the process.

The servers are processes of their own; their failing calls are those of tests/shim/faults.c.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import Child, asan, compile_shim, still_serves

SERVER = """if True:
    import asyncio, json, os, resource, signal, sys, pyloop
    from faults import limit_fds, open_fds, say, shim_library

    reports, protocols = [], set()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.rest = transport, b""
            protocols.add(self)

        def data_received(self, data):
            *lines, self.rest = (self.rest + data).split(b"\\n")
            for line in lines:
                self.transport.write(line + b"\\n")
                if line.startswith(b"fork "):
                    fork(line[5:].decode(), self.transport)
                elif line == b"flood":
                    shim_library().faults_set(b"epoll_ctl:ENOMEM:count=1")
                    self.transport.write(bytes(1 << 26))

        def connection_lost(self, exc):
            protocols.discard(self)

    def fork(how, transport):
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            transport.write(b"forked\\n")
            return
        signal.alarm(30)
        globals()[how]()
        os._exit(0)

    def let_go():
        transports = [each.transport for each in protocols]
        server.close()
        for number, transport in enumerate(transports):
            transport.abort() if number % 2 else transport.close()
        assert all(each.get_extra_info("socket").fileno() == -1 for each in transports)
        loop.close()
        say(child="let go")

    def use():
        transport = next(iter(protocols)).transport
        told = []
        for call in (lambda: transport.write(b"child"), transport.pause_reading,
                     transport.write_eof, lambda: transport.set_write_buffer_limits(1)):
            try:
                told.append(repr(call()))
            except RuntimeError as exc:
                told.append(str(exc))
        say(told=told)

    def renew():
        loop.close()
        asyncio.events._set_running_loop(None)

        async def main():
            async def serve(reader, writer):
                writer.write(await reader.readline())
                writer.close()
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"new\\n")
            line = await reader.read()
            writer.close()
            server.close()
            return line.decode()

        say(child=pyloop.run(main(), backend=sys.argv[1]))

    def asked():
        data = os.read(0, 65536)
        if not data:
            loop.stop()
        for line in data.decode().splitlines():
            name, _, argument = line.partition(" ")
            if name == "rules":
                say(rules=shim_library().faults_set(argument.encode()))
            elif name == "count":
                count = shim_library().faults_count
                call = argument.encode()
                say(calls=count(call, b"calls"), failed=count(call, b"failed"))
            elif name == "limit":
                limit_fds(int(argument))
                say()
            else:
                stats = loop.stats()
                say(open=len(protocols), fds=open_fds(), ticks=stats.ticks, reports=reports)

    loop = pyloop.Loop(sys.argv[1])
    loop.set_exception_handler(
        lambda _, context: reports.append(f"{context['message']}: {context.get('exception')}"))
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    loop.add_reader(0, asked)
    say(port=server.sockets[0].getsockname()[1], pid=os.getpid())
    loop.run_forever()
    server.close()
    loop.close()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


def gone(child):
    """Ask until no connection is left; return what the server told."""
    while (told := child.ask("stats"))["open"]:
        pass
    return told


def test_forked_child_that_lets_go_or_begins_anew_leaves_the_parent_serving(backend):
    with Child(SERVER, backend) as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(30)]
        assert all(peer.echo(b"before") for peer in peers)
        for how, said in ((b"let_go", "let go"), (b"renew", "new\n")):
            peers[0].send(b"fork %s\n" % how)
            assert child.next() == {"child": said}
            assert (peers[0].line(), peers[0].line()) == (b"fork %s\n" % how, b"forked\n")
            assert all(peer.echo(b"after") for peer in peers)
            assert still_serves(child, port, 10)
        assert child.finish() == 0


def test_forked_child_that_uses_a_transport_is_told_whose_it_is(backend):
    with Child(SERVER, backend) as child:
        told = child.next()
        peer = child.peer(told["port"])
        peer.send(b"fork use\n")
        answers = child.next()["told"]
        belongs = f"the loop belongs to process {told['pid']}"
        assert [answer for answer in answers if belongs not in answer] == []
        assert (peer.line(), peer.line()) == (b"fork use\n", b"forked\n")
        assert peer.echo(b"after") and still_serves(child, told["port"], 10)
        assert child.finish() == 0


def test_accept_failing_every_third_time_serves_all(shim, backend):
    with Child(SERVER, backend, shim=shim, rules="accept4:EMFILE:every=3") as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(12)]
        assert all(peer.echo(b"hello") for peer in peers)
        count, told = child.ask("count accept4"), child.ask("stats")
        assert count["failed"] >= 4 and count["calls"] <= 3 * len(peers)
        assert told["open"] == 12 and told["ticks"] <= 10 * len(peers)
        short = "socket.accept() out of system resource: [Errno 24] Too many open files"
        assert set(told["reports"]) == {short}
        assert child.finish() == 0


def test_fd_limit_is_reached_and_recovered_from(backend):
    with Child(SERVER, backend) as child:
        port = child.next()["port"]
        child.ask("limit 40")
        peers = [child.peer(port) for _ in range(60)]
        for number, peer in enumerate(peers):
            peer.send(b"%d\n" % number)
        for number, peer in enumerate(peers):
            assert peer.line() == b"%d\n" % number
            peer.close()
        gone(child)
        assert child.finish() == 0


def test_enomem_of_epoll_ctl_costs_that_connection_only(shim):
    with Child(SERVER, "epoll", shim=shim) as child:
        port = child.next()["port"]
        fds = child.ask("stats")["fds"]
        child.ask("rules epoll_ctl:ENOMEM:from=3:count=1")
        peers = [child.peer(port) for _ in range(6)]
        answers = []
        for peer in peers:
            try:
                answers.append(peer.echo(b"hello"))
            except ConnectionError:
                answers.append(False)
            peer.close()
        assert answers == [True] * 2 + [False] + [True] * 3
        told = gone(child)
        assert told["fds"] == fds
        assert told["reports"] == [
            "socket.accept() out of system resource: [Errno 12] Cannot allocate memory"
        ]
        assert child.finish() == 0


def test_enomem_on_arming_write_interest_loses_that_connection_only(shim):
    with Child(SERVER, "epoll", shim=shim) as child:
        port = child.next()["port"]
        good, bad = child.peer(port), child.peer(port)
        assert good.echo(b"before") and bad.echo(b"before")
        fds = child.ask("stats")["fds"]
        bad.send(b"flood\n")
        while (told := child.ask("stats"))["open"] > 1:
            pass
        assert len(told["fds"]) == len(fds) - 1
        assert good.echo(b"after") and still_serves(child, port)
        assert child.finish() == 0


def test_every_allocation_may_fail_once_and_the_server_goes_on(shim, backend):
    with Child(SERVER, backend, shim=shim) as child:
        port = child.next()["port"]
        assert still_serves(child, port, 1)
        fds, failed = gone(child)["fds"], 0
        for number in range(1, 10):
            child.ask(f"rules malloc:ENOMEM:from={number}:count=1")
            answers = []
            for peer in [child.peer(port) for _ in range(3)]:
                try:
                    answers.append(peer.echo(b"y" * 3000) and peer.echo(b"hello"))
                except ConnectionError:
                    answers.append(False)
                peer.close()
            assert answers.count(False) <= 1, f"allocation {number}"
            failed += child.ask("count malloc")["failed"]
            gone(child)
        child.ask("rules ")
        assert failed >= 2 or asan()
        assert still_serves(child, port) and gone(child)["fds"] == fds
        assert child.finish() == 0


def test_connect_without_an_fd_or_memory_fails_that_call_only(shim, backend):
    script = """if True:
    import asyncio, os, socket, sys, pyloop
    from faults import limit_fds, open_fds, say, shim_library

    async def main():
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        before, told = open_fds(), []
        limit_fds(max(before) + 1)
        try:
            await loop.create_connection(asyncio.Protocol, *address)
        except OSError as exc:
            told.append(exc.errno)
        limit_fds(200)
        for rule in (b"malloc:ENOMEM:count=1", b"epoll_ctl:ENOMEM:count=1"):
            mine, peer = socket.socketpair()
            shim_library().faults_set(rule)
            try:
                transport, _ = await loop.create_connection(asyncio.Protocol, sock=mine)
                transport.abort()
            except OSError as exc:
                told.append(exc.errno)
            shim_library().faults_set(b"")
            peer.close()
        reader, writer = await asyncio.open_connection(*address)
        told.append(await reader.read())
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)
        return told, before

    told, before = pyloop.run(main(), backend=sys.argv[1])
    say(told=told[:-1], read=told[-1].decode())
    """
    with Child(script, backend, shim=shim) as child:
        answer = child.next()
        assert answer["read"] == ""
        failures = 1 + (backend == "epoll") - asan()
        assert answer["told"] == [24, *[12] * failures]
        assert child.finish() == 0, child.errors()
        assert child.errors() == ""
