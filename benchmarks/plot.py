"""Draw docs/models.svg, the cost of serving in each way: `python benchmarks/plot.py`.

It takes the medians of the models-* rows out of results/latest.json, keeps them in
docs/models.json, and draws them; --redraw draws what docs/models.json has. The same data and
the same matplotlib make the same file. Exit status: 0 drawn, 1 drawn but something was not
measured, 2 there is nothing to draw, or nothing to draw with.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tools
from row import FLOOR, WAYS_AT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = tools.ROOT / "docs"
DATA, PICTURE = "models.json", "models.svg"
LATEST = tools.HERE / "results" / "latest.json"

COLOURS = {  # they are read on white and on black
    "forks": "#d9534f",
    "threads": "#c98a1b",
    "workers, coroutines": "#8f7ee7",
    "workers": "#2e9e6b",
    "loop": "#3b8eea",
    FLOOR: "#8a8f98",
}
GREY = "#8a8f98"
PANELS = {
    "message": "CPU time of a message, µs",
    "connection": "CPU time of a connection, µs",
}
LABEL_GAP = 0.052  # of a panel's height, from one label to the next

Costs = dict[str, dict[str, float]]  # way: connections: microseconds


def extract(document: dict) -> dict:
    """Return what the picture needs out of a results file. Raises ValueError: not such a one."""
    if document["run"]["short"]:
        raise ValueError("a --short run is to try rows out, not to draw")
    machine = document["machine"]
    data: dict = {
        "date": machine["date"][:10],
        "machine": f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
        "rounds": document["run"]["rounds"],
        **{panel: {way: {} for way in COLOURS} for panel in PANELS},
    }
    for row in document["rows"]:
        if key := re.fullmatch(r"models-(\w+)-(\d+)c", row["key"]):
            for peer in row["peers"]:
                if "summary" in peer:
                    cost = float(f"{peer['summary']['median']:.4g}")
                    data[key[1]][peer["name"]][key[2]] = cost
    return data


def gaps(data: dict) -> list[str]:
    """Name what was not measured."""
    return [
        f"{panel}, {way}, {connections} connections"
        for panel in PANELS
        for way in COLOURS
        for connections in WAYS_AT
        if str(connections) not in data[panel][way]
    ]


def shown(microseconds: float) -> str:
    """A cost as the labels have it: at least two digits."""
    digits = max(0, 1 - math.floor(math.log10(microseconds)))
    return f"{round(microseconds, digits):,.{digits}f}"


def last_points(costs: Costs) -> dict[str, tuple[int, float]]:
    """The way, and where its line ends."""
    ends = {way: max(map(int, line)) for way, line in costs.items() if line}
    return {way: (x, costs[way][str(x)]) for way, x in ends.items()}


def spread_out(places: list[float], gap: float) -> list[float]:
    """Move places, which rise, so that neighbours are `gap` apart and the whole moves little."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while (
            len(groups) > 1
            and middle(groups[-1]) - middle(groups[-2])
            < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        middle(group) + gap * (i - (len(group) - 1) / 2)
        for group in groups
        for i in range(len(group))
    ]


def middle(group: list[float]) -> float:
    return sum(group) / len(group)


def draw_panel(axes: Axes, costs: Costs, title: str) -> None:
    """Draw one line for each way, with its name where it ends."""
    values = [cost for line in costs.values() for cost in line.values()]
    low, high = min(values) / 1.6, max(values) * 1.6
    axes.set(xscale="log", yscale="log", xlim=(8, 1250), ylim=(low, high))
    axes.set_title(title, loc="left", color=GREY, fontsize=11)
    axes.set_xlabel("connections at once", color=GREY)
    axes.set_xticks(WAYS_AT, [f"{n:,}" for n in WAYS_AT])
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.tick_params(colors=GREY, length=0)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.spines[:].set_visible(False)
    for way, line in costs.items():
        style = {"dashes": (4, 3), "linewidth": 1.4} if way == FLOOR else {"linewidth": 2.2}
        points = sorted((int(x), y) for x, y in line.items())
        axes.plot(*zip(*points, strict=True), color=COLOURS[way], marker="o", ms=4, **style)
    ends = sorted(last_points(costs).items(), key=lambda item: item[1][1])
    height = math.log(high / low)
    places = spread_out([math.log(y / low) / height for _, (_, y) in ends], LABEL_GAP)
    for (way, (_, cost)), place in zip(ends, places, strict=True):
        where = {"xy": (1.0, place), "xycoords": "axes fraction", "va": "center"}
        axes.annotate(f"{way} {shown(cost)}", color=COLOURS[way], fontsize=10, **where)


def draw(data: dict) -> str:
    """Return the picture as SVG. Raises ImportError: no matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "pyloop", "svg.fonttype": "none", "axes.axisbelow": True}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}):
        figure = Figure(figsize=(10.6, 4.4))
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.05, right=0.84, bottom=0.13, top=0.91, wspace=0.66)
        for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
            axes.patch.set_alpha(0)
            draw_panel(axes, {way: line for way, line in data[panel].items() if line}, title)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def read(path: Path, redraw: bool) -> dict:
    """Return the data to draw. Raises OSError, ValueError: there is none."""
    document = json.loads(path.read_text())
    data = document if redraw else extract(document)
    for panel in PANELS:
        if not any(data[panel].values()):
            raise ValueError(f"{path.name} has no models-{panel}-* rows: make bench-models")
    return data


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=LATEST, help="a results file")
    text = "draw docs/models.json again, whatever the results are"
    parser.add_argument("--redraw", action="store_true", help=text)
    text = "directory of models.json and models.svg (docs)"
    parser.add_argument("--into", type=Path, default=DOCS, metavar="DIR", help=text)
    args = parser.parse_args(argv)
    try:
        data = read(args.into / DATA if args.redraw else args.results, args.redraw)
        picture = draw(data)
    except (OSError, ValueError, ImportError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    (args.into / DATA).write_text(json.dumps(data, indent=1) + "\n")
    (args.into / PICTURE).write_text(picture)
    for gap in gaps(data):
        print(f"plot: not measured: {gap}", file=sys.stderr)
    return 1 if gaps(data) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
