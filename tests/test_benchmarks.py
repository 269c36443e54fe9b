"""The benchmarks: their rows run, and the plot shows its data."""

from __future__ import annotations

import html
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import compile_load

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import http_wrk  # noqa: E402
import looptime  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import row as making  # noqa: E402
import rows  # noqa: E402
import spread  # noqa: E402
import tools  # noqa: E402

RUN_TIMEOUT = 110  # of a few seconds' work, on a machine that is busy


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


# ---- rows and targets ----


def scaling_samples(of_workers: float, of_processes: float) -> dict[str, report.Samples]:
    rates = {"one process": 10_000.0, "2 workers": of_workers, "2 processes": of_processes}
    return {
        name: {r: {"cost": 1e6 / rate, "messages_per_s": rate} for r in range(3)}
        for name, rate in rates.items()
    }


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (8_500.0, "target 2 workers >= 0.85x the messages per second of 2 processes: 0.85, met"),
        (
            6_800.0,
            "target 2 workers >= 0.85x the messages per second of 2 processes: 0.68, "
            "missed by 20.0 %",
        ),
    ],
)
def test_target_on_throughput_is_judged_by_messages_per_second(rate: float, said: str) -> None:
    row = rows.scaling_row()
    verdict = report.judge(row.targets[1], row, scaling_samples(rate, 10_000.0))
    assert report.verdict_text(verdict) == said


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (10.3, "target pyloop.Loop sock level with uvloop sock (>= 1): 0.971, missed by 2.9 %"),
        (5.0, "target pyloop.Loop sock level with uvloop sock (>= 1): 2, met"),
    ],
)
def test_target_to_be_level_is_judged_by_the_costs_of_the_same_round(
    cost: float, said: str
) -> None:
    row = next(row for row in rows.all_rows() if row.key == "asyncio-sock")
    samples = {
        "pyloop.Loop sock": {r: {"cost": cost * r} for r in (1, 2, 3)},
        "uvloop sock": {r: {"cost": 10.0 * r} for r in (1, 2, 3)},
    }
    verdict = report.judge(row.targets[0], row, samples)
    assert report.verdict_text(verdict) == said


def test_rows_of_make_bench_have_the_peers_of_their_targets() -> None:
    chosen = {row.key: row for row in rows.target_rows()}
    sizes = {f"asyncio-protocol-{size}" for size in ("1b", "100b", "1k", "10k", "100k", "1m")}
    assert {*sizes, "asyncio-writes16", "asyncio-sock", "idle-rss", "idle-rss-tls"} <= set(chosen)
    for row in chosen.values():
        names = {peer.name for peer in row.peers} | {making.FASTEST}
        assert all({target.peer, target.against or target.peer} <= names for target in row.targets)
    assert [peer.name for peer in chosen["loop-chain"].peers] == LOOPS
    assert chosen["asyncio-udp-100b"].floor == "asyncio udp"
    assert chosen["lines-64"].floor == making.FLOOR
    assert [peer.name for peer in chosen["asyncio-writes16"].peers] == [
        "pyloop.Loop writes16",
        "uvloop writes16",
    ]


def test_shortened_row_has_a_tenth_of_the_churn_for_every_peer() -> None:
    row = next(row for row in rows.model_rows() if row.key == "models-connection-10c")
    short = rows.shortened(row)
    for peer, shorter in zip(row.peers, short.peers, strict=True):
        assert short.load_for(shorter)["churn"] == row.load_for(peer)["churn"] // 10


def test_every_way_is_measured_at_each_number_of_connections() -> None:
    keys = {row.key for row in rows.all_rows()}
    for what in ("message", "connection"):
        assert {f"models-{what}-{n}c" for n in (10, 100, 1000)} <= keys
    assert "scaling-50us" in keys


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT)


def need(tool: str) -> None:
    if tools.Packages(sys.executable).lacks(tool):
        assert "PYLOOP_CI" not in os.environ, f"{tool} is missing"
        pytest.skip(f"needs {tool}: {tools.TOOLS[tool]}")


def measured(results: Path, keys: list[str], peers: str) -> list[dict[str, Any]]:
    """Return those rows of a short run, in which every peer was measured."""
    chosen = ("--rows", f"^({'|'.join(keys)})$", "--peers", peers, "--results", str(results))
    done = run("run.py", "--short", *chosen)
    assert done.returncode == 0, done.stderr
    found = json.loads((results / "latest.json").read_text())["rows"]
    assert [row["key"] for row in found] == keys
    peers_of_all = [peer for row in found for peer in row["peers"]]
    assert [peer["status"] for peer in peers_of_all] == ["ok"] * len(peers_of_all)
    assert all(peer["summary"]["median"] > 0 for peer in peers_of_all)
    return found


def test_short_run_measures_every_peer_that_is_built(tmp_path: Path, load: Path) -> None:
    wanted = "^(files-64k|models-connection-10c|scaling-50us)$"
    done = run("run.py", "--short", "--rows", wanted, "--results", str(tmp_path))
    assert done.returncode in (0, 3), done.stderr
    found = json.loads((tmp_path / "latest.json").read_text())["rows"]
    keys = [row["key"] for row in found]
    assert keys == ["files-64k", "models-connection-10c", "scaling-50us"]
    peers = [peer for row in found for peer in row["peers"]]
    absent = {peer["name"] for peer in peers if peer["status"] == "not built"}
    assert absent <= {"threads", "forks"} and bool(absent) == (done.returncode == 3)
    measured = [peer for peer in peers if peer["name"] not in absent]
    assert [peer["status"] for peer in measured] == ["ok"] * len(measured)
    assert all(peer["summary"]["median"] > 0 for peer in measured)
    assert all(verdict["met"] is not None for verdict in found[2]["targets"])


def test_every_kind_of_asyncio_server_is_measured(tmp_path: Path, load: Path) -> None:
    kinds = ["protocol-100b", "buffered", "streams", "writes16", "response2", "udp-100b"]
    keys = [*(f"asyncio-{kind}" for kind in kinds), "accept-close", "crowd"]
    found = measured(tmp_path, keys, "^(pyloop.Loop|asyncio protocol)")
    samples = [peer["samples"][0] for row in found for peer in row["peers"]]
    assert len(samples) == len(keys) + 7  # select, cffi alone, asyncio 3 times, two crowds
    assert all(sample["errors"] == 0 for sample in samples)
    assert all(verdict["met"] is not None for verdict in found[-1]["targets"][2:])


def test_servers_are_measured_over_tls(tmp_path: Path, load: Path) -> None:
    tools.compile_tools()
    need("load_tls")
    found = measured(tmp_path, ["asyncio-tls", "idle-rss-tls"], "^(pyloop|asyncio)")
    assert [len(row["peers"]) for row in found] == [3, 3]
    assert found[0]["targets"][1]["met"] is not None
    assert found[1]["targets"][0]["met"] is not None


# ---- loop times, and HTTP ----

LOOPS = ["pyloop", "uvloop", "rloop", "asyncio"]


def test_fastest_peer_is_the_cheapest_of_those_that_are_not_pyloop() -> None:
    row = next(row for row in rows.all_rows() if row.key == "loop-switch")
    costs = {"pyloop": 12.0, "pyloop, cffi alone": 5.0, "uvloop": 20.0, "rloop": 10.0}
    samples = {name: {r: {"cost": cost * r} for r in (1, 2, 3)} for name, cost in costs.items()}
    said = "target pyloop level with the fastest peer, rloop (>= 1): 0.833, missed by 16.7 %"
    assert report.verdict_text(report.judge(row.targets[0], row, samples)) == said
    samples["pyloop"] = {1: {"cost": 8.0}}
    said = "target pyloop level with the fastest peer, rloop (>= 1): 1.25, met"
    assert report.verdict_text(report.judge(row.targets[0], row, samples)) == said


def test_target_on_another_figure_than_cost_is_judged_by_it() -> None:
    row = rows.crowd_row()
    alone = {"cost": 1.0, "p99_us": 100.0}
    crowd = {"cost": 9.0, "p99_us": 120.0}
    samples = {"pyloop epoll": {0: alone}, "pyloop epoll, crowd": {0: crowd}}
    said = "target pyloop epoll, crowd <= 1.5x the p99_us of pyloop epoll: 1.2, met"
    assert report.verdict_text(report.judge(row.targets[1], row, samples)) == said


def test_rounds_left_out_of_a_median_are_told() -> None:
    row = next(row for row in rows.all_rows() if row.key == "loop-switch")
    quiet, disturbed = {"cost": 2.0, "disturbed": 0.0}, {"cost": 9.0, "disturbed": 0.5}
    samples = {"uvloop": {0: quiet, 1: quiet, 2: disturbed, 3: quiet}}
    table = report.row_markdown(report.row_result(row, samples, {}))
    assert "| uvloop | 2 | 2 | 3 of 4 | 1.00 |" in table


@pytest.mark.parametrize("work", looptime.WORKS)
@pytest.mark.parametrize("name", ["pyloop", "asyncio"])
def test_work_on_a_loop_runs_what_it_counts(
    monkeypatch: pytest.MonkeyPatch, name: str, work: str
) -> None:
    ran = []
    monkeypatch.setattr(looptime, "nothing", lambda *args: ran.append(args))
    for constant, value in {"TURNS": 50, "LIVE": 200, "FIRE_AFTER": 0.0}.items():
        monkeypatch.setattr(looptime, constant, value)
    loop = looptime.loop_factory(name, "auto")()
    try:
        counted = looptime.WORKS[work](loop)
    finally:
        loop.close()
    assert counted == {"chain": 50, "timers-fire": 200}.get(work, looptime.BATCH)
    callbacks = work in ("batch", "arguments", "threadsafe", "threadsafe-own")
    assert len(ran) == (counted if callbacks else 0)


def test_loops_are_measured_side_by_side(tmp_path: Path, load: Path) -> None:
    (chain, imports) = measured(tmp_path, ["loop-chain", "import"], "^(pyloop|asyncio)")
    names = ["pyloop", "pyloop, cffi alone", "asyncio"]
    assert [peer["name"] for peer in chain["peers"]] == names
    said = "pyloop level with the fastest peer, asyncio (>= 1)"
    assert [target["text"] for target in chain["targets"]] == [said]
    assert [peer["name"] for peer in imports["peers"]] == ["pyloop", "asyncio"]


WRK = """Running 1s test @ http://127.0.0.1:8000/
  Latency Distribution
     50%   49.05ms
     99%    1.50ms
  3034 requests in 1.04s, 391.10KB read
Requests/sec:   2916.98
"""


def test_text_of_wrk_is_read() -> None:
    found = http_wrk.parse(WRK)
    assert found == {"messages": 3034, "seconds": 1.04, "p99_us": 1500.0}
    assert http_wrk.parse(WRK.replace("1.50ms", "2.25s"))["p99_us"] == 2_250_000.0


def test_web_server_is_measured_by_wrk(tmp_path: Path, load: Path) -> None:
    need("wrk")
    (row,) = measured(tmp_path, ["http-httptools"], "on pyloop")
    (sample,) = row["peers"][0]["samples"]
    assert sample["messages"] > 0 and 0 < sample["busy"] < 2


def test_pyloop_is_measured_beside_another_build(tmp_path: Path, load: Path) -> None:
    chosen = ("--short", "--rows", "^asyncio-sock$", "--peers", "^(pyloop|asyncio)")
    done = run("run.py", *chosen, "--base", sys.executable, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "latest.json").read_text())["rows"]
    names = ["pyloop.Loop sock", "asyncio sock", "pyloop.Loop sock, base"]
    assert [(peer["name"], peer["status"]) for peer in row["peers"]] == [(n, "ok") for n in names]
    assert row["targets"][-1]["text"] == f"{names[0]} level with {names[2]} (>= 0.97)"
    assert row["targets"][-1]["met"] is not None


# ---- spread ----


def test_spread_holds_up_to_four_deviations() -> None:
    assert spread.Spread("tcp", (580, 420)).holds  # 4 sqrt(500) is 89.4
    assert not spread.Spread("tcp", (590, 410)).holds
    assert not spread.Spread("tcp", (250, 250, 314, 186)).holds  # 4 sqrt(250) is 63.2
    assert spread.Spread("tcp", (5, 0)).cells() == "| tcp | 2 | 2.5 | 6.3 | 2.5 | 5 0 | yes |"


def test_spread_counts_every_connection_of_every_worker(load: Path) -> None:
    done = run("spread.py", "--connections", "200", "--workers", "2")
    lines = done.stdout.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| tcp", "| unix"], done.stderr
    for line in lines:
        counts = [int(word) for word in line.split(" | ")[5].split()]
        assert len(counts) == 2 and sum(counts) == 200
    assert done.returncode == ("NO" in done.stdout)


# ---- timers, channels ----


def test_channels_are_measured_beside_every_peer(tmp_path: Path, load: Path) -> None:
    done = run("channels.py", "--short", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "channels.json").read_text())
    assert len(found["rates"]) == 6
    assert all(rates[0] > 0 for works in found["rates"].values() for rates in works.values())
    assert [type(target["met"]) for target in found["targets"]] == [bool, bool]


def test_timers_are_measured_on_every_backend_beside_the_kernel(tmp_path: Path) -> None:
    done = run("timers.py", "--short", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "timers.json").read_text())
    backends = {"pyloop select", "pyloop poll", "pyloop epoll"}
    assert {"clock_nanosleep", "asyncio", *backends} <= set(found["median_ms"])
    assert all(found["median_ms"][name] > 0 for name in backends)
    assert len(found["targets"]) == 3 and done.stdout.count("- target pyloop ") == 3


# ---- the plot ----

DATA = json.loads((ROOT / "docs" / "models.json").read_text())
PICTURE = (ROOT / "docs" / "models.svg").read_text()


@pytest.mark.parametrize("panel", ["message", "connection"])
def test_picture_shows_the_committed_costs(panel: str) -> None:
    texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", PICTURE)]
    for way, line in DATA[panel].items():
        if line:
            labels = [text for text in texts if re.fullmatch(re.escape(way) + r" [\d.,]+", text)]
            costs = [float(label.rpartition(" ")[2].replace(",", "")) for label in labels]
            last = line[max(line, key=int)]
            assert pytest.approx(last, rel=0.06) in costs, way


def needs_the_matplotlib_of_the_picture() -> None:
    drawn_by = re.search(r"Matplotlib v([\d.]+)", PICTURE)
    assert drawn_by
    try:
        found = importlib.metadata.version("matplotlib")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs matplotlib (make bench-models installs it)")
    if found != drawn_by[1]:
        pytest.skip(f"matplotlib {found} draws otherwise than {drawn_by[1]}")


def test_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    needs_the_matplotlib_of_the_picture()
    (tmp_path / "models.json").write_text(json.dumps(DATA))
    done = run("plot.py", "--redraw", "--into", str(tmp_path))
    assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / "models.svg").read_text() == PICTURE
    assert json.loads((tmp_path / "models.json").read_text()) == DATA


def test_short_run_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text(json.dumps({"run": {"short": True}}))
    done = run("plot.py", str(tmp_path / "short.json"), "--into", str(tmp_path))
    said = "plot: a --short run is to try rows out, not to draw\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not (tmp_path / "models.svg").exists()


def test_labels_are_moved_apart_and_no_further_than_needed() -> None:
    assert plot.spread_out([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    places = plot.spread_out([0.1, 0.48, 0.50, 0.52, 0.58], 0.1)
    assert places[0] == 0.1
    assert [b - a for a, b in itertools.pairwise(places[1:])] == pytest.approx([0.1] * 3)
    assert sum(places[1:]) == pytest.approx(0.48 + 0.50 + 0.52 + 0.58)


def test_bus_is_measured_for_each_number_of_subscribers() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bus.py"), "100"],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in figures] == [[b, n] for b in ("64", "4096") for n in "124"]
    assert all(float(cell.replace(",", "")) > 0 for row in figures for cell in row)
