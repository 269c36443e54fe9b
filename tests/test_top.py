"""python -m pyloop top: lines, the live screen, and how both end."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from pages import count, page_of, serving_process, start_worker
from textual.widgets import DataTable, Sparkline, Static

import pyloop.top
from pyloop import rates
from pyloop.__main__ import cli
from pyloop.core import lib
from pyloop.errors import ExtraMissingError
from pyloop.finding import find
from pyloop.rates import COLUMNS, percentile
from pyloop.screen import Screen
from pyloop.stats import page_stats
from pyloop.top import print_lines, top

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
TOP = [sys.executable, "-m", "pyloop", "top", "--plain", "--interval", "0.1"]


def ours(page):
    return find(str(page.header.pid))


# ---- rates ----


def test_rates_are_differences_over_the_interval():
    with page_of(workers=2, servers=2) as page:
        count(page, 0, messages_in=1000)
        before = page_stats(page)
        count(page, 0, server=0, messages_in=50, messages_out=10, bytes_in=400, bytes_out=2, open=3)
        count(page, 0, server=1, messages_in=50, open=4)
        count(page, 0, busy_ns=500_000_000, lag={3: 99, 10: 1})
        count(page, 1, messages_in=2)
        first, second = rates.rows(before, page_stats(page), 2.0)
        assert (first.worker, first.connections, first.messages_in) == ("1", 7, 50)
        assert (first.messages_out, first.bytes_in, first.bytes_out) == (5, 200, 1)
        assert (first.busy, first.lag_p50, first.lag_p99) == (0.25, 8e-6, 8e-6)
        assert (second.worker, second.messages_in, second.lag_p50) == ("2", 1, None)
        everything = rates.total(before, page_stats(page), 2.0)
        assert (everything.messages_in, everything.state) == (51, "2 alive")


def test_worker_that_is_replaced_in_its_cell_keeps_its_rate():
    with page_of(workers=1) as page:
        count(page, 0, messages_in=1000)
        before = page_stats(page)
        page.free(0)
        start_worker(page, 0, 1)
        count(page, 0, messages_in=10)
        (row,) = rates.rows(before, page_stats(page), 1.0)
        assert (row.messages_in, row.restarts) == (10, 1)


def test_worker_that_is_replaced_in_another_cell_counts_as_restarted():
    with page_of(workers=1, cells=2) as page:
        start_worker(page, 1, 1)
        page.free(0)
        stats = page_stats(page)
        (row,) = rates.rows(stats, stats, 1.0)
        assert (row.worker, row.restarts) == ("1", 1)
        assert rates.total(stats, stats, 1.0).restarts == 1


def test_what_an_ended_worker_did_counts_in_the_total_only():
    with page_of(workers=1) as page:
        before = page_stats(page)
        count(page, 0, messages_in=10)
        page.free(0)
        assert rates.rows(before, page_stats(page), 1.0) == []
        assert rates.total(before, page_stats(page), 1.0).messages_in == 10


@pytest.mark.parametrize(
    ("lag", "half", "most"),
    [
        ([0, 0, 0], None, None),
        ([1, 0, 0], 1e-6, 1e-6),
        ([50, 50, 0], 1e-6, 2e-6),
        ([99, 1, 0], 1e-6, 1e-6),
        ([98, 2, 0], 1e-6, 2e-6),
        ([0, 0, 7], float("inf"), float("inf")),
    ],
)
def test_percentile_is_the_upper_end_of_its_bucket(lag, half, most):
    assert (percentile(lag, 0.5), percentile(lag, 0.99)) == (half, most)


@pytest.mark.parametrize("number", [0, 1, 999, 9999, 10_000, 999_949, 999_960, 1e12, 1e18, 2e30])
def test_counts_fit_their_column(number):
    assert len(rates.show_count(number)) <= 6


@pytest.mark.parametrize("seconds", [0, 1, 99.9, 100, 6000, 1e5, 3.6e5, 1e7, 1e9])
def test_durations_fit_their_column(seconds):
    assert len(rates.show_seconds(seconds)) <= 6


# ---- lines ----


class Clock:
    """Stands in for the module time of top.py: each sleep does the next thing."""

    def __init__(self, *things):
        self.now = 100.0
        self.things = list(things)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.things:
            self.things.pop(0)()


def test_lines_are_a_header_each_worker_and_a_total(monkeypatch, capsys):
    with page_of(workers=2, label="127.0.0.1:8888") as page:
        clock = Clock(
            lambda: count(page, 0, messages_in=24_680, open=3, busy_ns=int(1e9)),
            lambda: count(page, 1, bytes_out=5),
        )
        monkeypatch.setattr(pyloop.top, "time", clock)
        print_lines(ours(page), 2.0, 2, sys.stdout)
    headline, titles, *lines = capsys.readouterr().out.splitlines()
    assert headline.startswith(f"pyloop 127.0.0.1:8888, pid {os.getpid()}, up ")
    assert titles.split("  ")[0].strip() == "worker" and titles.endswith("running")
    assert [line.split()[0] for line in lines] == ["1", "2", "total"] * 2
    assert lines[0].split()[2:5] == ["ready", "3", "12.3k"] and "50%" in lines[0].split()
    assert lines[2].split()[2:6] == ["2", "alive", "3", "12.3k"]
    assert lines[4].split()[7] == "2" and lines[3].split()[4] == "0"
    assert {len(line) for line in (titles, *lines)} == {len(titles)}


def test_loop_that_hangs_is_pointed_out(monkeypatch, capsys):
    with page_of(workers=2) as page:
        page.cell(1).loop.running_since = page.header.since_ns - 3_000_000_000
        monkeypatch.setattr(pyloop.top, "time", Clock())
        print_lines(ours(page), 1.0, 1, sys.stdout)
    first, second, _ = capsys.readouterr().out.splitlines()[2:]
    assert first.split()[-1] == "-"
    assert second.split()[-1].startswith("3.")


def test_hostile_label_is_one_harmless_line(monkeypatch, capsys):
    with page_of(label="\x1b[2J[b]x\n\u202ey") as page:
        monkeypatch.setattr(pyloop.top, "time", Clock())
        print_lines(ours(page), 1.0, 1, sys.stdout)
    headline = capsys.readouterr().out.splitlines()[0]
    assert headline.startswith(r"pyloop \x1b[2J[b]x\n\u202ey, pid ")


def test_end_of_the_server_ends_it_with_status_0():
    with serving_process() as process:
        watching = subprocess.Popen([*TOP, str(process.pid)], stdout=subprocess.PIPE, text=True)
        with watching:
            assert watching.stdout.readline().startswith("pyloop a server, pid ")
            process.end()
            said = watching.stdout.read()
    assert said.splitlines()[-1] == f"the server has ended (pid {process.pid})"
    assert watching.returncode == 0


def watched_until(stop):
    """Start top, read its header, do `stop`, return its status and what it says on stderr."""
    with page_of() as page:
        pipe = subprocess.PIPE
        command = [*TOP, str(page.header.pid)]
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as watching:
            assert watching.stdout.readline().startswith("pyloop a server")
            stop(watching)
            said = watching.stderr.read()
    return watching.returncode, said


def test_control_c_ends_it_quietly():
    assert watched_until(lambda it: it.send_signal(signal.SIGINT)) == (0, "")


def test_reader_that_leaves_ends_it_quietly():
    assert watched_until(lambda it: it.stdout.close()) == (0, "")


# ---- the command line ----


def invoke(*arguments):
    return CliRunner().invoke(cli, arguments, prog_name="pyloop")


def test_count_ends_it():
    with page_of(workers=3) as page:
        done = invoke("top", str(page.header.pid), "--plain", "--interval", "0.1", "--count", "2")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) == 2 + 2 * 4


def test_target_that_is_not_there_ends_with_status_1():
    done = invoke("top", "--plain", ":1")
    assert (done.exit_code, done.output) == (1, "Error: nothing listens on :1\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nonsense", "--plain"], 'TARGET: expected "host:port"'),
        ([], "Missing argument 'TARGET'"),
        (["1", "--plain", "--interval", "0"], "'--interval': 0.0 is not in the range"),
        (["1", "--plain", "--count", "0"], "'--count': 0 is not in the range"),
        (["1"], "the live screen needs a terminal: use --plain"),
    ],
)
def test_wrong_usage_ends_with_status_2(arguments, error):
    done = invoke("top", *arguments)
    assert done.exit_code == 2
    assert error in done.output


def test_version_is_that_of_the_distribution():
    assert invoke("--version").output == "pyloop 0.1.0\n"


def test_missing_textual_names_the_extra(monkeypatch):
    for name in ("textual", "textual.app"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pyloop.screen")
    with pytest.raises(ExtraMissingError) as caught:
        top("1", plain=False, interval=1.0, count=None)
    expected = 'the live screen needs textual: pip install "pyloop-io[top]", or use --plain'
    assert str(caught.value) == expected


def test_missing_textual_ends_with_status_2_and_lines_need_none_of_it():
    program = "import sys; sys.modules['textual'] = None; from pyloop.__main__ import cli; cli()"
    controller, terminal = pty.openpty()
    try:
        with page_of() as page:
            command = [sys.executable, "-c", program, "top", str(page.header.pid)]
            done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True)
            assert done.returncode == 2
            assert done.stderr.splitlines()[-1].endswith('"pyloop-io[top]", or use --plain')
            plain = [*command, "--plain", "--count", "1", "--interval", "0.1"]
            assert subprocess.run(plain, stdout=subprocess.DEVNULL).returncode == 0
    finally:
        os.close(controller)
        os.close(terminal)


# ---- the screen ----


def on_screen(page, act, **options):
    """Run `await act(app, pilot)` on a screen that looks only when told to; return its result."""

    async def driven():
        app = Screen(ours(page), 3600.0, **options)
        async with app.run_test(size=(120, 30)) as pilot:
            await act(app, pilot)
        return app.return_value

    return asyncio.run(driven())


def table_of(app):
    table = app.query_one(DataTable)
    titles = [str(column.label).strip(" ▼") for column in table.ordered_columns]
    rows = [[str(cell) for cell in table.get_row_at(n)] for n in range(table.row_count)]
    return titles, rows


def figures(app):
    return {static.id: str(static.render()) for static in app.query(Static) if static.id}


def test_screen_shows_a_row_for_each_worker_and_totals():
    async def act(app, pilot):
        count(page, 1, messages_in=5_000_000, open=12, lag={4: 10})
        app.look()
        await pilot.pause()
        titles, rows = table_of(app)
        assert titles == [title for title, _ in COLUMNS]
        assert [row[0] for row in rows] == ["1", "2"]
        assert rows[1][3] == "12" and rows[1][9] == "16us" and rows[1][4].endswith(("k", "M"))
        shown = figures(app)
        assert shown["connections"].startswith("12\n")
        assert shown["headline"].startswith(f"pyloop [b]label, pid {os.getpid()}")
        assert len(app.query_one(Sparkline).data) == 2 and app.query_one(Sparkline).data[1] > 0

    with page_of(label="[b]label") as page:
        on_screen(page, act)


def test_worker_that_comes_or_goes_changes_the_rows():
    async def act(app, pilot):
        page.free(0)
        page.claim(2, 9)
        app.look()
        await pilot.pause()
        rows = table_of(app)[1]
        assert [(row[0], row[2]) for row in rows] == [("2", "ready"), ("9", "starting")]

    with page_of(cells=3) as page:
        on_screen(page, act)


def test_key_s_sorts_by_the_next_column():
    async def act(app, pilot):
        orders = {}
        for _ in range(8):
            table = app.query_one(DataTable)
            (by,) = [str(c.label)[:-1] for c in table.ordered_columns if "▼" in str(c.label)]
            orders[by] = [row[0] for row in table_of(app)[1]]
            await pilot.press("s")
        assert orders.pop("worker") == ["1", "2", "10"]
        assert orders.pop("conns") == ["2", "10", "1"]
        assert orders.pop("restarts") == ["10", "1", "2"]
        assert set(orders) == {"in/s", "busy", "p99", "running"}

    with page_of(cells=3) as page:
        start_worker(page, 2, 10)
        start_worker(page, 2, 10)
        count(page, 1, open=9)
        count(page, 2, open=5)
        on_screen(page, act)


def test_key_p_stops_and_goes_on():
    async def act(app, pilot):
        await pilot.press("p")
        count(page, 0, open=7)
        app.look()
        await pilot.pause()
        assert table_of(app)[1][0][3] == "0"
        assert figures(app)["headline"].endswith(", PAUSED")
        await pilot.press("p")
        app.look()
        await pilot.pause()
        assert table_of(app)[1][0][3] == "7"
        assert not figures(app)["headline"].endswith("PAUSED")

    with page_of() as page:
        on_screen(page, act)


def test_key_q_and_count_end_the_screen():
    async def press(app, pilot):
        await pilot.press("q")

    async def look(app, pilot):
        app.look()
        assert app.is_running
        app.look()

    with page_of() as page:
        assert on_screen(page, press) is None
        assert on_screen(page, look, count=2) is None


def test_end_of_the_server_ends_the_screen():
    async def act(app, pilot):
        page.close_fd()
        app.look()

    with page_of() as page:
        assert on_screen(page, act) == f"the server has ended (pid {os.getpid()})"


def test_nonsense_in_a_cell_is_shown():
    async def act(app, pilot):
        assert table_of(app)[1][0][:3] == ["4294967295", "-7", "77"]

    with page_of(workers=1) as page:
        cell = page.cell(0)
        cell.worker, cell.pid, cell.state = 0xFFFFFFFF, -7, 77
        for bucket in range(lib.PL_LAG_BUCKETS):
            cell.loop.lag[bucket] = (1 << 64) - 1
        on_screen(page, act)
