"""SharedLock: one at a time, holders that are killed, and what is refused."""

from __future__ import annotations

import contextlib
import errno
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
def made(place: str) -> Iterator[SharedLock]:
    """A new lock."""
    with memory() as shm:
        if place == "named":
            lock = SharedLock(fresh_name(), create=True)
            lock.unlink()
        elif place == "in memory":
            lock = SharedLock(memory=shm, offset=64, create=True)
        else:
            lock = SharedLock()
        yield lock
        lock.close()


@pytest.fixture(params=PLACES)
def lock(request: pytest.FixtureRequest) -> Iterator[SharedLock]:
    """A new lock, in each place in turn."""
    with made(request.param) as lock:
        yield lock


@contextlib.contextmanager
def held(lock: SharedLock) -> Iterator[int]:
    """A child that has the lock until it is killed; gives its pid."""
    with child(lambda: lock.acquire() and signal.pause()) as pid:
        until(lambda: lock.owner == pid)
        yield pid


# ---- having it ----


def test_lock_is_had_by_one_at_a_time(lock: SharedLock) -> None:
    assert lock.owner is None
    assert lock.acquire() == "ok"
    assert lock.owner == os.getpid()
    assert lock.acquire(0) is None and lock.acquire(0.02) is None
    lock.release()
    with lock as how:
        assert how == "ok" and lock.owner == os.getpid()
    assert lock.owner is None


def test_release_of_a_lock_that_one_does_not_have_is_refused(lock: SharedLock) -> None:
    with pytest.raises(RuntimeError, match="this process does not have the lock"):
        lock.release()
    with held(lock) as pid:
        with pytest.raises(RuntimeError, match="this process does not have the lock"):
            lock.release()
        assert lock.owner == pid and lock.acquire(0.15) is None


def test_child_of_the_holder_does_not_have_it(lock: SharedLock) -> None:
    def main() -> None:
        assert lock.acquire(0) is None and lock.owner == os.getppid()
        with pytest.raises(RuntimeError, match="does not have the lock"):
            lock.release()

    lock.acquire()
    with child(main) as pid:
        assert status_of(pid) == 0
    lock.release()


@pytest.mark.parametrize("place", PLACES)
def test_counter_of_four_processes_comes_out_exact(place: str) -> None:
    """Two threads in each of them."""
    with memory() as shm, made(place) as lock, contextlib.ExitStack() as stack:
        counter = shm.buf[512:520].cast("Q")

        def count() -> None:
            for _ in range(150):
                with lock as how:
                    assert how == "ok"
                    counter[0] += 1

        def main() -> None:
            thread = threading.Thread(target=count)
            thread.start()
            count()
            thread.join()

        pids = [stack.enter_context(child(main)) for _ in range(4)]
        assert [status_of(pid) for pid in pids] == [0] * 4
        assert counter[0] == 1200 and lock.owner is None


# ---- a holder that is gone ----


def test_killed_holder_is_recovered_from_once(lock: SharedLock) -> None:
    with held(lock) as pid:
        kill(pid)
    assert lock.owner == pid
    assert lock.acquire() == "recovered"
    lock.release()
    assert lock.acquire(0) == "ok"


def test_zombie_is_recovered_from(lock: SharedLock) -> None:
    with held(lock) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert lock.acquire(0) == "recovered"


def test_holder_killed_under_a_waiter_is_recovered_from(lock: SharedLock) -> None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(TIMEOUT)))
    with held(lock) as pid:
        thread.start()
        kill(pid)
        thread.join()
    assert found == ["recovered"]


def test_holder_that_exits_is_recovered_from() -> None:
    lock = SharedLock()
    with child(lock.acquire) as pid:
        assert status_of(pid) == 0
    with lock as how:
        assert how == "recovered"


def test_block_that_fails_to_mend_leaves_it_to_the_next(lock: SharedLock) -> None:
    with held(lock) as pid:
        kill(pid)
    assert [fail(lock), fail(lock)] == ["recovered"] * 2
    with lock as how:
        assert how == "recovered"
    assert [fail(lock), lock.acquire()] == ["ok"] * 2


def test_killed_at_any_point_holders_hold_nobody_up() -> None:
    """Children take and release in a loop and are killed; the counters they guard stay equal."""
    with memory() as shm:
        lock = SharedLock(memory=shm, create=True)
        pair = shm.buf[64:80].cast("Q")

        def main() -> None:
            while True:
                with lock as how:
                    if how == "recovered":
                        pair[1] = pair[0]
                    pair[0] += 1
                    pair[1] += 1

        for _ in range(10):
            before = pair[0]
            with child(main) as one, child(main) as two:
                until(lambda before=before: pair[0] > before + 20)
                kill(one)
                kill(two)
            how = lock.acquire(TIMEOUT)
            assert how == "recovered" or (how == "ok" and pair[0] == pair[1])
            pair[1] = pair[0]
            lock.release()


# ---- where it is ----


def test_name_is_found_by_others_until_it_is_unlinked() -> None:
    name = fresh_name()
    with pytest.raises(FileNotFoundError, match=f"No such file.*'lock.{name}'"):
        SharedLock(name, create=False)
    lock = SharedLock(name)
    with pytest.raises(FileExistsError, match=f"File exists.*'lock.{name}'"):
        SharedLock(name, create=True)
    code = (
        f"import pyloop; lock = pyloop.SharedLock({name!r}); print(lock.acquire(), lock.acquire(0))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.stdout == "ok None\n", other.stderr
    assert lock.name == name and lock.acquire() == "recovered"
    lock.unlink()
    assert SharedLock(name, create=True).acquire(0) == "ok"
    lock.unlink()
    with pytest.raises(FileNotFoundError, match=f"'lock.{name}'"):
        lock.unlink()


def test_region_that_was_left_without_a_lock_becomes_one() -> None:
    """Its maker was killed between making the region and the lock in it."""
    name = fresh_name()
    SharedMemory(f"lock.{name}", size=SharedLock.SIZE, create=True).close()
    with pytest.raises(FileNotFoundError, match=f"'{name}': no lock is here"):
        SharedLock(name, create=False)
    with SharedLock(name) as how:
        assert how == "ok"
    SharedLock(name, create=False).unlink()


def test_region_of_something_else_is_refused() -> None:
    name = fresh_name()
    with SharedMemory(f"lock.{name}", size=SharedLock.SIZE, create=True) as shm:
        shm.fill(1)
        for create in (None, False):
            with pytest.raises(ValueError, match=f"'{name}': here is no lock, and not the zero"):
                SharedLock(name, create=create)
        shm.unlink()
    with SharedMemory(f"lock.{name}", size=8, create=True) as shm:
        with pytest.raises(ValueError, match="has 8 bytes, fewer than size=16"):
            SharedLock(name)
        shm.unlink()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"offset": 64, "create": True}, FileExistsError, "offset 64: there is a lock already"),
        ({"offset": 0, "create": False}, FileNotFoundError, "offset 0: no lock is here"),
        ({"offset": 128, "create": True}, ValueError, "offset 128: here is no lock, and not the z"),
        ({"offset": 12, "create": True}, ValueError, "offset must be a multiple of 8, not 12"),
        ({"offset": 4088, "create": True}, ValueError, "16 bytes at offset=4088 are not inside"),
        ({}, ValueError, r"in memory, create must be True \(make it\) or False"),
        ({"name": "x"}, ValueError, "name and memory are two places: give one"),
    ],
)
def test_wrong_place_is_refused(
    options: dict[str, object], error: type[Exception], text: str
) -> None:
    with memory() as shm:
        SharedLock(memory=shm, offset=64, create=True)
        Semaphore(memory=shm, offset=128, create=True)
        with pytest.raises(error, match=text):
            SharedLock(**{"memory": shm, **options})  # type: ignore[arg-type]


USES: list[Callable[[SharedLock], object]] = [
    lambda lock: lock.owner,
    lambda lock: lock.acquire(TIMEOUT),
    lambda lock: lock.release(),
    lambda lock: lock.__enter__(),
    lambda lock: lock.acquire_async().send(None),
]


def test_truncated_memory_is_an_error_and_no_sigbus() -> None:
    name = fresh_name()
    lock = SharedLock(name, create=True)
    os.truncate(f"/dev/shm/lock.{name}", 0)
    for use in USES:
        with pytest.raises(OSError, match="the shared memory was truncated") as raised:
            use(lock)
        assert raised.value.errno == errno.EFAULT
    assert repr(lock) == f"<SharedLock {name!r} truncated>"
    lock.unlink()


def test_closed_lock_refuses_everything_and_stays_held(lock: SharedLock) -> None:
    told, tell = os.pipe()

    def main() -> None:
        os.read(told, 1)
        assert lock.acquire(0) is None

    with child(main) as pid:
        lock.acquire()
        lock.close()
        lock.close()
        for use in USES:
            with pytest.raises(ValueError, match="the lock is closed"):
                use(lock)
        assert repr(lock).endswith(" closed>")
        os.write(tell, b"!")
        assert status_of(pid) == 0
    os.close(told)
    os.close(tell)


def test_lock_without_a_name_has_nothing_to_unlink() -> None:
    with pytest.raises(ValueError, match="a lock without a name has nothing to unlink"):
        SharedLock().unlink()


# ---- the end of a wait ----


def test_signals_are_handled_and_the_wait_goes_on(lock: SharedLock) -> None:
    came: list[int | None] = []

    def handler(*_: object) -> None:
        came.append(lock.owner)
        if len(came) == 3:
            lock.release()

    lock.acquire()
    with shot_at(handler):
        assert lock.acquire() == "ok"
        assert lock.acquire(0.05) is None
    assert came[:3] == [os.getpid()] * 3


def test_ctrl_c_ends_a_wait(lock: SharedLock) -> None:
    with held(lock) as pid:
        with pytest.raises(KeyboardInterrupt), shot_at(ctrl_c_in_a_wait()):
            lock.acquire()
        assert lock.owner == pid


def test_close_ends_the_waits_of_other_threads(lock: SharedLock) -> None:
    ended: list[str] = []

    def wait() -> None:
        try:
            lock.acquire()
        except ValueError as exc:
            ended.append(str(exc))

    lock.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    lock.close()
    thread.join(TIMEOUT)
    assert ended == ["the lock is closed"]
