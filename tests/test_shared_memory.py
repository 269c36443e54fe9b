"""SharedMemory: made, found by name, filled, refused, and safe whatever the others do."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyloop import SharedMemory

SHM = Path("/dev/shm")
FULL = """
import errno, os
from pyloop import MappedFile, SharedMemory
kept = SharedMemory("kept", size=65536, create=True)
kept.fill(7)
for arguments in (
    dict(size=8 << 20, create=True),
    dict(size=8 << 20, create=True, exclusive=False),
    dict(name=None, size=8 << 20, create=True),
):
    try:
        SharedMemory(**{"name": "big", **arguments})
    except OSError as exc:
        assert exc.errno == errno.ENOSPC, exc
        print(exc)
try:
    MappedFile("/dev/shm/file", mode="r+", create_size=8 << 20)
except OSError as exc:
    assert exc.errno == errno.ENOSPC, exc
assert os.listdir("/dev/shm") == ["kept"]
assert kept[:] == b"\\7" * 65536
SharedMemory("fits", size=512 * 1024, create=True).fill(1)
"""


@pytest.fixture
def shm() -> Iterator[SharedMemory]:
    with SharedMemory(size=10_000, create=True) as memory:
        yield memory
    if (SHM / memory.name).exists():
        memory.unlink()


def in_child(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_maps_of_a_name_share_their_bytes(shm: SharedMemory) -> None:
    with SharedMemory(shm.name) as other:
        other[4000:4005] = b"hello"
        assert shm[3999:4006] == b"\0hello\0"
        shm.buf[0] = 9
        assert other.buf[0] == 9
        assert (other.size, len(other), other.name) == (10_000, 10_000, shm.name)


def test_a_process_that_closes_or_ends_leaves_the_others_alone(shm: SharedMemory) -> None:
    code = "import sys, pyloop\nm = pyloop.SharedMemory(sys.argv[1])\nm[:5] = b'child'"
    in_child(code + "\nm.close()", shm.name)
    in_child(code, shm.name)
    assert shm[:6] == b"child\0"
    with SharedMemory(shm.name) as other:
        assert other[:5] == b"child"


def test_fill_sets_a_range(shm: SharedMemory) -> None:
    shm.fill(0x61)
    shm.fill(0x62, 10, 3)
    shm.fill(0x63, 9_998)
    assert shm[8:15] == b"aabbbaa"
    assert shm[9_996:] == b"aacc"


def test_views_outlive_close(shm: SharedMemory) -> None:
    view = shm.buf[100:200]
    view[0] = 5
    shm.close()
    shm.close()
    assert (shm.closed, view[0]) == (True, 5)
    with pytest.raises(ValueError, match=f"^SharedMemory '{shm.name}' is closed$"):
        shm[0:1]
    with pytest.raises(ValueError, match="is closed"):
        len(shm)


def test_unlink_removes_the_name_and_leaves_the_map(shm: SharedMemory) -> None:
    shm.unlink()
    shm[:2] = b"ok"
    with pytest.raises(FileNotFoundError, match=f"open shared memory.*: '{shm.name}'"):
        SharedMemory(shm.name)
    with pytest.raises(FileNotFoundError, match="cannot unlink shared memory"):
        shm.unlink()


def test_creating_one_that_exists_is_refused_or_opens_it(shm: SharedMemory) -> None:
    shm[:4] = b"here"
    with pytest.raises(FileExistsError, match="cannot create shared memory"):
        SharedMemory(shm.name, size=10, create=True)
    with SharedMemory(shm.name, size=10, create=True, exclusive=False) as other:
        assert (other[:4], len(other)) == (b"here", 10)
    assert (SHM / shm.name).stat().st_size == 10_000


def test_truncate_empties_what_was_there(shm: SharedMemory) -> None:
    shm[:4] = b"here"
    with SharedMemory(shm.name, size=20, truncate=True) as other:
        assert other[:] == bytes(20)


def test_a_region_smaller_than_expected_is_refused(shm: SharedMemory) -> None:
    expected = f"^shared memory '{shm.name}' has 10000 bytes, fewer than size=10001$"
    with pytest.raises(ValueError, match=expected):
        SharedMemory(shm.name, size=10_001)
    with pytest.raises(ValueError, match="fewer than size=10001"):
        SharedMemory(shm.name, size=10_001, create=True, exclusive=False)
    os.truncate(SHM / shm.name, 0)
    with pytest.raises(ValueError, match="has 0 bytes, so there is nothing to map"):
        SharedMemory(shm.name)


def test_readonly_refuses_to_be_written(shm: SharedMemory) -> None:
    shm[:2] = b"ab"
    with SharedMemory(shm.name, readonly=True) as other:
        assert (other[:2], other.buf.readonly) == (b"ab", True)
        with pytest.raises(TypeError, match="is read-only"):
            other[:2] = b"cd"
        with pytest.raises(TypeError, match="is read-only"):
            other.fill(1)
        with pytest.raises(ValueError, match="is read-only"):
            other._place(0, 4, 4)


def test_permission_denied_is_told_by_name(shm: SharedMemory) -> None:
    assert (SHM / shm.name).stat().st_mode & 0o777 == 0o600
    code = """
import os, sys
from pyloop import SharedMemory
if os.getuid() == 0:
    os.setuid(65534)
else:
    os.chmod("/dev/shm/" + sys.argv[1], 0)
try:
    SharedMemory(sys.argv[1])
except PermissionError as exc:
    print(exc)
"""
    assert f"cannot open shared memory: Permission denied: '{shm.name}'" in in_child(code, shm.name)


def test_a_truncated_region_is_an_error_in_copies(shm: SharedMemory) -> None:
    os.truncate(SHM / shm.name, 5_000)  # in the middle of a page: its rest reads as zeroes
    assert shm[:5_000] == bytes(5_000)
    with pytest.raises(OSError, match="cannot read 2 bytes at offset 4999: the file was truncated"):
        shm[4_999:5_001]
    with pytest.raises(OSError, match="cannot write 4 bytes at offset 9000: the file was trunc"):
        shm[9_000:9_004] = b"abcd"
    with pytest.raises(OSError, match="cannot fill 10000 bytes at offset 0: the file was trunc"):
        shm.fill(1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "a/b", "size": 1, "create": True}, ValueError, "a slash or NUL, not 'a/b'"),
        ({"name": "/a"}, ValueError, "a slash or NUL, not '/a'"),
        ({"name": ""}, ValueError, "a slash or NUL, not ''"),
        ({"name": ".."}, ValueError, "a slash or NUL, not '..'"),
        ({"name": "a\0b"}, ValueError, "a slash or NUL"),
        ({"name": "a" * 251}, ValueError, "name must be at most 250 bytes, not 251: 'aaaa"),
        ({"name": b"a"}, TypeError, r"name must be a str or None, not b'a' \(bytes\)"),
        ({}, ValueError, "name must be given, unless create=True"),
        ({"name": "a", "create": True}, ValueError, "size must be 1 byte or more with create"),
        ({"size": -1, "create": True}, ValueError, "size must be at least 0, not -1"),
        ({"size": 1.5, "create": True}, TypeError, r"size must be an int, not 1.5 \(float\)"),
        ({"size": 1, "create": True, "mode": 0o1000}, ValueError, "mode must be 0 to 0o777"),
        ({"size": 1, "create": True, "readonly": True}, ValueError, "readonly=True excludes"),
        ({"size": 1 << 62, "create": True}, OSError, f"cannot allocate {1 << 62} bytes of shared"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SharedMemory(**arguments)  # type: ignore[arg-type]
    assert not (SHM / "a").exists()


def test_the_longest_name_is_taken() -> None:
    name = secrets.token_hex(8).ljust(250, "n")
    with SharedMemory(name, size=1, create=True) as memory:
        memory.unlink()


def test_indexes_and_sizes_that_do_not_fit_are_refused(shm: SharedMemory) -> None:
    with pytest.raises(TypeError, match=r"indexed by slices, m\[a:b\], not int"):
        shm[3]  # type: ignore[index]
    with pytest.raises(ValueError, match="the step of a slice must be 1, not 2"):
        shm[::2]
    with pytest.raises(ValueError, match="a slice of 3 bytes cannot be set to 2 bytes"):
        shm[:3] = b"ab"
    with pytest.raises(TypeError, match="expected bytes-like, got str: 'abc'"):
        shm[:3] = "abc"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="byte must be 0 to 255, not 256"):
        shm.fill(256)
    with pytest.raises(ValueError, match="start=9999 and length=2 are not inside the 10000 bytes"):
        shm.fill(0, 9_999, 2)
    assert (shm[5:5], shm[20_000:], shm[:10_000:1] == shm[:]) == (b"", b"", True)


def test_place_keeps_the_memory_and_checks(shm: SharedMemory) -> None:
    word = shm._place(16, 8, 8)
    for offset, message in ((12, "multiple of 8, not 12"), (9_999, "multiple"), (10_000, "inside")):
        with pytest.raises(ValueError, match=message):
            shm._place(offset, 8, 8)
    with pytest.raises(ValueError, match="offset must be at least 0, not -8"):
        shm._place(-8, 8, 8)
    with SharedMemory(shm.name) as other:
        shm.close()
        word[0] = 42
        assert other[16:17] == b"*"
    with pytest.raises(ValueError, match="is closed"):
        shm._place(0, 8, 8)


def test_full_memory_is_an_error_that_leaves_nothing() -> None:
    mounted = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    try:
        subprocess.run([*unshare, "sh", "-c", mounted], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no mount namespace here: {exc}")
    command = [*unshare, "sh", "-c", f'{mounted} && exec "$0" -c "$1"', sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    message = "cannot allocate 8388608 bytes of shared memory: No space left on device: '"
    assert done.stdout.count(message) == 3
    assert done.stdout.count(f"{message}big'") == 2
