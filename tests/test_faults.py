"""When the kernel says no: failing accept, wait, close and epoll_ctl, on every backend.

The failing calls are those of tests/shim/faults.c, in a server process of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Child, asan, compile_shim, constant, still_serves, wait_until

import pyloop
from pyloop.core import lib

ECHO = "import sys; from faults import echo, serve; serve(echo, sys.argv[1])"
WAIT = {"select": "pselect", "poll": "ppoll", "epoll": "epoll_wait"}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


# ---- accept ----


def test_a_pause_of_accepting_is_at_most_100_ms() -> None:
    assert 0 < constant("ACCEPT_PAUSE_NS") <= 100_000_000


def test_accept_failing_every_third_time_serves_all(shim: Path, backend: str) -> None:
    error = "ENFILE" if backend == "poll" else "EMFILE"
    with Child(ECHO, backend, shim=shim, rules=f"accept4:{error}:every=3") as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(12)]
        assert all(peer.echo(b"hello") for peer in peers)
        count, stats = child.ask("count accept4"), child.ask("stats")
        assert 4 <= count["failed"] == stats["accept_pauses"]
        assert count["calls"] <= 3 * len(peers)
        assert stats["ticks"] <= 10 * len(peers)
        assert (stats["accepted"], stats["refused"], stats["aborts"]) == (12, 0, 0)
        why = "Too many open files in system" if error == "ENFILE" else "Too many open files"
        assert {line for _, line in stats["log"]} == {f"accepting rests: {why}"}
        child.stop()


def test_aborted_connections_are_passed_over(shim: Path, backend: str) -> None:
    with Child(ECHO, backend, shim=shim, rules="accept4:ECONNABORTED:every=2") as child:
        assert still_serves(child, child.next()["port"], 12)
        assert child.ask("count accept4")["failed"] >= 12
        stats = child.ask("stats")
        assert (stats["accepted"], stats["accept_pauses"], stats["log"]) == (12, 0, [])
        child.stop()


def test_fd_limit_is_reached_and_recovered_from(backend: str) -> None:
    script = """if True:
    import sys; from faults import echo, limit_fds, serve
    serve(echo, sys.argv[1], on_start=lambda: limit_fds(40))
    """
    with Child(script, backend) as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(60)]
        for number, peer in enumerate(peers):
            peer.send(b"%d\n" % number)
        while not (stats := child.ask("stats"))["accept_pauses"]:
            pass
        assert 30 <= stats["open"] < 40
        for number, peer in enumerate(peers[:30]):
            assert peer.line() == b"%d\n" % number
            peer.close()
        for number, peer in enumerate(peers[30:], 30):
            assert peer.line() == b"%d\n" % number
            peer.close()
        stats = child.ask("stats")
        assert (stats["accepted"], stats["refused"], stats["aborts"]) == (60, 0, 0)
        child.stop()


# ---- epoll_ctl ----


def test_enomem_of_epoll_ctl_costs_that_connection_only(shim: Path) -> None:
    with Child(ECHO, "epoll", shim=shim) as child:
        port = child.next()["port"]
        fds = child.ask("fds")
        child.ask("rules epoll_ctl:ENOMEM:from=3:count=1")
        peers = [child.peer(port) for _ in range(12)]
        answers = []
        for peer in peers:
            try:
                answers.append(peer.echo(b"hello"))
            except ConnectionError:
                answers.append(False)
            peer.close()
        assert answers == [True] * 2 + [False] + [True] * 9
        assert child.ask("stats")["refused"] == 1
        assert "Cannot allocate memory" in child.ask("stats")["log"][0][1]
        wait_until(child, "open", 0)
        assert child.ask("fds") == fds
        child.stop()


def test_enomem_while_auto_moves_to_epoll_is_tried_again_and_costs_none(shim: Path) -> None:
    with Child(ECHO, "auto", shim=shim, rules="epoll_ctl:ENOMEM:from=40:count=1") as child:
        port = child.next()["port"]
        peers = [child.peer(port) for _ in range(80)]
        assert all(peer.echo(b"hello") for peer in peers)
        assert child.ask("count epoll_ctl")["failed"] == 1
        stats = child.ask("stats")
        assert (stats["refused"], stats["backend"]) == (0, "epoll")
        for peer in peers:
            peer.close()
        wait_until(child, "open", 0)
        child.stop()


def test_enomem_on_resuming_a_listener_makes_it_rest_again(shim: Path) -> None:
    with Child(ECHO, "epoll", shim=shim) as child:
        port = child.next()["port"]
        child.ask("rules accept4:EMFILE:count=1,epoll_ctl:ENOMEM:count=2")
        assert still_serves(child, port, 1)
        assert child.ask("count epoll_ctl")["failed"] == 2
        child.stop()


FLOOD = """if True:
    import errno, sys, pyloop
    from faults import say, serve, shim_library

    class Handler(pyloop.Protocol):
        def connection_made(self, conn):
            self.conn = conn
        def message_received(self, message):
            if message == b"flood":
                shim_library().faults_set(b"epoll_ctl:ENOMEM:count=1")
                self.conn.write(bytes(1 << 26))
            self.conn.send(message)
        def connection_lost(self, exc):
            if exc is not None:
                say(lost=errno.errorcode[exc.errno])

    serve(Handler, "epoll")
"""


def test_enomem_on_arming_write_interest_loses_that_connection_only(shim: Path) -> None:
    with Child(FLOOD, shim=shim) as child:
        port = child.next()["port"]
        good, bad = child.peer(port), child.peer(port)
        assert good.echo(b"before")
        fds = child.ask("fds")["fds"]
        bad.send(b"flood\n")
        assert child.next() == {"lost": "ENOMEM"}
        assert good.echo(b"after") and still_serves(child, port)
        wait_until(child, "open", 1)
        assert len(child.ask("fds")["fds"]) == len(fds) - 1
        child.stop()


# ---- the wait ----


@pytest.mark.parametrize("count", [":count=1", ""], ids=["once", "for ever"])
def test_wait_failing_with_ebadf_raises_out_of_run(shim: Path, backend: str, count: str) -> None:
    script = """if True:
    import sys; from faults import echo, say, serve
    try:
        serve(echo, sys.argv[1])
    except OSError as exc:
        say(errno=exc.errno)
    """
    with Child(script, backend, shim=shim) as child:
        peer = child.peer(child.next()["port"])
        assert peer.echo(b"hello")
        assert child.ask(f"rules {WAIT[backend]}:EBADF{count}") == {"rules": 0}
        assert child.next() == {"errno": errno.EBADF}
        assert child.finish() == 0


def test_wait_interrupted_is_waited_again(shim: Path, backend: str) -> None:
    with Child(ECHO, backend, shim=shim, rules=f"{WAIT[backend]}:EINTR:every=2") as child:
        assert still_serves(child, child.next()["port"])
        child.stop()


# ---- close ----


def test_close_returning_eintr_is_ignored_and_never_repeated(shim: Path, backend: str) -> None:
    with Child(ECHO, backend, shim=shim) as child:
        port = child.next()["port"]
        assert still_serves(child, port, 1)
        wait_until(child, "open", 0)
        fds = child.ask("fds")
        child.ask("rules close:EINTR")
        assert still_serves(child, port, 20)
        wait_until(child, "open", 0)
        assert child.ask("count close") == {"calls": 20, "failed": 20, "bad": 0}
        assert child.ask("fds") == fds
        assert child.ask("stats")["log"] == []
        child.stop()


# ---- fds that others close, and fds that are always ready ----


def pipe_of(loop: pyloop.Loop, came: list[str], name: str) -> tuple[int, int]:
    """Watch the read end of a new pipe, in which a byte waits."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    loop.add_reader(reader, lambda: came.append(name))
    return reader, writer


@pytest.mark.parametrize("backend", ["select", "poll"], indirect=True)
def test_watched_fd_closed_by_others_loses_its_watcher(
    loop: pyloop.Loop, caplog: pytest.LogCaptureFixture
) -> None:
    came: list[str] = []
    gone, good = pipe_of(loop, came, "gone"), pipe_of(loop, came, "good")
    os.close(gone[0])
    loop.run_until_complete(until(lambda: caplog.records and came))
    assert caplog.messages == [
        f"fd {gone[0]} was closed while it was watched; its watcher is dropped"
    ]
    assert caplog.records[0].levelname == "ERROR" and set(came) == {"good"}
    assert not loop.remove_reader(gone[0])
    again = pipe_of(loop, came, "again")
    assert again[0] == gone[0], "the number is used again"
    loop.run_until_complete(until(lambda: "again" in came))
    assert loop.remove_reader(again[0]) and loop.remove_reader(good[0])
    for fd in (gone[1], *good, *again):
        os.close(fd)


@pytest.mark.parametrize("backend", ["select", "poll"], indirect=True)
def test_connection_whose_fd_others_close_is_lost(loop: pyloop.Loop) -> None:
    lost: list[BaseException | None] = []

    class Handler(pyloop.Protocol):
        def connection_made(self, conn: pyloop.Connection) -> None:
            os.close(lib.pl_conn_fd(conn._ptr, conn.id))

        def connection_lost(self, exc: BaseException | None) -> None:
            lost.append(exc)

    async def main() -> None:
        async with pyloop.Server(Handler) as server:
            sock.connect(("127.0.0.1", server.port))
            await until(lambda: lost)

    with socket.socket() as sock:
        loop.run_until_complete(main())
    assert isinstance(lost[0], OSError) and lost[0].errno == errno.EBADF


@pytest.mark.parametrize("kind", ["file", "/dev/null"])
def test_file_is_always_ready(loop: pyloop.Loop, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file" if kind == "file" else Path(kind)
    with open(path, "w+b") as file:
        came: list[str] = []
        loop.add_reader(file, lambda: came.append("read"))
        loop.run_until_complete(until(lambda: len(came) > 3))
        loop.add_writer(file, lambda: came.append("write"))
        loop.run_until_complete(until(lambda: came.count("write") > 3))
        assert loop.remove_reader(file)
        del came[:]
        loop.run_until_complete(until(lambda: len(came) > 3))
        assert set(came) == {"write"}
        assert loop.remove_writer(file)
    ticks = loop.stats().ticks
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert loop.stats().ticks - ticks < 10, "the loop waits again"


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds."""
    while not condition():
        await asyncio.sleep(0)


# ---- memory ----


def test_every_allocation_may_fail_once_and_the_server_goes_on(shim: Path, backend: str) -> None:
    with Child(ECHO, backend, shim=shim) as child:
        port = child.next()["port"]
        assert still_serves(child, port, 1)
        wait_until(child, "open", 0)
        fds = child.ask("fds")
        failed = 0
        for number in range(1, 25):
            child.ask(f"rules malloc:ENOMEM:from={number}:count=1")
            peers = [child.peer(port) for _ in range(3)]
            answers = []
            for peer in peers:
                try:
                    answers.append(peer.echo(b"y" * 3000) and peer.echo(b"hello"))
                except ConnectionError:
                    answers.append(False)
                peer.close()
            assert answers.count(False) <= 1, f"allocation {number}"
            failed += child.ask("count malloc")["failed"]
            wait_until(child, "open", 0)
        child.ask("rules")
        assert failed >= 3 or asan()
        assert still_serves(child, port)
        wait_until(child, "open", 0)
        assert child.ask("fds") == fds
        child.stop()


def test_loop_that_cannot_be_made_leaves_nothing_open(shim: Path, backend: str) -> None:
    script = """if True:
    import sys, pyloop; from faults import open_fds, say, shim_library
    pyloop.Loop(sys.argv[1]).close()
    before, failures = open_fds(), 0
    for number in range(1, 30):
        shim_library().faults_set(f"malloc:ENOMEM:from={number}:count=1".encode())
        try:
            pyloop.Loop(sys.argv[1]).close()
        except OSError as exc:
            failures += exc.errno == 12
    say(failures=failures, same=open_fds() == before)
    """
    with Child(script, backend, shim=shim) as child:
        answer = child.next()
        assert answer["same"]
        assert answer["failures"] >= 4 or asan()
        assert child.finish() == 0
