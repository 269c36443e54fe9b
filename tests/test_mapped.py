"""MappedFile: any part of a file as memory, and what becomes of it when the file changes."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import sys
import threading
import types
from pathlib import Path

import pytest
from faults import Child, compile_shim

from pyloop import MappedFile

PAGE = mmap.PAGESIZE
BYTES = bytes(range(251)) * 200  # 12 pages and a bit
TORN = """
import errno, os, signal, sys
from faults import say
from pyloop import MappedFile
path = sys.argv[1]
size = os.path.getsize(path)
ends = {"whole": 0, "torn": 0}
with MappedFile(path, mode="r+") as m:
    child = os.fork()
    while child == 0:
        os.truncate(path, 0)
        os.truncate(path, size)
    view = m.view(3)
    for turn in range(200_000):
        if min(ends.values()) > 20:
            break
        try:
            if turn % 4 == 0:
                m[:]
            elif turn % 4 == 1:
                m[:] = bytes(size)
            elif turn % 4 == 2:
                m.fill(1, 5)
            else:
                bytes(view)
            ends["whole"] += 1
        except OSError as exc:
            assert exc.errno == errno.EFAULT and exc.filename == path, exc
            ends["torn"] += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
say(**ends)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(BYTES)
    return file


# ---- reading ----


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE, 3 * PAGE + 7, len(BYTES) - 1])
def test_any_offset_maps_what_is_there(path: Path, offset: int) -> None:
    with MappedFile(path, offset=offset) as m:
        assert (m[:], len(m), m.offset) == (BYTES[offset:], len(BYTES) - offset, offset)
        assert bytes(m.buf) == BYTES[offset:]
        assert (m.page_size, m.address % PAGE) == (PAGE, offset % PAGE)
    with MappedFile(path, 1, offset) as m:
        assert m[:] == BYTES[offset : offset + 1]


def test_slices_are_those_of_bytes(path: Path) -> None:
    with MappedFile(path, 100, 7) as m:
        part = BYTES[7:107]
        for index in (slice(3, 9), slice(-5, None), slice(50, 40), slice(90, 1000), slice(0)):
            assert m[index] == part[index]
            assert type(m[index]) is bytes


def test_bytes_of_a_mapping_and_of_views_are_copies(path: Path) -> None:
    with MappedFile(path, 10, 3) as m:
        assert bytes(m) == BYTES[3:13]
        assert bytes(m.view(2, 4)) == BYTES[5:7]
        if sys.version_info >= (3, 12):
            assert memoryview(m)[2:4] == BYTES[5:7]  # type: ignore[arg-type]
        os.truncate(path, 0)
        assert m[4:4] == b""
        with pytest.raises(OSError, match="cannot read 10 bytes at offset 3: the file was trunc"):
            bytes(m)


def test_paths_and_fds_of_all_kinds_are_taken(path: Path) -> None:
    for name in (str(path), os.fsencode(path), path):
        with MappedFile(name) as m:
            assert (m.name, m.mode, m[:5]) == (str(path), "r", BYTES[:5])
    with path.open("rb") as file:
        with MappedFile(file.fileno()) as m:
            assert (m.name, m[:5]) == (f"fd {file.fileno()}", BYTES[:5])
        assert file.read(5) == BYTES[:5]  # it stays open


def test_mapping_opens_one_fd_and_closes_it(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    m = MappedFile(path)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    view = m.buf
    m.close()
    del view
    assert set(os.listdir("/proc/self/fd")) == before


def test_memory_stays_mapped_until_the_last_view_dies(path: Path) -> None:
    def is_mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    m = MappedFile(path)
    buf, view = m.buf[10:20], m.view(10, 20)
    m.close()
    m.close()
    assert (m.closed, bytes(buf), bytes(view), len(view)) == (True, BYTES[10:20], BYTES[10:20], 10)
    del buf
    assert is_mapped()
    del view
    assert not is_mapped()
    for use in (lambda: m[:], lambda: m.buf, lambda: m.view(), lambda: m.flush(), m.__enter__):
        with pytest.raises(ValueError, match=f"^MappedFile '{path}' is closed$"):
            use()
    assert repr(m) == f"<MappedFile '{path}' closed>"


def test_views_say_what_they_are(path: Path) -> None:
    with MappedFile(path, 1000, 50) as m:
        assert repr(m) == f"<MappedFile '{path}' 1000 bytes>"
        assert repr(m.view(5, 9)) == f"<MappedView of '{path}', 4 bytes at offset 55>"
        assert (len(m.view()), bytes(m.view(998)), bytes(m.view(3, 3))) == (
            1000,
            BYTES[1048:1050],
            b"",
        )
        for start, stop in ((5, 4), (0, 1001)):
            with pytest.raises(ValueError, match="is not inside the 1000 bytes mapped"):
                m.view(start, stop)
        with pytest.raises(ValueError, match="start must be at least 0, not -1"):
            m.view(-1)


# ---- writing ----


def test_writes_reach_the_file(path: Path) -> None:
    with MappedFile(path, mode="r+", offset=10) as m:
        m[5:8] = b"abc"
        m.buf[8] = ord("d")
        m.fill(ord("e"), 9, 2)
        m.flush()
        m.flush(6, 1)
        assert path.read_bytes()[15:21] == b"abcdee"
        m[0:1] = bytearray(b"z")
    assert path.read_bytes()[10:11] == b"z"
    assert len(path.read_bytes()) == len(BYTES)


@pytest.mark.parametrize("start", [0, 10])
def test_a_slice_set_to_memory_that_overlaps_it_is_as_with_bytes(path: Path, start: int) -> None:
    size = len(BYTES) - 10
    with MappedFile(path, mode="c") as m:
        m[start : start + size] = m.buf[10 - start :][:size]
        assert m[start : start + size] == BYTES[10 - start :][:size]


def test_a_private_copy_leaves_the_file_alone(path: Path) -> None:
    path.chmod(0o444)
    with MappedFile(path, mode="c") as m:
        m[5:8] = b"abc"
        m.buf[8] = ord("d")
        m.flush()
        assert m[4:10] == BYTES[4:5] + b"abcd" + BYTES[9:10]
    assert path.read_bytes() == BYTES


def test_a_mapping_to_read_refuses_writes(path: Path) -> None:
    with MappedFile(path) as m:
        assert m.buf.readonly
        with pytest.raises(TypeError, match=f"^MappedFile '{path}' is read-only$"):
            m[0:1] = b"x"
        with pytest.raises(TypeError, match="is read-only"):
            m.fill(0)


@pytest.mark.parametrize("advice", ["normal", "random", "sequential", "willneed", "dontneed"])
def test_advice_changes_no_byte(path: Path, advice: str) -> None:
    with MappedFile(path, offset=5) as m:
        m.advise(advice)
        m.advise(advice, 7, 1)
        assert m[:] == BYTES[5:]
        with pytest.raises(ValueError, match=r"advice must be one of normal, .*, not 'soon'"):
            m.advise("soon")


# ---- making and resizing ----


def test_create_size_makes_and_grows_but_never_cuts(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with MappedFile(path, mode="r+", create_size=10_000) as m:
        m[9_999:] = b"x"
    assert path.stat().st_blocks * 512 >= 10_000  # allocated, not a hole
    with MappedFile(path, mode="r+", create_size=20_000) as m:
        assert (len(m), m[9_999:10_001]) == (20_000, b"x\0")
    with MappedFile(path, mode="r+", create_size=5) as m:
        assert len(m) == 20_000


def test_a_full_disk_is_an_error_that_changes_nothing(path: Path, tmp_path: Path) -> None:
    new, huge = tmp_path / "new", 1 << 60  # no file system has that
    for name in (new, path):
        with pytest.raises(OSError, match=f"cannot allocate {huge} bytes: .*: '{name}'") as info:
            MappedFile(name, mode="r+", create_size=huge)
        assert info.value.errno in (errno.ENOSPC, errno.EFBIG)
    with MappedFile(path, mode="r+") as m:
        with pytest.raises(OSError, match=f"cannot allocate {huge} bytes"):
            m.resize(huge)
        assert m[:] == BYTES
    assert not new.exists()
    assert path.read_bytes() == BYTES


def test_resize_grows_and_cuts_the_file(path: Path) -> None:
    with MappedFile(path, mode="r+", offset=100) as m:
        before = m.buf
        m.resize(len(BYTES))
        assert (len(m), m[-100:], m.offset) == (len(BYTES), bytes(100), 100)
        assert bytes(before) == BYTES[100:]
        grown = m.buf
        with pytest.raises(BufferError, match=f"cannot shrink MappedFile '{path}': memoryviews"):
            m.resize(50)
        del grown
        with pytest.raises(BufferError, match="cannot shrink"):
            m.resize(50)
        del before
        view = m.view(40, 60)
        m.resize(50)
        assert (m[:], len(m), path.read_bytes()) == (BYTES[100:150], 50, BYTES[:150])
        with pytest.raises(OSError, match="cannot read 20 bytes at offset 140: the file was trunc"):
            bytes(view)
    with MappedFile(path, 10, mode="r+") as m:
        m.resize(5)  # it did not reach the end
        m.resize(8)
    assert path.read_bytes() == BYTES[:150]
    with MappedFile(path) as m, pytest.raises(ValueError, match="this is mode='r'"):
        m.resize(5)


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "w"}, ValueError, "^mode must be 'r', 'r\\+' or 'c', not 'w'$"),
        ({"offset": -1}, ValueError, "^offset must be at least 0, not -1$"),
        ({"offset": 1.0}, TypeError, r"^offset must be an int, not 1.0 \(float\)$"),
        ({"length": 0}, ValueError, "^length must be at least 1, not 0$"),
        ({"length": len(BYTES), "offset": 1}, ValueError, "go beyond the end of .*/file', which"),
        ({"offset": len(BYTES)}, ValueError, "from offset=50200 there is nothing to map$"),
        ({"create_size": 1}, ValueError, r"^create_size needs mode='r\+', not mode='r'$"),
        ({"create_size": 0, "mode": "r+"}, ValueError, "^create_size must be at least 1, not 0$"),
        ({"offset": 1 << 63}, ValueError, "^offset must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(
    path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MappedFile(path, **arguments)  # type: ignore[arg-type]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo, missing, empty = tmp_path / "fifo", tmp_path / "missing", tmp_path / "empty"
    os.mkfifo(fifo)
    empty.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for what in (fifo, "/dev/null", ours.fileno()):
            with pytest.raises(ValueError, match="is not a regular file: it cannot be mapped"):
                MappedFile(what)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        MappedFile(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(missing)):
        MappedFile(missing)
    with pytest.raises(ValueError, match="/empty' has 0 bytes: from offset=0 there is nothing"):
        MappedFile(empty)
    with pytest.raises(TypeError, match=r"^path_or_fd must be a path or an fd, not True \(bool\)"):
        MappedFile(True)
    missing.symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(FileExistsError, match=str(missing)):
        MappedFile(missing, mode="r+", create_size=1)


def test_an_fd_that_does_not_allow_the_mode_is_refused(path: Path) -> None:
    with path.open("rb") as file:
        message = (
            f"^.Errno 13. cannot map {len(BYTES)} bytes from offset 0: Permission denied: 'fd "
        )
        with pytest.raises(PermissionError, match=message):
            MappedFile(file.fileno(), mode="r+")
        size = len(BYTES) + 1
        with pytest.raises(OSError, match=f"cannot allocate {size} bytes: Bad file des.*: 'fd "):
            MappedFile(file.fileno(), mode="r+", create_size=size)


def test_what_the_kernel_refuses_is_told_with_file_and_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        return -errno.EIO

    fake = types.SimpleNamespace(pl_mapping_flush=refuse, pl_mapping_advise=refuse)
    with MappedFile(path, offset=5) as m:
        monkeypatch.setattr("pyloop.mapped.lib", fake)
        for what, call in (("flush", m.flush), ("advise on", lambda *at: m.advise("random", *at))):
            with pytest.raises(OSError, match=f"cannot {what} 3 bytes at offset 7: .*: '{path}'$"):
                call(2, 3)


# ---- truncation ----


def test_copies_of_what_the_file_has_lost_name_file_offset_and_length(path: Path) -> None:
    with MappedFile(path, offset=100, mode="r+") as m:
        view = m.view(150, 400)
        os.truncate(path, 300)  # in the first page: its rest reads as zeroes
        assert m[:200] == BYTES[100:300]
        for use, what in (
            (lambda: m[150:400], "read 250 bytes at offset 250"),
            (lambda: bytes(view), "read 250 bytes at offset 250"),
            (lambda: m.__setitem__(slice(200, 201), b"x"), "write 1 bytes at offset 300"),
            (lambda: m.fill(0, PAGE * 2), f"fill {len(m) - PAGE * 2} bytes at offset "),
        ):
            with pytest.raises(OSError, match=f"cannot {what}.*: the file was trunc") as info:
                use()
            assert (info.value.errno, info.value.filename) == (errno.EFAULT, str(path))
        path.write_bytes(BYTES)
        assert m[:] == BYTES[100:]


@pytest.mark.parametrize("rules", ["", "process_vm_readv:EPERM,process_vm_writev:ENOSYS"])
def test_truncations_during_copies_are_errors(path: Path, tmp_path: Path, rules: str) -> None:
    shim = compile_shim(tmp_path) if rules else None
    with Child(TORN, str(path), shim=shim, rules=rules) as child:
        ends = child.next()
        assert ends["whole"] > 20 and ends["torn"] > 20
        assert child.finish() == 0


def test_closing_during_copies_in_other_threads_is_safe(path: Path) -> None:
    m = MappedFile(path)
    ends: list[object] = []

    def copy() -> None:
        try:
            for _ in range(100_000):
                assert m[:] == BYTES
        except ValueError as exc:
            ends.append(str(exc))

    threads = [threading.Thread(target=copy) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        m.close()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert ends == [f"MappedFile '{path}' is closed"] * 3
