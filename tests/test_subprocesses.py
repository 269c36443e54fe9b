"""Subprocesses: real pipes, every argument of Popen, no thread each, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import threading
import warnings
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

import pytest
from faults import Child
from workers import children_of

import pyloop

MIB = 1 << 20
PIPED_MIB = 100
BLOCK = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def no_child_is_left():
    """Beside those that this process had before, of which other tests made it the parent."""
    before = set(children_of(os.getpid()))
    yield
    assert set(children_of(os.getpid())) <= before


def test_100_mib_go_through_cat(run):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)

        async def feed():
            for _ in range(PIPED_MIB):
                process.stdin.write(BLOCK)
                await process.stdin.drain()
            process.stdin.close()

        feeding = asyncio.create_task(feed())
        for _ in range(PIPED_MIB):
            assert await process.stdout.readexactly(MIB) == BLOCK
        assert await process.stdout.read() == b"" and await process.wait() == 0
        await feeding

    run(main(), timeout=100)


def test_stdin_is_a_pipe_that_can_be_opened_again(run):
    async def main():
        process = await asyncio.create_subprocess_shell(
            "cat </dev/stdin >/dev/stdout", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        pipe = process.stdin.transport.get_extra_info("pipe")
        assert stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode)
        assert await process.communicate(b"again") == (b"again", b"")

    run(main())


def test_child_that_closes_its_stdin_is_noticed(run):
    async def main():
        process = await asyncio.create_subprocess_shell("exec <&-; exec sleep 60", stdin=PIPE)
        await process.stdin.wait_closed()
        assert process.stdin.is_closing() and process.returncode is None
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(main())


def test_child_that_leaves_while_it_is_written_to_breaks_the_pipe(run):
    async def main():
        process = await asyncio.create_subprocess_exec("head", "-c", "1", stdin=PIPE, stdout=PIPE)
        process.stdin.write(bytes(4 * MIB))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await process.stdin.drain()
        assert await process.wait() == 0

    run(main())


def test_signals_reach_the_child_while_it_lives(run):
    async def main():
        for number, send in [
            (signal.SIGTERM, lambda process: process.terminate()),
            (signal.SIGKILL, lambda process: process.kill()),
            (signal.SIGUSR1, lambda process: process.send_signal(signal.SIGUSR1)),
        ]:
            process = await asyncio.create_subprocess_exec("sleep", "60")
            send(process)
            assert await process.wait() == -number == process.returncode
            with pytest.raises(ProcessLookupError):
                send(process)

    run(main())


def test_many_at_once_tell_their_statuses_and_leave_no_thread(run):
    async def main():
        script = "exit $0"
        processes = await asyncio.gather(
            *(asyncio.create_subprocess_exec("sh", "-c", script, str(n)) for n in range(30))
        )
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("asyncio-waitpid")]
        statuses = await asyncio.gather(*(process.wait() for process in processes))
        assert statuses == list(range(30))

    run(main())


async def said_by(script, **popen):
    """The words that a shell script prints."""
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", script, stdout=PIPE, **popen)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().split()


def test_every_argument_of_popen_is_heard(run, tmp_path):
    reader, writer = os.pipe()
    own = [str(os.getuid()), str(os.getgid())]

    async def main():
        env = {"WHO": "me", "PATH": os.environ["PATH"]}
        script = f"pwd; echo $WHO; head -c 6 /dev/fd/{reader}"
        os.write(writer, b"passed")
        said = await said_by(script, cwd=tmp_path, env=env, pass_fds=[reader])
        assert said == [str(tmp_path), "me", "passed"]
        script = "umask; id -u; id -g"
        assert await said_by(script, umask=0o27) == ["0027", *own]
        assert await said_by(script, preexec_fn=lambda: os.umask(0o37)) == ["0037", *own]
        if os.getuid() == 0:
            other = {"user": 65534, "group": 65533, "extra_groups": []}
            assert (await said_by(script, **other))[1:] == ["65534", "65533"]
        script = "cut -d ' ' -f 1,5,6 /proc/$$/stat"
        for session, options in [
            (False, {}),
            (False, {"process_group": 0}),
            (True, {"start_new_session": True}),
        ]:
            pid, group, sid = await said_by(script, **options)
            assert ((pid == group), (pid == sid)) == (bool(options), session)

    try:
        run(main())
    finally:
        os.close(reader)
        os.close(writer)


def test_shell_executable_and_streams_are_heard(run):
    async def main():
        process = await asyncio.create_subprocess_shell(
            "echo out; echo err >&2", stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
        )
        assert await process.communicate() == (b"out\nerr\n", None)
        process = await asyncio.create_subprocess_exec(
            "named", "-c", 'echo "$0"', executable="/bin/sh", stdout=PIPE
        )
        assert (await process.communicate())[0].strip() in (b"named", b"/bin/sh")

    run(main())


def test_program_that_is_not_there_is_an_error_and_leaves_nothing(run):
    async def main():
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            await asyncio.create_subprocess_exec("/no-such-program", stdin=PIPE, stdout=PIPE)

    run(main())  # and the fixture counts fds


def test_start_that_is_cancelled_kills_the_child(run):
    async def main():
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=PIPE)
        )
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(main())


def test_loop_in_another_thread_waits_for_its_children(backend):
    results = []

    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        results.append(await process.communicate(b"elsewhere"))
        results.append(process.returncode)

    def work():
        with asyncio.Runner(loop_factory=lambda: pyloop.Loop(backend)) as runner:
            runner.run(asyncio.wait_for(main(), 60))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert results == [(b"elsewhere", None), 0]


AFTER_FORK = """if True:
    import asyncio, os, sys, pyloop
    from faults import say

    async def cat(text):
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        return (await process.communicate(text))[0].decode(), process.returncode

    async def main():
        await cat(b"before")
        child = os.fork()
        if not child:
            asyncio.events._set_running_loop(None)
            try:
                with asyncio.Runner(loop_factory=lambda: pyloop.Loop(sys.argv[1])) as runner:
                    say(child=runner.run(cat(b"child")))
            finally:
                os._exit(0)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, os.waitpid, child, 0)
        say(parent=await cat(b"parent"))

    with asyncio.Runner(loop_factory=lambda: pyloop.Loop(sys.argv[1])) as runner:
        runner.run(main())
"""


def test_parent_and_forked_child_both_start_subprocesses(backend):
    with Child(AFTER_FORK, backend) as child:
        assert child.next() == {"child": ["child", 0]}
        assert child.next() == {"parent": ["parent", 0]}
        assert child.finish() == 0


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio waits by pidfd itself")
def test_watcher_that_the_program_has_set_is_used(run):
    class Counts(asyncio.ThreadedChildWatcher):
        children = 0

        def add_child_handler(self, *args):
            Counts.children += 1
            super().add_child_handler(*args)

    async def main():
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

    former = asyncio.get_child_watcher()
    asyncio.set_child_watcher(Counts())
    try:
        run(main())
        assert Counts.children == 1
    finally:
        asyncio.set_child_watcher(former)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio waits by pidfd itself")
def test_without_pidfds_a_thread_waits(run, monkeypatch):
    async def main():
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

    def refused(pid, flags=0):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refused)
    run(main())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio keeps the pidfd itself")
def test_loop_closed_while_a_child_runs_leaves_no_fd(loop):
    async def main():
        return await asyncio.create_subprocess_exec("sleep", "60")

    process = loop.run_until_complete(main())
    with pytest.warns(RuntimeWarning, match="with pending handlers"):
        loop.close()
    process.kill()
    process._transport._proc.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        process._transport.close()
        del process
