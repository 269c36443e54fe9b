"""The metrics server: what Prometheus gets, and what hostile peers get."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys

import pytest
from pages import count, page_of, start_worker
from peers import until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

import pyloop
from pyloop import metrics, responder
from pyloop.errors import ExtraMissingError
from pyloop.exposition import Exposition
from pyloop.forking import fork_child
from pyloop.metrics import MetricsServer

HOST = b"Host: 127.0.0.1\r\n"


@contextlib.asynccontextmanager
async def serving(address=0, **options):
    """A MetricsServer with a page, which is its attribute `page`."""
    with page_of(**options) as page:
        server = MetricsServer(address, page)
        server.page = page
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


def port_of(server):
    return int(re.search(r":(\d+)/$", server.url)[1])


async def talk(server, data, eof=False):
    """Send bytes; return all that comes until the end of the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        writer.write(data)
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(server, target="/", *fields, method="GET"):
    """Return the status, the fields (in lower case) and the body of the one answer."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]
    return split(await talk(server, "\r\n".join(lines).encode()))


def split(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *fields = head.decode().split("\r\n")
    assert start.startswith("HTTP/1.1 ")
    named = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    return int(start.split()[1]), named, body


def values(text, parse=parse_text):
    """Return each sample's value by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def rendered(exposition, accept=""):
    text, _ = exposition.render(accept)
    return values(text.decode())


def one(name, **labels):
    return name, tuple(sorted(labels.items()))


# ---- what Prometheus gets ----


def test_counters_of_each_worker_are_exposed():
    with page_of(workers=2, label='a "label"\n\\') as page:
        count(page, 0, accepted=5, open=2, messages_in=7, messages_out=8, bytes_in=9, bytes_out=10)
        count(page, 1, framing_errors=3, timeouts=1, busy_ns=1_500_000_000, ticks=11)
        got = rendered(Exposition(page))
    expected = {
        "pyloop_connections_accepted_total": 5,
        "pyloop_connections_open": 2,
        "pyloop_messages_received_total": 7,
        "pyloop_messages_sent_total": 8,
        "pyloop_received_bytes_total": 9,
        "pyloop_sent_bytes_total": 10,
        "pyloop_worker_up": 1,
        "pyloop_worker_starts_total": 1,
    }
    assert {name: got[one(name, worker="1")] for name in expected} == expected
    assert got[one("pyloop_framing_errors_total", worker="2")] == 3
    assert got[one("pyloop_timeouts_total", worker="2")] == 1
    assert got[one("pyloop_loop_busy_seconds_total", worker="2")] == 1.5
    assert got[one("pyloop_loop_turns_total", worker="2")] == 11
    assert got[one("pyloop_worker_resident_memory_bytes", worker="2")] > 1 << 20
    assert got[one("pyloop_process_starts_total")] == 2
    assert got[one("pyloop_info", version="0.1.0", serves='a "label"\n\\')] == 1


def test_several_servers_are_told_apart():
    with page_of(workers=1, servers=2) as page:
        count(page, 0, server=1, accepted=5)
        got = rendered(Exposition(page))
    assert got[one("pyloop_connections_accepted_total", worker="1", server="0")] == 0
    assert got[one("pyloop_connections_accepted_total", worker="1", server="1")] == 5


def test_turns_are_a_histogram_of_seconds():
    with page_of(workers=1) as page:
        count(page, 0, lag={0: 1, 3: 10, 25: 2}, busy_ns=2_000_000_000)
        got = rendered(Exposition(page))
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in got.items()
        if name == "pyloop_loop_turn_seconds_bucket"
    }
    assert (buckets[1e-6], buckets[4e-6], buckets[8e-6]) == (1, 1, 11)
    assert (buckets[2**24 / 1e6], buckets[float("inf")]) == (11, 13)
    assert got[one("pyloop_loop_turn_seconds_count", worker="1")] == 13
    assert got[one("pyloop_loop_turn_seconds_sum", worker="1")] == 2


def test_ends_of_processes_are_counted_by_how():
    with page_of() as page:
        for status in (0, 1, 2, -9):
            page.note_exit(status)
        got = rendered(Exposition(page))
    ends = {how: got[one("pyloop_process_ends_total", how=how)] for how in ("exited", "killed")}
    assert ends == {"exited": 1, "killed": 1}
    assert got[one("pyloop_process_ends_total", how="failed")] == 2


def test_names_are_as_prometheus_wants_them():
    with page_of(servers=2) as page:
        families = list(parse_text(Exposition(page).render("")[0].decode()))
    assert len({family.name for family in families}) == len(families) > 20
    for family in families:
        assert re.fullmatch(r"pyloop_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert (family.type == "counter") == family.samples[0].name.endswith("_total")


def sums(got):
    """Sum all series of each counter."""
    total = {}
    for (name, labels), value in got.items():
        if name.endswith(("_total", "_bucket", "_count", "_sum")):
            key = name, dict(labels).get("le")
            total[key] = total.get(key, 0) + value
    return total


def test_counters_never_go_down_while_workers_are_replaced():
    """Worker 1's successor counts in another cell, and its own cell goes to worker 3."""
    with page_of(workers=2, cells=4) as page:
        exposition = Exposition(page)
        seen = []

        def look():
            for number in page.used():
                count(page, number, accepted=10, messages_in=100, lag={5: 7}, busy_ns=1_000_000_000)
            seen.append(rendered(exposition))

        look()
        start_worker(page, 2, 1)  # both serve for a while
        look()
        page.free(0)
        look()
        start_worker(page, 0, 3)
        look()
        page.free(1)
        start_worker(page, 1, 2)
        look()
    for before, after in itertools.pairwise(seen):
        counters = {key for key in before if key[0].endswith(("_total", "_bucket", "_sum"))}
        assert {key for key in counters if not after[key] >= before[key]} == set()
    accepted = sums(seen[-1])["pyloop_connections_accepted_total", None]
    assert accepted == 10 * (2 + 3 + 3 + 3 + 3)


def test_worker_without_a_process_is_down_and_keeps_its_counters():
    with page_of(workers=2) as page:
        exposition = Exposition(page)
        count(page, 0, accepted=4, open=4)
        rendered(exposition)
        page.free(0)
        got = rendered(exposition)
    assert got[one("pyloop_worker_up", worker="1")] == 0
    assert got[one("pyloop_connections_open", worker="1")] == 0
    assert got[one("pyloop_connections_accepted_total", worker="1")] == 4
    assert got[one("pyloop_worker_resident_memory_bytes", worker="1")] == 0


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


# ---- HTTP ----


def test_every_answer_closes_and_is_complete(run):
    async def main():
        async with serving() as server:
            for target in ("/", "/metrics", "/stats.json", "/nothing"):
                status, fields, body = await ask(server, target)
                assert status == (404 if target == "/nothing" else 200)
                assert fields["connection"] == "close"
                assert fields["cache-control"] == "no-store"
                assert int(fields["content-length"]) == len(body) > 0
                assert "default-src 'none'" in fields["content-security-policy"]

    run(main())


def test_head_has_no_body_and_the_same_fields(run):
    async def main():
        async with serving() as server:
            for target in ("/", "/nothing"):
                full = await ask(server, target)
                status, fields, body = await ask(server, target, method="HEAD")
                assert (status, body) == (full[0], b"")
                assert fields["content-length"] == str(len(full[2]))

    run(main())


WRONG = {
    "other method": (b"POST / HTTP/1.1\r\n" + HOST, 405),
    "no such path": (b"GET /metrics/ HTTP/1.1\r\n" + HOST, 404),
    "path upward": (b"GET /../stats.json HTTP/1.1\r\n" + HOST, 404),
    "no path": (b"GET HTTP/1.1\r\n" + HOST, 400),
    "nothing": (b"\r\n\r\n", 400),
    "no HTTP": (b"hello\r\n", 400),
    "bytes": (b"\xff\x00\x01 / HTTP/1.1\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2, 400),
    "odd host": (b"GET / HTTP/1.1\r\nHost: a b\r\n", 421),
    "malformed host": (b"GET / HTTP/1.1\r\nHost: [::1\r\n", 400),
    "folded field": (b"GET / HTTP/1.1\r\n" + HOST + b" more\r\n", 400),
    "no field": (b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n", 400),
    "body": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n", 413),
    "chunks": (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n", 413),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request_is_answered_and_closed(name):
    request, status = WRONG[name]
    written = []

    class Conn:
        write = written.append

        def close(self):
            written.append(None)

    respond = responder.responder({"/": lambda request: responder.Answer(b"never")})
    respond(Conn(), request.removesuffix(b"\r\n"))
    assert written.pop() is None
    (answer,) = written
    got, fields, body = split(answer)
    assert got == status
    assert body.startswith(b"%d " % status)
    assert ("allow" in fields) == (status == 405)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9090", "[::1]:9090", "10.0.0.7", "LocalHost", "my.name:1"]
)
def test_host_that_is_an_address_or_a_name_of_ours_is_served(host):
    check = responder._check_host
    check(responder.Request("GET", "/", {"host": host}), {"localhost", "my.name"})


def test_page_of_a_name_that_was_made_to_lead_here_reads_nothing(run):
    async def main():
        async with serving() as server:
            request = b"GET /stats.json HTTP/1.1\r\nHost: evil.example:9090\r\n\r\n"
            status, _, body = split(await talk(server, request))
            assert (status, body) == (421, b"421 Misdirected Request\n")

    run(main())


def test_request_in_single_bytes_is_answered(run):
    async def main():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            for byte in b"\r\nGET /stats.json HTTP/1.0\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert split(await reader.read())[0] == 200
            writer.close()

    run(main())


def test_pipelined_requests_get_one_answer(run):
    async def main():
        async with serving() as server:
            request = b"HEAD /stats.json HTTP/1.1\r\n" + HOST + b"\r\n"
            answer = await talk(server, request * 50)
            assert answer.count(b"HTTP/1.1 ") == 1

    run(main())


def test_half_close_after_the_request_gets_the_whole_answer(run):
    async def main():
        async with serving() as server:
            request = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
            status, fields, body = split(await talk(server, request, eof=True))
            assert status == 200 and len(body) == int(fields["content-length"])

    run(main())


def test_half_close_within_the_request_ends_it(run):
    async def main():
        async with serving() as server:
            assert await talk(server, b"GET / HTTP/1.1\r\n", eof=True) == b""

    run(main())


def test_head_without_end_is_cut_off(run):
    async def main():
        async with serving() as server:
            request = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000
            with contextlib.suppress(ConnectionResetError):
                assert await talk(server, request) == b""
            assert (await ask(server, "/stats.json"))[0] == 200

    run(main())


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_peer_that_never_asks_is_let_go(run, monkeypatch, sent):
    async def main():
        monkeypatch.setattr(metrics, "_TIMEOUT", 0.05)
        async with serving() as server:
            with contextlib.suppress(ConnectionResetError):
                assert await talk(server, sent) == b""

    run(main())


def test_peers_beyond_the_limit_wait_and_are_served(run, monkeypatch):
    async def main():
        monkeypatch.setattr(metrics, "_CONNECTIONS", 2)
        async with serving() as server:
            idle = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(2)]
            await until(lambda: len(server._server.connections) == 2)
            late = asyncio.ensure_future(ask(server, "/stats.json"))
            await asyncio.sleep(0)
            assert not late.done() and len(server._server.connections) == 2
            for sock in idle:
                sock.close()
            assert (await late)[0] == 200

    run(main())


def test_route_that_raises_harms_nobody_else(run, caplog):
    async def main():
        async with serving() as server:
            server._exposition = None
            with pytest.raises(ConnectionResetError):
                await ask(server, "/metrics")
            assert "AttributeError" in caplog.text
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
