"""Semaphore: tokens that processes share, by name, in memory, by fork; and waits that end."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from channels import TIMEOUT, fresh_name, status_of
from sharing import child, ctrl_c_in_a_wait, fail, kill, memory, shot_at, until

from pyloop import Semaphore, SharedLock, SharedMemory

PLACES = ["named", "in memory", "nameless"]


@contextlib.contextmanager
def made(place: str, value: int = 1) -> Iterator[Semaphore]:
    """A new semaphore."""
    with memory() as shm:
        if place == "named":
            sem = Semaphore(value, fresh_name(), create=True)
            sem.unlink()
        elif place == "in memory":
            sem = Semaphore(value, memory=shm, offset=64, create=True)
        else:
            sem = Semaphore(value)
        yield sem
        sem.close()


@pytest.fixture(params=PLACES)
def sem(request: pytest.FixtureRequest) -> Iterator[Semaphore]:
    """A new semaphore with no tokens, in each place in turn."""
    with made(request.param, 0) as sem:
        yield sem


# ---- tokens ----


def test_token_is_taken_once(sem: Semaphore) -> None:
    assert not sem.try_wait()
    sem.post()
    sem.post()
    assert sem.value == 2
    assert sem.wait() and sem.wait(0) and sem.value == 0
    assert not sem.wait(0) and not sem.wait(0.15)


def test_block_has_a_token_and_gives_it_back_after_an_exception(sem: Semaphore) -> None:
    sem.post()
    with sem:
        assert sem.value == 0
    assert sem.value == 1
    assert fail(sem) is sem
    assert sem.value == 1


def test_one_token_too_many_is_an_overflow() -> None:
    sem = Semaphore(2**31 - 1)
    with pytest.raises(OverflowError, match="the semaphore has its most tokens, 2147483647"):
        sem.post()
    assert sem.value == 2**31 - 1


def test_forked_child_shares_it(sem: Semaphore) -> None:
    with child(lambda: sem.post() or sem.post()) as pid:
        assert sem.wait(TIMEOUT) and sem.wait(TIMEOUT)
        assert status_of(pid) == 0


def test_token_of_a_killed_process_is_gone(sem: Semaphore) -> None:
    sem.post()
    told, tell = os.pipe()
    with child(lambda: sem.wait() and os.write(tell, b"!") and signal.pause()) as pid:
        os.read(told, 1)
        kill(pid)
    os.close(told)
    os.close(tell)
    assert sem.value == 0 and not sem.wait(0.01)


@pytest.mark.parametrize("place", PLACES)
def test_counter_of_four_processes_comes_out_exact(place: str) -> None:
    with memory() as shm, made(place) as sem, contextlib.ExitStack() as stack:
        counter = shm.buf[512:520].cast("Q")

        def count() -> None:
            for _ in range(300):
                with sem:
                    counter[0] += 1

        pids = [stack.enter_context(child(count)) for _ in range(4)]
        assert [status_of(pid) for pid in pids] == [0] * 4
        assert counter[0] == 1200 and sem.value == 1


# ---- a name ----


def test_name_is_found_by_others_until_it_is_unlinked() -> None:
    name = fresh_name()
    with pytest.raises(FileNotFoundError, match=f"cannot open the semaphore: .*'{name}'"):
        Semaphore(name=name, create=False)
    first = Semaphore(3, name)
    with pytest.raises(FileExistsError, match=f"cannot open the semaphore: .*'{name}'"):
        Semaphore(name=name, create=True)
    code = f"import pyloop; s = pyloop.Semaphore(9, {name!r}); s.wait(); print(s)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.stdout == f"<Semaphore {name!r} value=2>\n", other.stderr
    again = Semaphore(name=name, create=False)
    first.close()
    assert again.value == 2 and (first.name, again.name) == (name, name)
    first.unlink()
    assert again.try_wait() and again.value == 1
    with pytest.raises(FileNotFoundError, match="cannot unlink the semaphore"):
        again.unlink()


def test_longest_name_is_taken_and_wrong_ones_are_refused() -> None:
    name = fresh_name().ljust(251, "x")
    Semaphore(name=name, create=True).unlink()
    for wrong in ("", "a/b", "/a", "a\0b", name + "x", "\u00e4" * 126):
        for kind, longest in ((Semaphore, 251), (SharedLock, 245)):
            with pytest.raises(ValueError, match=f"name must be 1 to {longest} bytes without sl"):
                kind(name=wrong)
    with pytest.raises(TypeError, match="name must be str, not bytes"):
        Semaphore(name=b"bytes")  # type: ignore[arg-type]


def test_only_its_user_may_open_a_name() -> None:
    name = fresh_name()
    sem = Semaphore(name=name, create=True)
    try:
        assert os.stat(f"/dev/shm/sem.{name}").st_mode & 0o777 == 0o600
    finally:
        sem.unlink()


# ---- in memory ----


def test_semaphore_in_memory_is_found_at_its_offset() -> None:
    with memory(3 * Semaphore.SIZE) as shm:
        made = [Semaphore(n, memory=shm, offset=64 * n, create=True) for n in range(3)]
        found = [Semaphore(9, memory=shm, offset=64 * n, create=False) for n in range(3)]
        assert [sem.value for sem in found] == [0, 1, 2]
        made[0].post()
    assert found[0].wait(0) and made[0].value == 0  # closing shm has taken nothing away


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"offset": 64, "create": True}, FileExistsError, "offset 64: there is a semaphore alr"),
        ({"offset": 0, "create": False}, FileNotFoundError, "offset 0: no semaphore is here"),
        ({"offset": 128, "create": True}, ValueError, "offset 128: here is no semaphore, and not"),
        ({"offset": 128, "create": False}, ValueError, "offset 128: here is no semaphore, and"),
        ({"offset": 192, "create": False}, ValueError, "offset 192: here is no semaphore, and"),
        ({"offset": 4, "create": True}, ValueError, "offset must be a multiple of 8, not 4"),
        ({"offset": 4040, "create": True}, ValueError, "64 bytes at offset=4040 are not inside"),
        ({"offset": -8, "create": True}, ValueError, "offset must be at least 0, not -8"),
        ({}, ValueError, r"in memory, create must be True \(make it\) or False"),
        ({"name": "x", "create": True}, ValueError, "name and memory are two places: give one"),
        ({"memory": b"", "create": True}, TypeError, "memory must be a SharedMemory or None, not"),
        ({"memory": None, "create": False}, ValueError, "create=False needs a name or memory to"),
        ({"value": -1, "create": True}, ValueError, "value must be 0 to 2147483647, not -1"),
        ({"value": 1.0, "create": True}, TypeError, "value must be an int, not 1.0"),
        ({"value": 2**31, "create": True}, ValueError, "value must be 0 to 2147483647, not 21"),
    ],
)
def test_wrong_place_is_refused(
    options: dict[str, object], error: type[Exception], text: str
) -> None:
    with memory() as shm:
        Semaphore(memory=shm, offset=64, create=True)
        shm.fill(7, 128, 8)
        SharedLock(memory=shm, offset=192, create=True)
        with pytest.raises(error, match=text):
            Semaphore(**{"memory": shm, **options})  # type: ignore[arg-type]


def test_memory_that_is_closed_or_read_only_is_refused() -> None:
    with memory() as shm:
        Semaphore(memory=shm, create=True)
    with pytest.raises(ValueError, match="is closed"):
        Semaphore(memory=shm, create=False)
    with SharedMemory(size=4096, create=True) as shm:
        with SharedMemory(shm.name, readonly=True) as reading:
            with pytest.raises(ValueError, match="is read-only"):
                Semaphore(memory=reading, create=True)
        shm.unlink()


USES: list[Callable[[Semaphore], object]] = [
    lambda sem: sem.value,
    lambda sem: sem.wait(TIMEOUT),
    lambda sem: sem.try_wait(),
    lambda sem: sem.post(),
    lambda sem: sem.__enter__(),
    lambda sem: sem.wait_async().send(None),
]


def test_truncated_memory_is_an_error_and_no_sigbus() -> None:
    with SharedMemory(size=4096, create=True) as shm:
        sem = Semaphore(memory=shm, create=True)
        os.truncate(f"/dev/shm/{shm.name}", 0)
        for use in USES:
            with pytest.raises(OSError, match="the shared memory was truncated") as raised:
                use(sem)
            assert raised.value.errno == errno.EFAULT
        assert repr(sem) == "<Semaphore truncated>"
        sem.close()
        shm.unlink()


# ---- the end of a wait ----


def test_signals_are_handled_and_the_wait_goes_on(sem: Semaphore) -> None:
    came: list[int] = []

    def handler(*_: object) -> None:
        came.append(sem.value)
        if len(came) == 3:
            sem.post()

    with shot_at(handler):
        assert sem.wait()
        assert not sem.wait(0.05)
    assert len(came) >= 3 and came[0] == 0


def test_ctrl_c_ends_a_wait_and_takes_nothing(sem: Semaphore) -> None:
    with pytest.raises(KeyboardInterrupt), shot_at(ctrl_c_in_a_wait()):
        sem.wait()
    assert sem.value == 0


def test_close_ends_the_waits_of_other_threads(sem: Semaphore) -> None:
    ended: list[str] = []

    def wait() -> None:
        try:
            sem.wait()
        except ValueError as exc:
            ended.append(str(exc))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    sem.close()
    for thread in threads:
        thread.join(TIMEOUT)
    assert ended == ["the semaphore is closed"] * 3


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan])
def test_time_out_that_is_none_is_refused(timeout: float) -> None:
    sem, lock = Semaphore(1), SharedLock()
    for use in (sem.wait, lock.acquire):
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds, not "):
            use(timeout)
    for start in (sem.wait_async, lock.acquire_async):
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds, not "):
            start(timeout).send(None)
    assert sem.value == 1 and lock.owner is None


def test_time_out_that_is_no_number_is_named(sem: Semaphore) -> None:
    with pytest.raises(TypeError, match=r"^timeout must be seconds or None, not '1'$"):
        sem.wait("1")  # type: ignore[arg-type]


def test_closed_semaphore_refuses_everything(sem: Semaphore) -> None:
    sem.close()
    sem.close()
    for use in USES:
        with pytest.raises(ValueError, match="the semaphore is closed"):
            use(sem)
    assert repr(sem).endswith(" closed>")
    with pytest.raises((ValueError, FileNotFoundError), match="unlink"):
        sem.unlink()


def test_huge_time_out_has_no_end(sem: Semaphore) -> None:
    thread = threading.Thread(target=sem.wait, args=(math.inf,))
    thread.start()
    sem.post()
    thread.join(TIMEOUT)
    until(lambda: sem.value == 0)
    sem.post()
    assert sem.wait(1e300)
