"""The page: counters of many processes in one sealed memfd."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyloop
from pyloop.core import ffi, lib
from pyloop.options import Group
from pyloop.page import NAME, Page, page_bytes
from pyloop.stats import page_server_stats, page_stats

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create")

HEADER = ffi.sizeof("struct pl_page")
VERSION = lib.PL_PAGE_VERSION


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page(3, 2, "127.0.0.1:8888")
    yield page
    page.close_fd()


def mappings() -> int:
    """How many times this process has a page mapped."""
    return Path("/proc/self/maps").read_text().count(f"/memfd:{NAME} ")


def memfd(data: bytes, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """A memfd that holds `data` and has these seals."""
    fd = os.memfd_create("pyloop-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def copy_of(page: Page, *, cut: int = 0, **fields: int) -> int:
    """A memfd with the page's bytes, some fields of the header changed."""
    data = bytearray(ffi.buffer(page._data, page.size))
    header = ffi.cast("struct pl_page *", ffi.from_buffer(data))
    for name, value in fields.items():
        setattr(header, name, value)
    return memfd(bytes(data[: len(data) - cut]))


# ---- layout ----


def test_new_page_says_what_it_is(page: Page) -> None:
    header = page.header
    size = page_bytes(3, 2)
    assert (header.version, header.size, page.size) == (lib.PL_PAGE_VERSION, size, size)
    assert (header.cells, header.servers, header.used) == (3, 2, 0)
    assert (page.cells, page.servers, page.label) == (3, 2, "127.0.0.1:8888")
    assert header.pid == os.getpid()
    assert 0 < header.since_ns <= time.monotonic_ns()
    assert os.readlink(f"/proc/self/fd/{page.fd}") == f"/memfd:{NAME} (deleted)"
    assert os.fstat(page.fd).st_size == size
    with pytest.raises(PermissionError):
        os.ftruncate(page.fd, 0)


def test_cells_and_counters_follow_one_another(page: Page) -> None:
    def address(pointer: object) -> int:
        return int(ffi.cast("uintptr_t", pointer)) - int(ffi.cast("uintptr_t", page._data))

    stride = page.header.stride
    assert address(page.cell(0)) == HEADER
    assert address(page.cell(2)) == HEADER + 2 * stride
    assert address(page.counters(0, 0)) == HEADER + ffi.sizeof("struct pl_cell")
    assert address(page.counters(2, 1) + 1) == page.size
    assert not [offset for offset in (HEADER, stride, address(page.counters(1, 1))) if offset % 8]


@pytest.mark.parametrize("number", [-1, 3, 1 << 40])
def test_cell_that_is_not_there_is_an_index_error(page: Page, number: int) -> None:
    with pytest.raises(IndexError, match=f"^cell {number}: the page has 3$"):
        page.cell(number)
    with pytest.raises(IndexError, match=f"^cell {number}: the page has 3$"):
        page.counters(number, 0)


@pytest.mark.parametrize("server", [-1, 2])
def test_server_that_is_not_there_is_an_index_error(page: Page, server: int) -> None:
    with pytest.raises(IndexError, match=f"^server {server}: the page has 2$"):
        page.counters(0, server)


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("", ""),
        ("x" * 127, "x" * 127),
        ("x" * 128, "x" * 127),
        ("x" * 126 + "é", "x" * 126),
        ("x" * 125 + "é", "x" * 125 + "é"),
        ("x" * 124 + "\N{GRINNING FACE}y", "x" * 124),
        ("€" * 43, "€" * 42),
        ("bad \udc80 name", "bad ? name"),
    ],
)
def test_label_is_cut_off_between_two_characters(page: Page, label: str, kept: str) -> None:
    page.set_label("something longer that was there before")
    page.set_label(label)
    assert page.label == kept
    raw = bytes(ffi.buffer(page.header.label))
    assert raw == kept.encode().ljust(lib.PL_PAGE_LABEL, b"\0") and raw[-1] == 0


# ---- attaching ----


def test_attached_page_is_the_same_memory(page: Page) -> None:
    other = Page.attach(page.fd)
    page.claim(1, 7)
    assert (other.cell(1).worker, other.header.used, other.label) == (7, 2, page.label)
    assert (other.cells, other.servers, other.size) == (3, 2, page.size)
    writable = Page.attach(page.fd, writable=True)
    writable.set_label("other")
    assert page.label == other.label == "other"


def test_fd_of_an_attached_page_stays_the_callers(page: Page) -> None:
    other = Page.attach(page.fd)
    assert other.fd == -1
    other.close_fd()
    os.fstat(page.fd)
    page.close_fd()
    page.close_fd()
    assert page.fd == -1 and other.label == page.label == "127.0.0.1:8888"


def test_page_is_unmapped_with_its_object() -> None:
    gc.collect()
    before = mappings()
    page = Page(1, 1)
    other = Page.attach(page.fd)
    page.close_fd()
    assert mappings() == before + 2
    del page, other
    gc.collect()
    assert mappings() == before


@pytest.mark.parametrize(
    ("fields", "version", "more"),
    [
        ({"version": 7}, 7, 0),
        ({"size": 10}, VERSION, 10),
        ({"cells": 4}, VERSION, 0),
        ({"cells": 0}, VERSION, 0),
        ({"servers": 1}, VERSION, 0),
        ({"cells": 0xFFFFFFFF, "servers": 0xFFFFFFFF}, VERSION, 0),
        ({"stride": 0}, VERSION, 0),
        ({"stride": 0xFFFFFFF8}, VERSION, 0),
        ({"cut": 1}, VERSION, 0),
    ],
)
def test_what_is_no_page_is_refused(
    page: Page, fields: dict[str, int], version: int, more: int
) -> None:
    fd = copy_of(page, **fields)
    size = more or page.size
    message = f"fd {fd}: no page of counters of version {VERSION} (version {version}, {size} bytes)"
    before = mappings()
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Page.attach(fd)
    finally:
        os.close(fd)
    gc.collect()
    assert mappings() == before


def test_what_is_too_short_is_refused(page: Page) -> None:
    fd = memfd(bytes(HEADER - 1))
    message = f"fd {fd}: {HEADER - 1} bytes are too few for a page of counters"
    with pytest.raises(ValueError, match=f"^{message}$"):
        Page.attach(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Page.attach(fd)


def test_what_could_become_shorter_is_refused(page: Page) -> None:
    data = bytes(ffi.buffer(page._data, page.size))
    fd = memfd(data, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        Page.attach(fd)
    os.close(fd)


def test_scribbled_header_leads_nobody_beyond_the_page(page: Page) -> None:
    other = Page.attach(page.fd)
    page.claim(0, 0)
    header = page.header
    header.cells = header.servers = header.stride = header.used = 0xFFFFFFFF
    assert other.used() == range(3)
    assert len(page_stats(other).servers) == 2
    with pytest.raises(IndexError, match="the page has 3"):
        other.cell(3)
    other.cell(2)
    assert len(page_server_stats(other, 1).workers) == 1


# ---- cells ----


def test_cell_goes_on_counting_with_its_next_process(page: Page) -> None:
    for turn in (1, 2):
        page.claim(0, 5)
        cell, counters = page.cell(0), page.counters(0, 1)
        assert (cell.worker, cell.starts, cell.pid) == (5, turn, 0)
        assert cell.state == lib.PL_CELL_STARTING and 0 < cell.since_ns <= time.monotonic_ns()
        assert counters.open == 0 and cell.loop.running_since == 0
        cell.pid, cell.state = 1000 + turn, lib.PL_CELL_READY
        counters.accepted += 10
        counters.open = 3
        cell.loop.ticks += 100
        cell.loop.running_since = time.monotonic_ns()
        assert page_server_stats(page, 1).open == 3
        page.free(0)
        assert (cell.state, cell.pid) == (lib.PL_CELL_FREE, 0)
        stats = page_server_stats(page, 1)
        assert (stats.accepted, stats.open, stats.ticks) == (10 * turn, 0, 100 * turn)
        assert stats.workers == ()
    assert page.header.started == 2 and page_server_stats(page, 0).accepted == 0


def test_used_cells_are_those_up_to_the_highest_that_ever_was(page: Page) -> None:
    assert page.used() == range(0)
    page.claim(1, 0)
    assert page.used() == range(2)
    page.claim(0, 0)
    page.free(1)
    assert page.used() == range(2)


def test_workers_are_listed_by_number_with_what_they_counted(page: Page) -> None:
    for number, worker, pid in ((0, 2, 12), (1, 1, 11), (2, 0, 10)):
        page.claim(number, worker)
        page.cell(number).pid = pid
        page.counters(number, 0).messages_in = pid
        page.cell(number).loop.lag[3] = pid
    page.cell(0).state = lib.PL_CELL_LEAVING
    page.cell(1).state = lib.PL_CELL_READY
    page.free(2)
    page.cell(0).loop.running_since = time.monotonic_ns() - 5_000_000_000
    stats = page_server_stats(page, 0)
    first, second = stats.workers
    assert (first.worker_id, first.pid, first.state, first.starts) == (1, 11, "ready", 1)
    assert (second.worker_id, second.pid, second.state) == (2, 12, "leaving")
    assert first.running_seconds == 0 and second.running_seconds >= 5
    assert (first.servers[0].messages_in, stats.messages_in) == (11, 33)
    assert (first.lag[3], stats.lag[3], len(stats.lag)) == (11, 33, lib.PL_LAG_BUCKETS)
    page.cell(1).state = 99
    assert page_server_stats(page, 0).workers[0].state == "99"


def test_exits_are_counted_by_their_kind(page: Page) -> None:
    for status in (0, 1, 255, -9, -15, -11):
        page.note_exit(status)
    processes = page_stats(page).processes
    assert (processes.exited, processes.failed, processes.killed) == (1, 2, 3)


def test_child_counts_where_the_parent_reads(page: Page) -> None:
    page.claim(0, 0)
    if not (pid := os.fork()):
        page.cell(0).pid = os.getpid()
        page.counters(0, 0).bytes_in = 1 << 40
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (page.cell(0).pid, page_stats(page).servers[0].bytes_in) == (pid, 1 << 40)


# ---- loops and groups that count in it ----


def test_loop_counts_in_its_cell_and_holds_the_page(loop: pyloop.Loop) -> None:
    gc.collect()
    before = mappings()
    for _ in range(2):  # the second time the former page goes
        page = Page(1, 1)
        page.claim(0, 0)
        loop._count_in(page, 0)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert page.cell(0).loop.ticks == 1 == loop.stats().ticks
        assert page.cell(0).loop.running_since == 0
        page.close_fd()
        del page
        gc.collect()
        assert mappings() == before + 1
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop.stats().ticks == 2


def test_shared_group_needs_a_page_that_fits(loop: pyloop.Loop, page: Page) -> None:
    def group(server: int) -> Group:
        group = Group(pyloop.Raw(), idle_timeout=0, message_timeout=0, linger=0, write_limit=1)
        group.count_in(page, 0, 0)
        group.shared, group.page_server = True, server
        return group

    with pytest.raises(OSError, match="Invalid argument"):
        group(2).open(loop._core.ptr)
    good = group(1)
    good.open(loop._core.ptr)
    good.close()
