"""A server's page is found by pid and by address; what is no server's is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import socket
import sys

import pytest
from pages import Process, page_of, serving_process

from pyloop import finding, rates
from pyloop.core import ffi
from pyloop.finding import NotFoundError, find
from pyloop.page import NAME
from pyloop.stats import page_stats

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture(scope="module")
def server():
    with serving_process() as process:
        yield process


def refusal(target):
    with pytest.raises(NotFoundError) as caught:
        find(target)
    return str(caught.value)


# ---- by pid ----


def test_pid_of_the_owner_leads_to_its_page(server):
    found = find(str(server.pid))
    assert found.pid == server.pid
    assert page_stats(found.page).label == "a server"
    assert [worker.worker_id for worker in page_stats(found.page).workers] == [1, 2]


def test_pid_of_a_worker_leads_to_its_parent():
    with serving_process() as process:
        worker = process.do("_ = fork()")
        process.do(f"page.cell(0).pid = {worker}")
        assert find(str(worker)).pid == process.pid


def test_worker_that_holds_the_page_leads_to_its_parent_too():
    with serving_process() as process:
        process.do("held = os.dup(page.fd)")
        worker = process.do("_ = fork()")
        assert find(str(worker)).pid == process.pid


def test_child_that_does_not_count_in_the_page_is_no_server():
    with serving_process() as process:
        child = process.do("_ = fork()")
        assert f"process {child} (" in refusal(str(child))


def test_page_is_mapped_for_reading_and_no_fd_stays_open(server):
    before = len(os.listdir("/proc/self/fd"))
    found = find(str(server.pid))
    assert len(os.listdir("/proc/self/fd")) == before
    server.do("page.counters(0, 0).accepted = 17")
    assert page_stats(found.page).servers[0].accepted == 17


def test_server_that_ended_is_known_to_have_ended():
    with serving_process() as process:
        found = find(str(process.pid))
        assert not found.ended()
        process.end()
        assert found.ended()
        assert found.last_words() == f"the server has ended (pid {process.pid})"


def test_page_of_an_ended_server_can_still_be_read():
    with serving_process() as process:
        process.do("page.counters(1, 0).accepted = 3")
        found = find(str(process.pid))
        process.end()
        assert page_stats(found.page).servers[0].accepted == 3


def test_pid_that_nobody_has_is_named_and_a_port_suggested(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/proc/self/fd")
    assert refusal("8888") == "no process has the pid 8888 (a port is written :8888)"
    assert refusal("70000") == "no process has the pid 70000"


def test_process_that_is_no_server_is_named():
    process = Process()
    try:
        text = refusal(str(process.pid))
        assert re.fullmatch(
            rf"process {process.pid} \('.+'\) is not a pyloop server( \(a port .*\))?", text
        )
    finally:
        process.end()


def test_process_of_another_user_is_said_to_be_one(server, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(finding.os, "listdir", refuse)
    text = refusal(str(server.pid))
    assert text.startswith(f"process {server.pid} (") and text.endswith("belongs to another user")


def test_other_platform_is_told_that_this_needs_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert refusal("1") == "servers are found in /proc, which only Linux has"


# ---- by address ----


@contextlib.contextmanager
def listening(server, make, *arguments):
    """Have the server listen on `make(...)`, and yield the name of the socket."""
    server.do(f"sock = socket.{make}({', '.join(map(repr, arguments))})")
    server.do("sock.listen()")
    try:
        yield server.do("_ = sock.getsockname()")
    finally:
        server.do("sock.close()")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", ":{}", "localhost:{}"])
def test_tcp_address_leads_to_its_server(server, form):
    with listening(server, "create_server", ("127.0.0.1", 0)) as (_, port):
        assert find(form.format(port)).pid == server.pid


@pytest.mark.parametrize("form", ["[::1]:{}", ":{}", "127.0.0.1:{}"])
def test_wildcard_of_ipv6_serves_any_address(server, form):
    server.do("sock = socket.socket(socket.AF_INET6)")
    server.do("sock.bind(('::', 0))")
    server.do("sock.listen()")
    port = server.do("_ = sock.getsockname()[1]")
    try:
        assert find(form.format(port)).pid == server.pid
    finally:
        server.do("sock.close()")


def test_address_that_the_listener_does_not_have_is_not_found(server):
    with listening(server, "create_server", ("127.0.0.1", 0)) as (_, port):
        assert refusal(f"127.0.0.2:{port}") == f"nothing listens on 127.0.0.2:{port}"
        assert refusal(f"[::1]:{port}") == f"nothing listens on [::1]:{port}"


def test_connection_to_a_port_is_no_listener(server):
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        server.do(f"peer = socket.create_connection(('127.0.0.1', {port}))")
        peer = server.do("_ = peer.getsockname()[1]")
        assert refusal(f":{peer}") == f"nothing listens on :{peer}"
        server.do("peer.close()")


def unix_socket(server, name):
    server.do("sock = socket.socket(socket.AF_UNIX)")
    server.do(f"sock.bind({name!r})")
    server.do("sock.listen()")


def test_unix_path_leads_to_its_server_by_any_of_its_names(server, tmp_path, monkeypatch):
    path = tmp_path / "it with spaces.sock"
    unix_socket(server, str(path))
    assert find(str(path)).pid == server.pid
    monkeypatch.chdir(tmp_path)
    assert find("./it with spaces.sock").pid == server.pid
    (tmp_path / "sub").mkdir()
    assert find("sub/../it with spaces.sock").pid == server.pid
    server.do("sock.close()")
    assert refusal(str(path)) == f"nothing listens on {path}"


def test_relative_path_is_relative_to_the_server(server, tmp_path):
    before = server.do("_ = os.getcwd()")
    server.do(f"os.chdir({str(tmp_path)!r})")
    unix_socket(server, "it.sock")
    try:
        assert find(str(tmp_path / "it.sock")).pid == server.pid
        assert "it.sock" in refusal("./it.sock")
    finally:
        server.do(f"sock.close(); os.chdir({before!r})")


def test_abstract_name_leads_to_its_server(server):
    name = f"pyloop-test-{os.getpid()}"
    unix_socket(server, "\0" + name)
    assert find(f"@{name}").pid == server.pid
    server.do("sock.close()")
    assert refusal(f"@{name}") == f"nothing listens on @{name}"


def test_unix_socket_whose_name_looks_like_a_table_does_no_harm(server, tmp_path):
    path = tmp_path / "x\n1: 2 3 zz 5 6 y 8 it.sock"
    unix_socket(server, str(path))
    assert refusal(str(tmp_path / "it.sock")) == f"nothing listens on {tmp_path / 'it.sock'}"
    server.do("sock.close()")


def test_listener_of_a_program_that_is_no_server_is_named():
    process = Process()
    try:
        process.do("sock = socket.create_server(('127.0.0.1', 0))")
        where = f"127.0.0.1:{process.do('_ = sock.getsockname()[1]')}"
        text = refusal(where)
        assert text.startswith(f"process {process.pid} (")
        assert text.endswith(f"), who listens on {where}, is no pyloop server")
    finally:
        process.end()


def test_listener_of_another_user_is_said_to_be_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        monkeypatch.setattr(finding, "_links", lambda pid: iter(()))
        expected = f"who listens on :{port} belongs to another user (uid {os.getuid()})"
        assert refusal(f":{port}") == expected


def test_two_servers_on_one_port_are_not_mixed_up(server):
    with serving_process() as other:
        port = 0
        for process in (server, other):
            process.do("sock = socket.socket()")
            process.do("sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")
            process.do(f"sock.bind(('127.0.0.1', {port}))")
            process.do("sock.listen()")
            port = process.do("_ = sock.getsockname()[1]")
        pids = ", ".join(sorted(map(str, (server.pid, other.pid))))
        expected = f"several servers listen on :{port}: choose one of the pids {pids}"
        assert refusal(f":{port}") == expected
        server.do("sock.close()")


def test_text_that_is_neither_is_a_value_error():
    with pytest.raises(ValueError, match=r'^TARGET: expected "host:port", .*, got \'nonsense\'$'):
        find("nonsense")


def test_host_that_does_not_resolve_is_named():
    assert refusal("no.such.host.invalid:80").startswith("no.such.host.invalid: ")


# ---- pages that are none ----


@contextlib.contextmanager
def false_page(content, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, size=None):
    """A memfd of this process that is named like a page."""
    fd = os.memfd_create(NAME, os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        os.ftruncate(fd, len(content) if size is None else size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield
    finally:
        os.close(fd)


def real_page(**options):
    with page_of(**options) as page:
        return bytes(ffi.buffer(page.header, os.fstat(page.fd).st_size))


def patched(content, field, value):
    header = ffi.new("struct pl_page *")
    ffi.memmove(header, content, ffi.sizeof("struct pl_page"))
    setattr(header, field, value)
    return bytes(ffi.buffer(header)) + content[ffi.sizeof("struct pl_page") :]


BROKEN = {
    "empty": (b"", "0 bytes are too few for a page of counters"),
    "zeroes": (bytes(4096), r"no page of counters of version 1 \(version 0, 0 bytes\)"),
    "cut off": (real_page()[:-1], "no page of counters of version 1"),
    "other version": (patched(real_page(), "version", 9), r"\(version 9, "),
    "too many cells": (patched(real_page(), "cells", 0xFFFFFFFF), "no page of counters"),
    "too many servers": (patched(real_page(), "servers", 0xFFFFFFFF), "no page of counters"),
    "far apart": (patched(real_page(), "stride", 0xFFFFFFFF), "no page of counters"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_false_page_is_refused(name):
    content, reason = BROKEN[name]
    with false_page(content):
        text = refusal(str(os.getpid()))
    assert "has no page of counters that this version of pyloop reads: " in text
    assert re.search(reason, text)


def test_page_that_could_be_cut_off_while_it_is_read_is_refused():
    with false_page(real_page(), seals=0):
        assert "Invalid argument" in refusal(str(os.getpid()))


def test_huge_page_is_refused_before_it_is_read():
    with false_page(real_page(), size=1 << 40):
        assert f"{1 << 40} bytes, more than {finding.PAGE_LIMIT}" in refusal(str(os.getpid()))


@pytest.mark.parametrize("seed", range(20))
def test_nonsense_in_a_page_is_shown_as_it_is(seed):
    """All that is checked is the shape: the rest of a page may be any bytes."""
    start = ffi.sizeof("struct pl_page")
    content = real_page(workers=3, servers=2, cells=4)
    noise = random.Random(seed)
    content = content[:start] + noise.randbytes(len(content) - start)
    for field in ("since_ns", "started", "exited", "killed", "hung", "reloads"):
        content = patched(content, field, noise.choice([0, 1, (1 << 64) - 1]))
    content = patched(content, "used", noise.choice([0, 3, 4, 0xFFFFFFFF]))
    content = patched(content, "pid", noise.choice([-1, 0, 1, os.getpid()]))
    content = patched(content, "label", noise.randbytes(128))
    with false_page(content):
        found = find(str(os.getpid()))
    stats = page_stats(found.page)
    lines = [rates.headline(stats)]
    for before in (stats, page_stats(found.page)):
        shown = (*rates.rows(before, stats, 1.0), rates.total(before, stats, 1.0))
        lines += [" ".join(rates.texts(row)) for row in shown]
    assert all(line.isprintable() for line in lines)


def test_shape_that_changes_after_it_was_checked_changes_nothing():
    with page_of(workers=2) as page:
        found = find(str(os.getpid()))
        for field in ("cells", "servers", "stride", "used"):
            setattr(page.header, field, 0xFFFFFFFF)
        stats = page_stats(found.page)
        assert len(stats.cells) == 2 and len(stats.servers) == 1
        with pytest.raises(IndexError, match="cell 2: the page has 2"):
            found.page.cell(2)
        with pytest.raises(IndexError, match="server 1: the page has 1"):
            found.page.counters(0, 1)
