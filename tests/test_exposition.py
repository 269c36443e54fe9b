"""What Prometheus gets to see of a page."""

from __future__ import annotations

import itertools
import re

from pages import count, page_of, start_worker
from prometheus_client.parser import text_string_to_metric_families as parse_text
from web import one, values

from pyloop.exposition import Exposition


def rendered(exposition, accept=""):
    text, _ = exposition.render(accept)
    return values(text.decode())


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
    """A worker counts in one of its two cells while its successor starts in the other."""
    with page_of(workers=0, cells=4) as page:
        exposition = Exposition(page)
        seen = []

        def look():
            for number in page.used():
                count(page, number, accepted=10, messages_in=100, lag={5: 7}, busy_ns=1_000_000_000)
            seen.append(rendered(exposition))

        for number, worker in ((0, 1), (2, 2), (1, 1)):
            start_worker(page, number, worker)
            look()
        page.free(0)
        look()
        start_worker(page, 0, 1)
        page.free(2)
        look()
        start_worker(page, 3, 2)
        look()
    for before, after in itertools.pairwise(seen):
        counters = {key for key in before if key[0].endswith(("_total", "_bucket", "_sum"))}
        assert {key for key in counters if not after[key] >= before[key]} == set()
    assert sums(seen[-1])["pyloop_connections_accepted_total", None] == 10 * (1 + 3 * 4 + 4)
    assert seen[-1][one("pyloop_worker_starts_total", worker="1")] == 3


def test_cell_that_nobody_has_had_is_no_worker():
    with page_of(workers=0, cells=3) as page:
        start_worker(page, 2, 5)
        got = rendered(Exposition(page))
    assert [labels for name, labels in got if name == "pyloop_worker_up"] == [(("worker", "5"),)]


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
