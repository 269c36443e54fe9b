"""fork_child: a child that leaves its parent alone, whatever it does and whatever is done to it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
from faults import ROOT, Child, still_serves

from pyloop import forking

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# ---- the end of a child ----

ENDS = """if True:
    import asyncio, os
    from faults import say
    from pyloop.forking import fork_child

    def main(how):
        def run():
            if how == "return": return value
            raise value
        return run

    class Mute(Exception):
        def __str__(self): raise ValueError("no text")

    parent, statuses = os.getpid(), []
    for value in (None, 0, True, 3, -1, 300, 2**70, "a text", b"bytes"):
        try:
            pid = fork_child(main("return"))
        finally:
            assert os.getpid() == parent or say(leaked=repr(value))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    say(returned=statuses)
    statuses = []
    for value in (SystemExit(), SystemExit(4), SystemExit(-1), SystemExit(2**70),
                  SystemExit("goodbye"), SystemExit(Mute()), KeyboardInterrupt(),
                  ValueError("no"), Mute(), GeneratorExit(), asyncio.CancelledError()):
        try:
            pid = fork_child(main("raise"))
        finally:
            assert os.getpid() == parent or say(leaked=repr(value))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    say(raised=statuses)
"""


def test_child_ends_by_itself_whatever_main_returns_or_raises() -> None:
    with Child(ENDS) as child:
        assert child.next() == {"returned": [0, 0, 1, 3, 255, 44, 0, 1, 1]}
        assert child.next() == {"raised": [0, 4, 255, 0, 1, 1, 1, 1, 1, 1, 1]}
        assert child.finish() == 0
        errors = child.errors()
        for text in ("a text", "b'bytes'", "goodbye", "KeyboardInterrupt", "ValueError: no"):
            assert errors.count(f"{text}\n") == 1, text


def script_output(script: str, **popen: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=60,
        capture_output=True,
        **popen,
    )


def test_buffered_output_comes_once() -> None:
    script = """if True:
    import os, sys
    from pyloop.forking import fork_child
    print("before")
    sys.stderr.write("unfinished ")
    pid = fork_child(lambda: print("child"))
    assert os.waitpid(pid, 0)[1] == 0
    print("after")
    """
    done = script_output(script)
    assert done.stdout == "before\nchild\nafter\n"
    assert (done.stderr, done.returncode) == ("unfinished ", 0)


def test_output_that_is_gone_stops_nobody() -> None:
    script = """if True:
    import os, sys
    from pyloop.forking import fork_child
    reader, writer = os.pipe()
    for broken in ("none", "closed", "pipe"):
        if broken == "none":
            sys.stdout = None
        elif broken == "closed":
            sys.stdout = open(os.devnull, "w"); sys.stdout.close()
        else:
            os.close(reader)
            sys.stdout = open(writer, "w", closefd=False); sys.stdout.write("never read")
        pid = fork_child(lambda: 5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5, broken
    os._exit(0)
    """
    done = script_output(script)
    assert (done.stderr, done.returncode) == ("", 0)


# ---- signals ----

SIGNALS = """if True:
    import asyncio, os, signal, sys, pyloop
    from faults import say
    from pyloop.forking import fork_child

    NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH,
               signal.SIGQUIT, signal.SIGALRM, signal.SIGCHLD, signal.SIGRTMIN]
    came, number = [], 0

    def shoot():
        if number:
            os.kill(os.getpid(), number)  # as early as Python can: none of our lines has run

    os.register_at_fork(after_in_child=shoot)

    def child():
        assert not asyncio._get_running_loop()
        assert signal.set_wakeup_fd(-1) == -1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        os.kill(os.getpid(), signal.SIGINT)
        return 7

    def fork():
        pid = fork_child(child)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def hunted():
        pid = fork_child(lambda: 7)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            os.kill(pid, signal.SIGUSR1)
        return os.waitstatus_to_exitcode(ended[1])

    async def main():
        global number
        loop = asyncio.get_running_loop()
        for each in NUMBERS:
            loop.add_signal_handler(each, came.append, each)
        ends = {}
        for number in NUMBERS:
            ends[number.name if number != signal.SIGRTMIN else "SIGRTMIN"] = fork()
        number = 0
        say(**ends)
        say(hunted=sorted({hunted() for _ in range(60)} - {7}))
        while signal.SIGCHLD not in came:  # ours
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        while signal.SIGUSR1 not in came:
            await asyncio.sleep(0)
        say(came=[each.name for each in came if each != signal.SIGCHLD])

    pyloop.run(main(), backend=sys.argv[1])
"""


def test_signals_of_a_child_are_not_its_parents(backend: str) -> None:
    with Child(SIGNALS, backend) as child:
        assert child.next() == {
            "SIGINT": 7,
            "SIGTERM": -signal.SIGTERM,
            "SIGHUP": 7,
            "SIGUSR1": -signal.SIGUSR1,
            "SIGWINCH": 7,
            "SIGQUIT": -signal.SIGQUIT,
            "SIGALRM": -signal.SIGALRM,
            "SIGCHLD": 7,
            "SIGRTMIN": -signal.SIGRTMIN,
        }
        assert child.next() in ({"hunted": [-signal.SIGUSR1]}, {"hunted": []})
        assert child.next() == {"came": ["SIGUSR1"]}
        assert child.finish() == 0


def test_what_the_parent_ignores_the_child_ignores_but_not_sigterm() -> None:
    script = """if True:
    import os, signal
    from faults import say
    from pyloop.forking import fork_child
    def handler(*args): pass
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    def main():
        names = ("SIGHUP", "SIGTERM", "SIGUSR2", "SIGPIPE")
        actions = {name: signal.getsignal(getattr(signal, name)) for name in names}
        say(**{name: getattr(action, "name", "own") for name, action in actions.items()})
        say(mask=[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())])
    os.waitpid(fork_child(main), 0)
    say(parent=signal.getsignal(signal.SIGUSR2) is handler)
    """
    with Child(script) as child:
        assert child.next() == {
            "SIGHUP": "SIG_IGN",
            "SIGTERM": "SIG_DFL",
            "SIGUSR2": "own",
            "SIGPIPE": "SIG_IGN",
        }
        assert child.next() == {"mask": [signal.SIGUSR1]}
        assert child.next() == {"parent": True}


def test_fork_that_fails_leaves_the_mask_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(BlockingIOError, match="Resource temporarily unavailable"):
        forking.fork_child(lambda: 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_handler_that_raises_leaves_the_mask_as_it_was(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def handler(number: int, frame: object) -> None:
        raise InterruptedError("by the handler")

    def mask(how: int, numbers: set[int]) -> set[int]:
        old = real(how, numbers)
        if numbers and how == signal.SIG_BLOCK:  # as if one had come just before
            raise InterruptedError("by the handler")
        return old

    def fork() -> int:
        os.kill(os.getpid(), signal.SIGUSR2)
        return 1 << 30

    real = signal.pthread_sigmask
    before = real(signal.SIG_BLOCK, ())
    previous = signal.signal(signal.SIGUSR2, handler)
    monkeypatch.setattr(os, "fork", fork)
    if moment == "before":
        monkeypatch.setattr(signal, "pthread_sigmask", mask)
    try:
        with pytest.raises(InterruptedError, match="by the handler"):
            forking.fork_child(lambda: 0)
        assert real(signal.SIG_BLOCK, ()) == before
    finally:
        signal.signal(signal.SIGUSR2, previous)


# ---- what the child leaves behind ----

SERVES = """if True:
    import asyncio, gc, os, signal, sys, threading, pyloop
    from faults import open_fds, say, serve
    from pyloop.forking import fork_child

    base = open_fds()

    def child():
        left = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds() if fd not in base}
        page = [fd for fd, name in left.items() if name.startswith("/memfd:pyloop-stats")]
        left.pop(*page)  # run() has one page, and children count in it
        closed = loop.is_closed() and not asyncio._get_running_loop()
        say(left=left, closed=closed, connections=len(server.connections))

    def handle(conn, message):
        global loop, server
        loop, server = asyncio.get_running_loop(), conn.server
        conn.send(message)
        if message == b"fork":
            status = os.waitpid(fork_child(child), 0)[1]
            conn.send(b"%d" % status)

    serve(handle, sys.argv[1])
"""


def test_child_has_no_fd_of_the_loop_and_the_parent_serves_on(backend: str) -> None:
    with Child(SERVES, backend) as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(3)]
        assert all(peer.echo(b"before") for peer in peers)
        peers[0].send(b"fork\n")
        assert child.next() == {"left": {}, "closed": True, "connections": 0}
        # What was queued before the fork has been sent by the parent, once.
        assert (peers[0].line(), peers[0].line()) == (b"fork\n", b"0\n")
        assert all(peer.echo(b"after") for peer in peers)
        assert still_serves(child, port, 3)
        child.stop()


def test_child_of_a_coroutine_may_run_a_loop_and_ends_no_task_of_its_parent(backend: str) -> None:
    script = """if True:
    import asyncio, gc, os, sys, pyloop
    from faults import say
    from pyloop.forking import fork_child

    async def sleeper():
        try:
            await asyncio.sleep(3600)
        finally:
            say(cleaned=os.getpid())

    async def numbers():
        try:
            yield 1
        finally:
            say(closed=os.getpid())

    async def life():
        async for number in numbers():
            await asyncio.sleep(0.001)
        return asyncio.current_task() is not None

    def child():
        sleeping.clear()
        gc.collect()
        first = asyncio.run(life())
        second = pyloop.run(life(), backend=sys.argv[1])
        gc.collect()
        say(ran=[first, second], pid=os.getpid())

    async def main():
        sleeping.append(asyncio.create_task(sleeper()))
        await asyncio.sleep(0)
        pid = fork_child(child)
        assert os.waitpid(pid, 0)[1] == 0
        say(parent=os.getpid(), child=pid)

    sleeping = []
    pyloop.run(main(), backend=sys.argv[1])
    """
    with Child(script, backend) as child:
        answers = [child.next() for _ in range(5)]
        pid, parent = answers[3]["child"], answers[3]["parent"]
        assert answers[:2] == [{"closed": pid}, {"closed": pid}]
        assert answers[2] == {"ran": [True, True], "pid": pid}
        assert answers[4] == {"cleaned": parent}
        assert child.finish() == 0
        assert child.errors() == ""


def test_any_thread_may_fork_and_is_the_childs_main_thread(backend: str) -> None:
    script = """if True:
    import asyncio, os, signal, sys, threading, warnings, pyloop
    from faults import say
    from pyloop.forking import fork_child

    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "may lead to deadlocks"
    enough = threading.Event()

    def child():
        assert threading.main_thread() is threading.current_thread()
        assert threading.active_count() == 1
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        assert not asyncio._get_running_loop()
        pyloop.run(asyncio.sleep(0), backend=sys.argv[1])

    async def forks():
        return [os.waitpid(fork_child(child), 0)[1] for _ in range(10)]

    def forker():
        loop = pyloop.Loop(sys.argv[1])
        statuses = loop.run_until_complete(forks())
        loop.close()
        say(statuses=statuses)
        main_loop.call_soon_threadsafe(done.set)

    def storm():
        while not enough.is_set():
            main_loop.call_soon_threadsafe(int)

    async def main():
        global main_loop, done
        main_loop, done = asyncio.get_running_loop(), asyncio.Event()
        threads = [threading.Thread(target=target) for target in (storm, forker)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(60):
            await done.wait()
        enough.set()
        for thread in threads:
            thread.join()

    pyloop.run(main(), backend=sys.argv[1])
    """
    with Child(script, backend) as child:
        assert child.next() == {"statuses": [0] * 10}
        assert child.finish() == 0
        assert child.errors() == ""
