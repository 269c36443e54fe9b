"""Channel, and what is wrong: names, sizes, other files, a full memory, hostile peers."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import mmap
import os
import queue
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from channels import TIMEOUT, Maker, fresh_name, make, named, named_channel, start, status_of

import pyloop
from pyloop.core import lib
from pyloop.shm_broker import Feed

__all__ = ["make", "named"]

SHM = Path("/dev/shm")
F_OFD_SETLK = 37
TAIL, HEAD, DATA = 72, 136, 256  # offsets in the memory: csrc/ring.c
NAME_RULE = 'a name is 1 to 200 bytes, without "/" and not ending in ".bell"'


# ---- arguments ----


@pytest.mark.parametrize("name", ["a/b", "/a", "", ".", "..", "x.bell", "a\0b", "x" * 201])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"channel {name!r}: {NAME_RULE}")):
        pyloop.Channel(name)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, 1000), "capacity 1000 is too small for max_message 65536: .* 65544 bytes"),
        (
            (None, 16, 9),
            "capacity 16 is too small for max_message 9: such a message takes 24 bytes",
        ),
        ((None, 0), "capacity must be 1 to 70368744177664 bytes, not 0"),
        ((None, -8), "capacity must be 1 to .* bytes, not -8"),
        ((None, 1 << 60), "capacity must be 1 to .* bytes, not 1152921504606846976"),
        (("x", 100, 0), "max_message must be 1 or more bytes, not 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: tuple[str, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pyloop.Channel(*arguments)


def test_arguments_of_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="name must be a str or None, not int"):
        pyloop.Channel(5)  # type: ignore[arg-type]
    for name, create in ((None, None), (fresh_name(), False)):
        with pytest.raises(TypeError, match=r"^capacity must be an int or None, not '1' \(str\)$"):
            pyloop.Channel(name, "1", create=create)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^max_message must be an int or None, not 1.0 \(flo"):
            pyloop.Channel(name, max_message=1.0, create=create)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only a channel with a name can be attached to"):
        pyloop.Channel(create=False)
    channel = pyloop.Channel()
    for message in ("text", 5, None):
        with pytest.raises(TypeError, match=f"expected bytes-like, got {type(message).__name__}"):
            channel.put(message)  # type: ignore[arg-type]
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
            channel.get(timeout)
    with pytest.raises(ValueError, match="a nameless channel has no name to remove"):
        channel.unlink()


def test_message_over_the_limit_is_refused(make: Maker) -> None:
    channel = make()
    label = f"channel {channel.name!r}" if channel.name else "nameless channel"
    text = f"a message of 129 bytes is over the max_message of the {label}, 128"
    for put in (channel.put, channel.put_nowait):
        with pytest.raises(ValueError, match=text):
            put(bytes(129))
    assert channel.used == 0


def test_attached_with_other_sizes_is_refused() -> None:
    with named_channel(1024, 128) as channel:
        name = channel.name
        pyloop.Channel(name, 1020, 128).close()  # rounded up it is the same
        for arguments, text in (((1 << 20,), "1048576"), ((None, 64), "64")):
            with pytest.raises(ValueError, match=rf"the channel '{name}' has \w+ \d+, not {text}"):
                pyloop.Channel(name, *arguments)


def test_create_says_which_names_will_do() -> None:
    name = fresh_name()
    with pytest.raises(FileNotFoundError, match=f"channel '{name}': No such file"):
        pyloop.Channel(name, create=False)
    with named_channel() as channel, pytest.raises(FileExistsError, match="File exists"):
        pyloop.Channel(channel.name, create=True)
    other = pyloop.Channel(name)
    other.unlink()
    with pytest.raises(FileNotFoundError, match=f"channel '{name}'"):
        other.unlink()


@pytest.mark.parametrize("attach", [pyloop.Channel, lambda name: Feed.make(name, 4096)])
def test_signals_while_another_one_keeps_the_lock_are_handled_meanwhile(
    attach: Callable[[str], pyloop.Channel | Feed],
) -> None:
    name, left = fresh_name(), [3]
    first = attach(name)
    holder = os.open(SHM / name, os.O_RDWR)
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
    fcntl.fcntl(holder, F_OFD_SETLK, whole)

    def let_go(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.close(holder)

    before = signal.signal(signal.SIGALRM, let_go)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        attach(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        first.unlink()
    assert left == [0]


# ---- files ----


def write_junk(path: Path) -> None:
    path.write_bytes(b"junk" * 1000)


def write_short(path: Path) -> None:
    path.write_bytes(b"x")


@pytest.mark.parametrize("junk", [write_junk, write_short, os.mkfifo, Path.mkdir])
def test_what_is_no_channel_is_refused_and_stays(junk: Callable[[Path], None]) -> None:
    name = fresh_name()
    path = SHM / name
    junk(path)
    try:
        with pytest.raises((ValueError, IsADirectoryError), match=f"channel '{name}'"):
            pyloop.Channel(name)
        assert path.exists()
    finally:
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("offset", [0, 8, 12, 16, 24, 32], ids=lambda at: f"byte{at}")
def test_head_of_another_version_or_purpose_is_refused(offset: int) -> None:
    with named_channel() as channel:
        with open(SHM / channel.name, "r+b") as file:
            file.seek(offset)
            file.write(b"\x7f\x7f")
        with pytest.raises(ValueError, match="was not made by this version of pyloop"):
            pyloop.Channel(channel.name)


@pytest.mark.parametrize("replace", [None, os.mkfifo, Path.touch], ids=["none", "fifo", "file"])
def test_bell_that_was_replaced_is_refused(replace: Callable[[Path], None] | None) -> None:
    with named_channel() as channel:
        bell = SHM / f"{channel.name}.bell"
        bell.unlink()
        if replace:
            replace(bell)
        with pytest.raises(ValueError, match="was not made by this version of pyloop"):
            pyloop.Channel(channel.name)
        bell.unlink(missing_ok=True)


def test_files_are_for_this_user_only() -> None:
    with named_channel() as channel:
        for name in (channel.name, f"{channel.name}.bell"):
            assert stat.S_IMODE((SHM / name).stat().st_mode) == 0o600


def test_permission_denied_is_said() -> None:
    with named_channel() as channel:

        def attach() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.raises(
                PermissionError, match=f"channel '{channel.name}': Permission denied"
            ):
                pyloop.Channel(channel.name)

        if os.getuid():
            (SHM / channel.name).chmod(0)
        assert status_of(start(attach)) == 0


# ---- a full memory ----

FULL = """
import os, pyloop
try:
    pyloop.Channel("big", 1 << 22)
    print("no error")
except OSError as exc:
    print(exc)
print(sorted(os.listdir("/dev/shm")))
with pyloop.Channel("small", 1 << 16, 1 << 10) as channel:
    channel.put(b"fits")
    print(channel.get())
"""


def test_full_memory_is_an_error_and_leaves_nothing() -> None:
    inside = f'mount -t tmpfs -o size=1m none /dev/shm && exec "{sys.executable}" -c "$CODE"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    if os.getuid() == 0:
        command[1:3] = []
    if not shutil.which("unshare") or subprocess.run([*command[:-3], "true"]).returncode:
        pytest.skip("this system lets nobody have a mount namespace")
    env = os.environ | {"CODE": FULL}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    if "mount" in done.stderr:
        pytest.skip("this system lets nobody mount: " + done.stderr)
    text = "[Errno 28] channel 'big': 4194304 bytes of shared memory are not to be had"
    assert done.stdout.splitlines() == [text, "[]", "b'fits'"], done.stderr


def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(OSError, match="bytes of shared memory are not to be had"):
        pyloop.Channel(capacity=1 << 45)


# ---- hostile peers ----


class Peer:
    """Somebody who writes into a channel's memory."""

    def __init__(self, channel: pyloop.Channel) -> None:
        self.path = f"/proc/self/fd/{lib.pl_ring_fd(channel._ring)}"

    def write(self, offset: int, value: int) -> None:
        with open(self.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[offset : offset + 8] = value.to_bytes(8, "little")


@pytest.mark.parametrize("value", [1, 8 * 1024, (1 << 64) - 8, (1 << 64) - 1, 1024 + 8])
def test_positions_that_cannot_be_are_an_error(make: Maker, value: int) -> None:
    channel = make()
    Peer(channel).write(TAIL, value)
    for action in (channel.get, channel.get_nowait, lambda: channel.put(b""), lambda: channel.used):
        with pytest.raises(pyloop.PyloopError, match="was truncated, or written to by somebody"):
            action()


@pytest.mark.parametrize("value", [9, 129, (1 << 64) - 1, (1 << 63)])
def test_lengths_that_cannot_be_are_an_error(make: Maker, value: int) -> None:
    channel = make()
    channel.put(b"x")
    Peer(channel).write(DATA, value)
    with pytest.raises(pyloop.PyloopError, match="was truncated, or written to by somebody else"):
        channel.get()


@pytest.mark.parametrize("length", [0, 100, DATA + 8])
def test_named_channel_cut_short_is_an_error_and_no_signal(length: int) -> None:
    with named_channel() as channel:
        channel.put(bytes(100))
        os.truncate(SHM / channel.name, length)
        with pytest.raises(pyloop.PyloopError, match="was truncated, or written to by somebody"):
            channel.get()
        if length < DATA:
            with pytest.raises(pyloop.PyloopError, match="was truncated, or written to"):
                channel.put(b"x")


def test_nameless_channel_cannot_be_cut_short() -> None:
    channel = pyloop.Channel()
    with pytest.raises(PermissionError):
        os.truncate(Peer(channel).path, 0)


def test_waiting_reader_is_told_of_a_corrupt_channel(make: Maker) -> None:
    """Nobody rings, but no wait is longer than a second before it is looked at again."""
    channel = make()

    def read() -> None:
        with pytest.raises(pyloop.PyloopError, match="was truncated, or written to"):
            channel.get()

    pid = start(read)
    Peer(channel).write(TAIL, 12)
    assert status_of(pid) == 0


def scribble(path: str, dice: random.Random) -> None:
    """Write words anywhere, likely ones too, and cut the file short where that is allowed."""
    fd = os.open(path, os.O_RDWR)
    while True:
        value = dice.choice([0, 1, 8, 128, 1024, 1 << 63, dice.getrandbits(64)])
        os.pwrite(fd, value.to_bytes(8, "little"), dice.randrange(DATA + 512) // 8 * 8)
        if dice.random() < 0.01:
            with contextlib.suppress(PermissionError):  # it is sealed
                os.ftruncate(fd, dice.choice([0, 100, DATA, DATA + 64, DATA + 1024]))
        time.sleep(0.0002)


def test_peer_that_scribbles_all_the_time_causes_errors_and_no_more(make: Maker) -> None:
    channel, seed = make(), random.randrange(1 << 32)
    print(f"seed {seed}")
    path = Peer(channel).path
    pid = start(lambda: scribble(path, random.Random(seed)))
    outcomes, end = collections.Counter[str](), time.monotonic() + TIMEOUT
    try:
        while outcomes["PyloopError"] < 100:
            number = outcomes.total()
            try:
                channel.put_nowait(bytes(number % 128)) if number % 2 else channel.get_nowait()
                outcomes["done"] += 1
            except (pyloop.PyloopError, queue.Full, queue.Empty) as exc:
                outcomes[type(exc).__name__] += 1
            assert time.monotonic() < end, outcomes
    finally:
        os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == -signal.SIGKILL
