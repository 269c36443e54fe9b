"""The metrics server: what it serves, where, and in how many threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest
from pages import count, page_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from web import ask, one, port_of, serving, split, values

import pyloop
from pyloop import metrics
from pyloop.errors import ExtraMissingError
from pyloop.forking import fork_child
from pyloop.metrics import MetricsServer


def test_metrics_are_served_in_the_format_that_is_asked_for(run):
    async def main():
        async with serving() as server:
            status, fields, body = await ask(server, "/metrics")
            assert (status, fields["content-type"].split(";")[0]) == (200, "text/plain")
            assert values(body.decode())[one("pyloop_worker_up", worker="1")] == 1
            accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
            status, fields, body = await ask(server, "/metrics?x=1", accept)
            assert fields["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            assert values(body.decode(), parse_open)[one("pyloop_worker_up", worker="1")] == 1

    run(main())


def test_json_has_each_cell_with_its_sums(run):
    async def main():
        async with serving(workers=2, servers=2) as server:
            count(server.page, 1, server=0, messages_in=3)
            count(server.page, 1, server=1, messages_in=4)
            status, fields, body = await ask(server, "/stats.json")
            assert (status, fields["content-type"]) == (200, "application/json")
            stats = json.loads(body)
            assert (stats["label"], stats["pid"]) == ("a server", os.getpid())
            assert [cell["messages_in"] for cell in stats["cells"]] == [0, 7]
            assert stats["cells"][0]["rss"] > 1 << 20

    run(main())


def test_answer_is_given_again_only_while_it_is_fresh(run, monkeypatch):
    async def accepted(server):
        body = (await ask(server, "/metrics"))[2]
        return values(body.decode())[one("pyloop_connections_accepted_total", worker="1")]

    async def main():
        async with serving() as server:
            monkeypatch.setattr(metrics, "FRESH_SECONDS", 3600.0)
            assert await accepted(server) == 0
            count(server.page, 0, accepted=1)
            assert await accepted(server) == 0
            monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
            assert await accepted(server) == 1

    run(main())


# ---- where it listens ----


def test_default_host_is_loopback_only(run):
    async def main():
        async with serving(":0") as server:
            assert server.url.startswith("http://127.0.0.1:")
            assert repr(server) == f"<pyloop.MetricsServer {server.url} serving>"

    run(main())


def test_unix_socket_serves_too(run, tmp_path):
    path = str(tmp_path / "metrics.sock")

    async def main():
        async with serving(path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert split(await reader.read())[0] == 200
            writer.close()
        assert not os.path.exists(path)

    run(main())


def test_address_in_use_is_named(run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken, page_of() as page:
            port = taken.getsockname()[1]
            server = MetricsServer(("127.0.0.1", port), page)
            expected = f"cannot listen on 127.0.0.1:{port}: Address already in use"
            with pytest.raises(OSError, match=expected):
                await server.start()

    run(main())


def test_host_that_does_not_resolve_is_named(run):
    async def main():
        with page_of() as page, pytest.raises(socket.gaierror, match=r"on no\.such\.invalid:1: "):
            await MetricsServer("no.such.invalid:1", page).start()

    run(main())


def test_second_start_is_refused_and_stop_may_come_twice(run):
    async def main():
        async with serving() as server:
            with pytest.raises(RuntimeError, match="it has been started already"):
                await server.start()
            await server.stop()
            await server.stop()

    run(main())


def test_bad_address_is_refused_by_the_constructor():
    with page_of() as page, pytest.raises(ValueError, match=r"^metrics: expected .*, got 'x'$"):
        MetricsServer("x", page)


def test_loop_of_another_kind_is_refused():
    async def main():
        with page_of() as page, pytest.raises(RuntimeError, match=r"needs a running pyloop\.Loop"):
            await MetricsServer(0, page).start()

    asyncio.run(main())


def test_missing_prometheus_client_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pyloop.exposition")
    with page_of() as page, pytest.raises(ExtraMissingError) as caught:
        MetricsServer(0, page)
    expected = 'metrics need prometheus-client: pip install "pyloop-io[metrics]"'
    assert str(caught.value) == expected


# ---- one thread, and forks ----


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_no_thread_is_ever_started():
    program = """
import asyncio, os, re, threading
import pyloop
from pyloop.metrics import MetricsServer
from pyloop.page import Page

async def main():
    server = MetricsServer("localhost:0", Page(1, 1))
    await server.start()
    for path in ("/", "/metrics", "/stats.json"):
        port = re.search(r":(\\d+)/$", server.url)[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode())
        assert b" 200 " in await reader.readline()
        writer.close()
    assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1
    await server.stop()

pyloop.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def has_open(inode):
    found = []
    for link in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this listing
            found.append(os.stat(link.path).st_ino)
    return inode in found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_forked_child_gives_up_the_sockets_and_the_parent_serves_on(run):
    async def main():
        async with serving() as server:
            inode = os.fstat(server._server.sockets[0].fileno()).st_ino

            def child():
                return has_open(inode)

            assert has_open(inode)
            status = os.waitstatus_to_exitcode(os.waitpid(fork_child(child), 0)[1])
            assert status == 0
            assert (await ask(server, "/stats.json"))[0] == 200

    run(main())


def test_loop_may_close_under_it():
    """As in a forked child, or when run() ends early: no socket stays open."""
    loop = pyloop.Loop()
    with page_of() as page:
        server = MetricsServer(0, page)
        loop.run_until_complete(server.start())
        port = port_of(server)
        loop.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
