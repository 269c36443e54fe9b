"""From samples to medians, ratios, verdicts, and what a reader sees of them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import measure
import tools
from row import FASTEST, Row, Target

RESULTS = tools.HERE / "results"
UNITS = {"B": "bytes", "ns/operation": "ns CPU/operation", "ms/import": "ms CPU/import"}
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

METHOD = {
    "cost": "server CPU time (user + system, all threads) / work done in the window; of servers "
    "in several processes, the sum over all of them, those that were reaped included",
    "clock": "the server's process CPU clock (clock_getcpuclockid, ns): the same counter as "
    "/proc/PID/schedstat, summed over threads and brought up to date at the reading; read by "
    "the load generator at both ends of the window, together with its message counter",
    "ratio": "to the floor's sample of the same round; then the median over the rounds",
    "order": "peers interleaved: every round runs each peer once, starting one further on",
    "disturbed": "share of the window in which server or generator were ready to run but other "
    "work had their CPU (/proc/PID/schedstat); above 0.03 the sample is taken "
    "again, and it is left out of medians and ratios where three undisturbed ones remain; for "
    "servers of several threads or processes: the share of the CPUs of server and generator that "
    "others used (idle time of /proc/stat)",
    "process": "a fresh server process per sample",
    "rss": "Rss of /proc/PID/smaps_rollup with N connections held, less before them, / N; "
    "20 connections came and went first; the kernel's socket memory is not in it",
    "loops": "rows loop-* and import: what the process itself used (process_time, all threads) / "
    "operations in the window",
    "http": "the server's CPU clock before and after wrk / the requests that wrk counted",
    "sizes": "bytes on the wire, terminator or prefix included",
}


Samples = dict[int, dict[str, float]]  # by round


def quiet(samples: Samples) -> Samples:
    """Return the undisturbed samples where there are at least three, else all."""
    kept = {r: s for r, s in samples.items() if s.get("disturbed", 0) <= measure.DISTURBED}
    return kept if len(kept) >= 3 else samples


def _values(samples: Samples, key: str = "cost") -> dict[int, float]:
    return {r: s[key] for r, s in quiet(samples).items() if key in s}


def ratios(ours: dict[int, float], others: dict[int, float]) -> list[float]:
    """Return ours / others for the rounds that have both; without any, of the medians."""
    common = [ours[r] / others[r] for r in ours if others.get(r)]
    if common or not ours or not others:
        return common
    return [statistics.median(ours.values()) / statistics.median(others.values())]


def opponent(name: str, row: Row, samples: dict[str, Samples]) -> str:
    """Return `name`, or which peer the fastest one is."""
    if name != FASTEST:
        return name
    others = [peer.name for peer in row.peers if not peer.ours and samples.get(peer.name)]
    medians = {other: statistics.median(_values(samples[other]).values()) for other in others}
    return min(medians, key=medians.__getitem__, default=name)


def summarise(samples: Samples, floor: dict[int, float]) -> dict[str, float]:
    """Reduce one peer's samples (by round) to what the tables show."""
    costs = _values(samples)
    out = {"median": statistics.median(costs.values()), "best": min(costs.values())}
    out["rounds"], out["taken"] = len(costs), len(samples)
    quotients = ratios(costs, floor)
    if quotients:
        out["ratio"] = statistics.median(quotients)
        out["ratio_low"], out["ratio_high"] = min(quotients), max(quotients)
    for key in ("messages_per_s", "p50_us", "p99_us", "busy"):
        if values := _values(samples, key):
            out[key] = statistics.median(values.values())
    return out


def judge(target: Target, row: Row, samples: dict[str, Samples]) -> dict[str, object]:
    """Say in words what a target asks, what came out, and whether it is met."""
    limit = target.at_most or target.ahead or target.at_least
    against = target.against and opponent(target.against, row, samples)
    named = f"{FASTEST}, {against}" if target.against == FASTEST else against
    if target.figure != "cost":
        text = f"{target.peer} <= {limit:g}x the {target.figure} of {named}"
    elif target.at_least:
        text = f"{target.peer} >= {limit:g}x the messages per second of {named}"
    elif target.ahead and target.ahead <= 1:
        text = f"{target.peer} level with {named} (>= {limit:g})"
    elif target.against:
        sign, word = ("<=", "x") if target.at_most else (">=", "x ahead of")
        text = f"{target.peer} {sign} {limit:g}{word} {named}"
    else:
        text = f"{target.peer} <= {limit:g} {row.unit}"
    verdict: dict[str, object] = {"text": text, "limit": limit, "value": None, "met": None}
    key = "messages_per_s" if target.at_least else target.figure
    ours = _values(samples.get(target.peer, {}), key)
    others = _values(samples.get(against or target.peer, {}), key)
    if not ours or not others:
        return verdict
    if target.against is None:
        value = statistics.median(ours.values())
    elif target.ahead:
        value = statistics.median(ratios(others, ours))
    else:
        value = statistics.median(ratios(ours, others))
    met = value <= limit if target.at_most else value >= limit
    return {**verdict, "value": value, "met": met}


def verdict_text(verdict: dict[str, object]) -> str:
    """One line: the target, the figure, met or missed by how much."""
    value, limit = verdict["value"], verdict["limit"]
    if value is None:
        return f"target {verdict['text']}: not measured"
    if verdict["met"]:
        return f"target {verdict['text']}: {value:.3g}, met"
    missed = abs(value / limit - 1) * 100
    return f"target {verdict['text']}: {value:.3g}, missed by {missed:.1f} %"


def row_result(row: Row, samples: dict[str, Samples], absent: dict[str, str]) -> dict[str, object]:
    """Return everything about a row that the JSON file keeps."""
    floor = _values(samples.get(opponent(row.floor or "", row, samples), {}))
    peers = []
    for peer in row.peers:
        entry: dict[str, object] = {"name": peer.name}
        if peer.name in absent:
            entry["status"] = absent[peer.name]
        if samples.get(peer.name):
            entry.setdefault("status", "ok")
            entry["summary"] = summarise(samples[peer.name], floor)
            entry["samples"] = [{"round": r, **s} for r, s in samples[peer.name].items()]
        peers.append(entry)
    return {
        "key": row.key,
        "title": row.title,
        "unit": row.unit,
        "floor": row.floor,
        "load": row.load,
        "peers": peers,
        "targets": [judge(target, row, samples) for target in row.targets],
    }


def _figures(s: dict[str, float]) -> tuple[str, ...]:
    ratio = spread = "-"
    if "ratio" in s:
        ratio = f"{s['ratio']:.2f}"
        spread = f"{s['ratio_low']:.2f}-{s['ratio_high']:.2f}"
    per_s = f"{s['messages_per_s']:,.0f}" if "messages_per_s" in s else "-"
    p99 = f"{s['p99_us']:,.0f}" if "p99_us" in s else "-"
    busy = f"{s['busy'] * 100:.0f} %" if "busy" in s else "-"
    rounds = f"{s['rounds']}" if s["rounds"] == s["taken"] else f"{s['rounds']} of {s['taken']}"
    return f"{s['median']:.4g}", f"{s['best']:.4g}", rounds, ratio, spread, per_s, p99, busy


def row_markdown(result: dict[str, object]) -> str:
    """Return one row as a Markdown table with its targets below."""
    unit = UNITS.get(result["unit"], result["unit"].replace("us", "µs CPU"))
    heads = ["server", f"{unit}, median", "best", "rounds"]
    if result["floor"]:
        heads += [f"x {result['floor']}", "spread", "per s", "p99 µs", "busy"]
    lines = [f"### {result['title']}", "", f"| {' | '.join(heads)} |"]
    lines.append("|---" + "|--:" * (len(heads) - 1) + "|")
    for peer in result["peers"]:
        name, status = peer["name"], peer.get("status", "not run")
        cells = (status, *[""] * len(heads))
        if "summary" in peer:
            cells = _figures(peer["summary"])
            name += "" if status == "ok" else f" ({status})"
        lines.append(f"| {' | '.join([name, *cells][: len(heads)])} |")
    lines.append("")
    lines += [f"- {verdict_text(v)}" for v in result["targets"]]
    return "\n".join(lines).rstrip() + "\n"


def markdown(document: dict[str, object]) -> str:
    """Return the whole run as Markdown."""
    machine = document["machine"]
    versions = [f"{k} {v}" for k, v in machine["packages"].items() if v and "." not in k]
    run = document["run"]
    head = (
        f"Server CPU time per message, as a ratio to another server in the same run (a plain C "
        f"echo, or the one that the column names): "
        f"{run['rounds']} rounds, windows of {run['seconds']:g} s, peers interleaved, server and "
        f"generator on CPUs {machine['server_cpu']} and {machine['generator_cpu']}. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']} {machine['kernel']}, "
        f"Python {machine['python']}, {', '.join(versions)}. {machine['date']}."
    )
    if machine["server_cpu"] == machine["generator_cpu"]:
        head += " **Server and generator shared one CPU: the figures are not comparable.**"
    samples = [s for row in document["rows"] for p in row["peers"] for s in p.get("samples", ())]
    if noisy := sum(s.get("disturbed", 0) > measure.DISTURBED for s in samples):
        head += f" {noisy} of {len(samples)} samples were disturbed by other work on the machine."
    if run["interrupted"]:
        head += " **The run was interrupted.**"
    return "\n".join([head, "", *(row_markdown(row) for row in document["rows"])])


def write(document: dict[str, object], directory: Path) -> None:
    """Write latest.json and latest.md."""
    directory.mkdir(exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(document, indent=1) + "\n")
    text = "# pyloop benchmarks\n\nHow to read this: docs/benchmarks.md\n\n" + markdown(document)
    (directory / "latest.md").write_text(text)


def fill_readme(document: dict[str, object], readme: Path) -> str | None:
    """Put the tables between the README's markers. What is wrong, or None."""
    if not readme.exists():
        return f"{readme.name} does not exist"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return f"{readme.name} has no {BEGIN} ... {END}"
    readme.write_text(f"{before}{BEGIN}\n{markdown(document)}{END}{after}")
    return None
