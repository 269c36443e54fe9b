"""The page for people, in headless Chromium: it draws what the server counts."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from pages import count, page_of

import pyloop
from pyloop import metrics
from pyloop.metrics import MetricsServer, snapshot

CHROMIUM = shutil.which("chromium")
HTML = files("pyloop").joinpath("metrics.html").read_text()
LABEL = "<img src=x onerror=alert(1)>&amp;"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=6000",
    "--dump-dom",
]


class Dom(HTMLParser):
    """What the test asks of a page: texts by id, rows of the table, points of each series."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.rows, self.series, self.images = {}, {}, {}, 0
        self._row = self._text = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.images += tag == "img"
        if "data-worker" in named:
            self._row = self.rows[named["data-worker"]] = []
        if "data-key" in named:
            self.series[named["data-key"]] = re.findall(r"[\d.]+,[\d.]+", named["d"])
        if "id" in named:
            self._text = self.texts[named["id"]] = []

    def handle_endtag(self, tag):
        if tag == "tr":
            self._row = None
        if tag in ("h1", "span"):
            self._text = None

    def handle_data(self, data):
        for place in (self._row, self._text):
            if place is not None and data.strip():
                place.append(data.strip())


async def loaded(url, profile):
    """Return the page as it is after some seconds of the browser's own time."""
    assert CHROMIUM, "chromium is missing"
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.skipif(
    CHROMIUM is None and "PYLOOP_CI" not in os.environ, reason="chromium is not installed"
)
def test_browser_shows_the_workers_and_draws_the_counters(tmp_path, monkeypatch):
    def counting_snapshot(page):
        count(page, 0, messages_in=100, messages_out=50, bytes_in=64, busy_ns=10**6, lag={7: 9})
        count(page, 1, messages_in=1, lag={3: 1})
        return snapshot(page)

    monkeypatch.setattr(metrics, "snapshot", counting_snapshot)
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)

    async def main():
        with page_of(workers=2, cells=3, label=LABEL) as page:
            page.cell(1).loop.running_since = page.header.since_ns - 5_000_000_000
            count(page, 0, open=12)
            server = MetricsServer("127.0.0.1:0", page)
            await server.start()
            try:
                return Dom(await loaded(server.url, tmp_path / "profile"))
            finally:
                await server.stop()

    dom = pyloop.run(main())
    assert dom.texts["label"] == [LABEL] and dom.images == 0
    assert dom.texts["about"][0].startswith(f"pid {os.getpid()}, up ")
    assert dom.texts["link"] == ["live"]
    assert list(dom.rows) == ["1", "2"]
    first, second = dom.rows["1"], dom.rows["2"]
    assert first[:4] == ["1", str(os.getpid()), "ready", "12"]
    assert first[7] == "< 128 µs" and first[8].endswith(" MiB")
    assert re.fullmatch(r"ready, one turn for \d.* s", second[2])
    drawn = {key: len(points) for key, points in dom.series.items()}
    keys = ("in", "out", "received", "sent", "open", "accepted", "busy", "p50", "p99", "rss")
    assert set(drawn) == set(keys)
    assert all(points > 1 for points in drawn.values())


def test_page_asks_nobody_but_its_own_server():
    assert re.findall(r"https?://[^\"' ]+", HTML) == ["http://www.w3.org/2000/svg"]
    assert "innerHTML" not in HTML and "document.write" not in HTML
    assert re.findall(r"\b(?:src|href)=\"([^\"]*)\"", HTML) == ["data:,"]
