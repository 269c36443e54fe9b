"""The live screen of `python -m pyloop top`, made with textual."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Sparkline, Static

from pyloop.finding import Found
from pyloop.rates import (
    COLUMNS,
    HUNG_SECONDS,
    Row,
    headline,
    rows,
    show_count,
    show_lag,
    texts,
    total,
)
from pyloop.stats import PageStats, page_stats

__all__ = ["Screen"]

_HISTORY = 240  # intervals in the sparkline
_BUSY = 0.9

# By what `s` sorts, in turn: a column, and a key that brings its largest up, but for "worker".
_ORDERS: tuple[tuple[str, Callable[[Row], Any]], ...] = (
    ("worker", lambda row: (0, int(row.worker))),
    ("conns", lambda row: -row.connections),
    ("in/s", lambda row: -row.messages_in),
    ("busy", lambda row: -row.busy),
    ("p99", lambda row: -(row.lag_p99 or 0)),
    ("restarts", lambda row: -row.restarts),
    ("running", lambda row: -row.running_seconds),
)


class Screen(App[str]):
    """Totals and a sparkline on top, a row for each worker below. `run` returns what to say last.

    Args:
        found: the server.
        interval: seconds from one look to the next.
        count: how many intervals; None for no end.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #headline { padding: 0 1; background: $primary; color: $text; text-style: bold; }
    #headline.paused { background: $warning; }
    #totals { height: auto; padding: 1 1 0 1; }
    .figure { width: 1fr; height: 2; }
    #rate { height: 4; padding: 1 1 0 1; }
    Sparkline { height: 3; }
    DataTable { height: 1fr; margin: 1 0 0 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("s", "sort", "Sort"),
        ("p", "pause", "Pause"),
    ]

    def __init__(self, found: Found, interval: float, count: int | None = None) -> None:
        super().__init__()
        self._found, self._every, self._left = found, interval, count
        self._before: tuple[PageStats, float] = page_stats(found.page), time.monotonic()
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._shown: list[Row] = []
        self._order = 0
        self._paused = False

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield Static(id="headline", markup=False)
        with Horizontal(id="totals"):
            for name in ("connections", "in", "out", "bytes", "busy", "lag"):
                yield Static(id=name, classes="figure")
        with Vertical(id="rate"):
            yield Sparkline(self._rates, id="messages")
        yield DataTable(cursor_type="none", zebra_stripes=True, cell_padding=0)
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self.title = "pyloop top"
        self._show(math.inf)
        self.set_interval(self._every, self.look)

    def look(self) -> None:
        """Take a snapshot and show what changed, unless paused."""
        if self._found.ended():
            self.exit(self._found.last_words())
        elif not self._paused:
            self._show(time.monotonic() - self._before[1])
            if self._left is not None:
                self._left -= 1
                if self._left <= 0:
                    self.exit()

    def _show(self, seconds: float) -> None:
        before, after = self._before[0], page_stats(self._found.page)
        self._before = after, time.monotonic()
        self._shown = rows(before, after, seconds)
        everything = total(before, after, seconds)
        self._rates.append(everything.messages_in + everything.messages_out)
        self._show_headline()
        self.query_one("#messages", Sparkline).data = list(self._rates)
        self._show_totals(everything)
        self._show_rows()

    def _show_headline(self) -> None:
        widget = self.query_one("#headline", Static)
        widget.update(headline(self._before[0]) + (", PAUSED" if self._paused else ""))
        widget.set_class(self._paused, "paused")

    def _show_totals(self, row: Row) -> None:
        traffic = f"{show_count(row.bytes_in)} / {show_count(row.bytes_out)}"
        lag = f"{show_lag(row.lag_p50)} / {show_lag(row.lag_p99)}"
        figures = {
            "connections": ("connections", show_count(row.connections)),
            "in": ("messages in/s", show_count(row.messages_in)),
            "out": ("messages out/s", show_count(row.messages_out)),
            "bytes": ("bytes/s in / out", traffic),
            "busy": (f"busy, {row.state}", f"{min(row.busy, 99.99):.0%}"),
            "lag": ("lag p50 / p99", lag),
        }
        for name, (title, value) in figures.items():
            text = Text.assemble((value, "bold"), "\n", (title, "dim"))
            self.query_one(f"#{name}", Static).update(text)

    def _show_rows(self) -> None:
        column, key = _ORDERS[self._order]
        table = self.query_one(DataTable)
        scrolled = table.scroll_y
        table.clear(columns=True)
        for title, width in COLUMNS:
            mark = "▼" if title == column else " "
            table.add_column(Text(title + mark, justify="right"), width=width + 1)
        for row in sorted(self._shown, key=key):
            table.add_row(*_cells(row))
        table.scroll_to(y=scrolled, animate=False)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._order = (self._order + 1) % len(_ORDERS)
        self._show_rows()

    def action_pause(self) -> None:
        """Stand still, or go on; what was missed is one long interval."""
        self._paused = not self._paused
        self._show_headline()


def _cells(row: Row) -> list[Text]:
    """Return a row of the table, with what needs a look in colour."""
    colours = {
        "state": {"ready": "green", "starting": "yellow", "leaving": "yellow"}.get(
            row.state, "red"
        ),
        "busy": "red" if row.busy > _BUSY else "",
        "running": "bold red" if row.running_seconds > HUNG_SECONDS else "",
        "restarts": "yellow" if row.restarts > 0 else "",
    }
    pairs = zip(texts(row), COLUMNS, strict=True)
    return [Text(text, colours.get(title, ""), justify="right") for text, (title, _) in pairs]
