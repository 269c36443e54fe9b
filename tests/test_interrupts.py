"""Signals at awkward moments: inside a wake, in a hook that never ends, between two runs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest
from faults import Child, compile_shim
from peers import until

import pyloop

SIGNALS = [signal.SIGINT, signal.SIGTERM]

# The profiler sees calls of C functions just before they are made: Ctrl-C comes inside the wake.
# With the fast path all of call_soon_threadsafe is C, and no signal handler runs within it.
INSIDE_A_WAKE = """if True:
    import asyncio, faulthandler, os, signal, sys, pyloop
    from faults import say

    faulthandler.dump_traceback_later(20, exit=True)
    interrupted = []
    WAKES = "pl_loop_wake", "call_soon_threadsafe"

    def inside(frame, event, called):
        if event == "c_call" and called.__name__ in WAKES and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    async def main():
        loop = asyncio.get_running_loop()
        loop._waiting = True  # as for a caller that comes just before the wait
        sys.setprofile(inside)
        loop.call_soon_threadsafe(int)
        sys.setprofile(None)
        woken = asyncio.Event()
        loop.call_soon_threadsafe(woken.set)
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            await woken.wait()
            raise

    try:
        pyloop.run(main(), backend=sys.argv[1])
    except KeyboardInterrupt:
        say(interrupted=interrupted)
"""


def test_ctrl_c_inside_call_soon_threadsafe_does_not_deadlock(backend):
    with Child(INSIDE_A_WAKE, backend) as child:
        assert child.next() == {"interrupted": [True]}
        assert child.finish() == 0


def test_signal_handler_that_calls_the_loop_inside_a_wake_does_not_deadlock(backend):
    """A program's own handler, from inside a wake and again from inside its own."""
    script = """if True:
    import asyncio, faulthandler, os, signal, sys, pyloop
    from faults import say

    faulthandler.dump_traceback_later(20, exit=True)
    came = []
    WAKES = "pl_loop_wake", "call_soon_threadsafe"

    async def main():
        loop = asyncio.get_running_loop()

        def inside(frame, event, called):
            if event == "c_call" and called.__name__ in WAKES and len(came) < 3:
                came.append(len(came))
                os.kill(os.getpid(), signal.SIGUSR1)

        def handler(number, frame):
            loop.call_soon_threadsafe(came.append, "handled")
            loop.call_soon_threadsafe(came.append, "handled")

        signal.signal(signal.SIGUSR1, handler)
        loop._waiting = True  # as for a caller that comes just before the wait
        sys.setprofile(inside)
        loop.call_soon_threadsafe(came.append, "called")
        sys.setprofile(None)
        while "called" not in came:
            await asyncio.sleep(0)
        say(calls=came.count("called"), handled=came.count("handled"), came=len(came))

    pyloop.run(main(), backend=sys.argv[1])
    """
    with Child(script, backend) as child:
        assert child.next() == {"calls": 1, "handled": 2, "came": 4}
        assert child.finish() == 0


# ---- hooks that never end ----

NEVER = """if True:
    import asyncio, faulthandler, sys, pyloop
    from faults import echo, say

    faulthandler.dump_traceback_later(30, exit=True)

    async def never(server):
        say(hook=server.port)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            say(cancelled=True)

    def ready(server):
        say(port=server.port)

    server = pyloop.Server(echo, **{HOOKS})
    try:
        pyloop.run(server, backend=sys.argv[1])
    except BaseException as exc:
        say(ended=repr(exc), sockets=len(server.sockets))
        raise
    say(ended="returned", sockets=len(server.sockets))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_ends_an_on_start_that_never_returns(backend, number):
    with Child(NEVER.replace("{HOOKS}", "dict(on_start=never)"), backend) as child:
        port = child.next()["hook"]
        child.process.send_signal(number)
        assert child.next() == {"cancelled": True}
        assert child.next() == {"ended": "returned", "sockets": 0}
        assert child.finish() == 0, child.errors()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_ends_an_on_stop_that_never_returns(backend, number):
    hooks = "dict(on_start=ready, on_stop=never)"
    with Child(NEVER.replace("{HOOKS}", hooks), backend) as child:
        child.next()
        child.process.send_signal(number)
        assert "hook" in child.next()
        child.process.send_signal(number)
        assert child.next() == {"cancelled": True}
        end = child.next()
        assert end["sockets"] == 0
        assert end["ended"] == "returned" or "CancelledError" in end["ended"], end
        child.finish()


def test_signal_in_the_on_start_of_one_server_stops_those_that_serve(backend):
    script = NEVER.replace("{HOOKS}", "dict(on_start=never)").replace(
        "pyloop.run(", "pyloop.run(first := pyloop.Server(echo, on_stop=ready), "
    )
    with Child(script, backend) as child:
        child.next()
        child.process.send_signal(signal.SIGINT)
        assert child.next() == {"cancelled": True}
        assert child.next() == {"port": None}, "the on_stop of the server that had started"
        assert child.next() == {"ended": "returned", "sockets": 0}
        assert child.finish() == 0, child.errors()


# ---- between two runs ----


def test_signal_between_two_runs_is_delivered_in_the_second(backend):
    came = []

    async def add():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, came.append, "usr1")

    async def wait():
        async with asyncio.timeout(10):
            await until(lambda: came)
        assert asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    with asyncio.Runner(loop_factory=lambda: pyloop.Loop(backend)) as runner:
        runner.run(add())
        os.kill(os.getpid(), signal.SIGUSR1)
        runner.run(wait())
    assert came == ["usr1"]
    assert signal.set_wakeup_fd(-1) == -1, "the fd of a closed loop is nobody's wakeup fd"


def test_signal_between_two_runs_ends_the_first_wait_of_the_second(backend):
    """No timer helps: the signal alone must end the wait."""

    async def add():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)

    came = asyncio.Event()
    with asyncio.Runner(loop_factory=lambda: pyloop.Loop(backend)) as runner:
        runner.run(add())
        os.kill(os.getpid(), signal.SIGUSR1)
        runner.run(asyncio.wait_for(came.wait(), 10))


# ---- in a busy loop ----


def test_signal_in_a_busy_loop_is_handled_within_a_few_turns(loop, run):
    async def main():
        loop.add_signal_handler(signal.SIGUSR1, came.append, "usr1")
        for sent in range(1, 20):
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(4):
                await asyncio.sleep(0)
            assert len(came) == sent
        assert loop.remove_signal_handler(signal.SIGUSR1)

    came = []
    run(main())


# ---- out of the wait ----


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"))


AT_THE_WAIT = """if True:
    import asyncio, faulthandler, signal, socket, sys, pyloop
    from faults import say, shim_library
    from transports import Recorder, attached

    faulthandler.dump_traceback_later(30, exit=True)
    RULES = ",".join(call + ":SIGUSR1:count=1" for call in ("pselect", "ppoll", "epoll_wait"))

    async def main():
        protocol = Recorder()
        async with attached(protocol) as (_, peer):
            peer.send(b"data")
            peer.shutdown(socket.SHUT_WR)
            assert shim_library().faults_set(RULES.encode()) == 0
            await protocol.lost
            return [str(call) for call in protocol.calls]

    def raise_it(number, frame):
        raise errors.pop()

    signal.signal(signal.SIGUSR1, raise_it)
    errors = [KeyboardInterrupt, SystemExit, TimeoutError]
    loop = pyloop.Loop(sys.argv[1])
    while errors:
        wanted, task, raised = errors[-1], loop.create_task(main()), None
        try:
            loop.run_until_complete(task)
        except BaseException as exc:
            raised = type(exc)

        async def rest():
            return await task

        say(raised=raised is wanted, calls=loop.run_until_complete(rest()))
    loop.close()
"""


def test_exception_of_a_signal_handler_at_the_end_of_the_wait_loses_no_event(shim, backend):
    """The signal comes with the events: the wait tells them, whatever its handler raises."""
    with Child(AT_THE_WAIT, backend, shim=shim) as child:
        for _ in range(3):
            told = child.next()
            assert told == {"raised": True, "calls": ["made", "b'data'", "eof", "lost"]}
        assert child.finish() == 0, child.errors()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("where", ["_enter", "_own_wakeup_fd", "_flush", "_restore_wakeup_fd"])
def test_interrupt_where_a_run_begins_or_ends_leaves_a_loop_that_runs_and_closes(
    loop, monkeypatch, where, again
):
    step = getattr(loop, where)

    def interrupted(*args):
        monkeypatch.undo()
        if where != "_flush":
            step(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, where, interrupted)
    loop.call_soon(loop.stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    if again:
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert signal.set_wakeup_fd(-1) == -1
    loop.close()
    signal.set_wakeup_fd(-1)
