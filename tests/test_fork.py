"""Fork in a running loop: the child may let go of what it inherited, and nothing else.

The parent's epoll is shared with the child, so a child that touched it would take the parent's
connections away.
"""

from __future__ import annotations

import pytest
from faults import Child, still_serves

FORK = """if True:
    import asyncio, os, signal, sys, pyloop
    from faults import say, serve

    def let_go(conn, message):
        for each in conn.server.connections:
            each.close()
        conn.server.abort()
        for sock in conn.server.sockets:
            loop.remove_reader(sock)
            sock.close()
        stdlib.close()
        say(child="let go")
        os._exit(0)

    def call(conn, message):
        for name, function in {
            "send": lambda: conn.send(b"child"),
            "write": lambda: conn.write(b"child"),
            "pause": conn.pause_reading,
            "broadcast": lambda: conn.server.broadcast(b"child"),
            "add_reader": lambda: loop.add_reader(1, print),
        }.items():
            try:
                say(name=name, result=repr(function()))
            except RuntimeError as exc:
                say(name=name, result=str(exc))
        os._exit(0)

    def close_loop(conn, message):
        try:
            loop.close()
        except Exception as exc:
            say(result=str(exc))
        else:
            say(result=loop.is_closed())
        os._exit(0)

    def unwind(conn, message):
        pass  # back into the loop

    def handle(conn, message):
        conn.send(message)
        if message in (b"let_go", b"call", b"unwind", b"close_loop"):
            pid = os.fork()
            if not pid:
                signal.alarm(30)  # a child that hangs ends, and fails the parent's handler
                globals()[message.decode()](conn, message)
                return
            assert os.waitpid(pid, 0)[1] == 0
            conn.send(b"forked")

    async def begin():
        global loop, stdlib
        loop = asyncio.get_running_loop()
        stdlib = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)

    try:
        serve(handle, sys.argv[1], on_start=begin)
    except RuntimeError as exc:
        say(raised=str(exc))
        os._exit(0)
"""


@pytest.mark.parametrize("many", [0, 70], ids=["few", "many"])
def test_forked_child_that_lets_go_leaves_the_parent_serving(backend: str, many: int) -> None:
    with Child(FORK, backend) as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(1 + many)]
        assert all(peer.echo(b"before") for peer in peers)
        peers[0].send(b"let_go\n")
        assert child.next() == {"child": "let go"}
        assert (peers[0].line(), peers[0].line()) == (b"let_go\n", b"forked\n")
        assert all(peer.echo(b"after") for peer in peers)
        assert still_serves(child, port, 10)
        child.stop()


def test_forked_child_that_uses_the_loop_is_told_whose_it_is(backend: str) -> None:
    with Child(FORK, backend) as child:
        told = child.next()
        peer = child.peer(told["port"])
        peer.send(b"call\n")
        names = ("send", "write", "pause", "broadcast", "add_reader")
        results = {answer["name"]: answer["result"] for answer in (child.next() for _ in names)}
        belongs = f"belongs to process {told['pid']}"
        assert [name for name in names if belongs not in results[name]] == [], results
        assert (peer.line(), peer.line()) == (b"call\n", b"forked\n")
        assert still_serves(child, told["port"], 10)
        child.stop()


def test_forked_child_that_unwinds_ends_with_an_error_and_sends_nothing(backend: str) -> None:
    with Child(FORK, backend) as child:
        told = child.next()
        peer = child.peer(told["port"])
        peer.send(b"unwind\n")
        assert f"the loop belongs to process {told['pid']}" in child.next()["raised"]
        assert (peer.line(), peer.line()) == (b"unwind\n", b"forked\n")
        assert peer.echo(b"after") and still_serves(child, told["port"], 10)
        child.stop()


def test_forked_child_of_a_busy_loop_does_not_turn_even_once(backend: str) -> None:
    script = """if True:
    import os, sys, pyloop

    loop = pyloop.Loop(sys.argv[1])
    turns = 0

    def turn():
        global turns
        turns += 1
        loop.call_soon(turn)

    def fork(left):
        global turns
        pid = os.fork()
        if not pid:
            turns = 0
        elif os.waitpid(pid, 0)[1]:
            os._exit(1)
        elif left:  # again, sooner or later after a look at the fds
            loop.call_later(left / 10_000, fork, left - 1)
        else:
            loop.stop()

    loop.call_soon(turn)
    loop.call_soon(fork, 30)
    try:
        loop.run_forever()
    except RuntimeError as exc:
        os._exit("belongs to process" not in str(exc) or turns > 1)
    """
    with Child(script, backend) as child:
        assert child.finish() == 0, child.errors()


def test_forked_child_may_close_the_loop(backend: str) -> None:
    with Child(FORK, backend) as child:
        port = child.next()["port"]
        peer = child.peer(port)
        peer.send(b"close_loop\n")
        assert child.next() == {"result": True}
        assert (peer.line(), peer.line()) == (b"close_loop\n", b"forked\n")
        assert peer.echo(b"after") and still_serves(child, port, 10)
        child.stop()


def test_forked_child_closes_the_loop_while_a_thread_of_the_parent_was_waking_it(
    backend: str,
) -> None:
    script = """if True:
    import os, signal, sys, threading, pyloop
    from faults import say

    loop = pyloop.Loop(sys.argv[1])
    enough = threading.Event()

    def storm():
        while not enough.is_set():
            loop.call_soon_threadsafe(int)

    def fork(left):
        if not left or any(statuses):
            loop.stop()
        elif pid := os.fork():
            statuses.append(os.waitpid(pid, 0)[1])
            loop.call_later(0, fork, left - 1)
        else:
            signal.alarm(20)  # a child that hangs ends by SIGALRM

    statuses, thread = [], threading.Thread(target=storm)
    thread.start()
    loop.call_soon(fork, 10)
    try:
        loop.run_forever()
    except RuntimeError:
        loop.close()
        os._exit(0)
    enough.set()
    thread.join()
    loop.close()
    say(statuses=statuses)
    """
    with Child(script, backend) as child:
        assert child.next() == {"statuses": [0] * 10}, "14: a child has hung"
        assert child.finish() == 0


def test_what_a_parent_with_a_loop_ignores_the_child_ignores(backend: str) -> None:
    script = """if True:
    import os, signal, sys
    import pyloop
    from faults import say
    from pyloop.forking import fork_child
    ignored = [signal.SIGHUP, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU]
    def child():
        say(left=[n.name for n in ignored if signal.getsignal(n) is not signal.SIG_IGN])
    async def main():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        os.waitpid(fork_child(child), 0)
    pyloop.run(main(), backend=sys.argv[1])
    """
    with Child(script, backend) as child:
        assert child.next() == {"left": []}
        assert child.finish() == 0
