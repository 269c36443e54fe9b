"""`python -m pyloop top`: what the processes of a server do, as lines or on a live screen.

All is read from the server's page; the server itself is not asked and does not notice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from pyloop.errors import ExtraMissingError
from pyloop.finding import Found, find
from pyloop.rates import COLUMNS, headline, rows, texts, total
from pyloop.stats import page_stats

__all__ = ["print_lines", "top"]


def top(target: str, *, plain: bool, interval: float, count: int | None) -> None:
    """Show a server until it ends, until `count` intervals are over, or until Ctrl-C.

    Args:
        target: see finding.find.
        plain: lines on standard output; else the live screen.
        interval: seconds from one look to the next.
        count: how many intervals; None for no end.

    Raises:
        ExtraMissingError: the live screen is wanted, and textual is not installed.
        NotFoundError, ValueError: see finding.find.
    """
    if plain:
        _quietly(find(target), interval, count)
        return
    try:
        from pyloop.screen import Screen
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in ("textual", "rich"):
            raise
        raise ExtraMissingError(
            'the live screen needs textual: pip install "pyloop-io[top]", or use --plain'
        ) from None
    message = Screen(find(target), interval, count).run()
    if message:
        print(message)


def _quietly(found: Found, interval: float, count: int | None) -> None:
    """Print lines; Ctrl-C and a reader that has gone are ordinary ends."""
    try:
        print_lines(found, interval, count, sys.stdout)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is still buffered would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_lines(found: Found, interval: float, count: int | None, out: TextIO) -> None:
    """Print a header, then after each interval one line per worker and one for all."""
    before, at = page_stats(found.page), time.monotonic()
    print(headline(before), file=out)
    print(_aligned([title for title, _ in COLUMNS]), file=out, flush=True)
    while count is None or count > 0:
        time.sleep(interval)
        after, now = page_stats(found.page), time.monotonic()
        seconds = now - at
        for row in (*rows(before, after, seconds), total(before, after, seconds)):
            print(_aligned(texts(row)), file=out)
        out.flush()
        if found.ended():
            print(found.last_words(), file=out, flush=True)
            return
        before, at = after, now
        count = None if count is None else count - 1


def _aligned(texts: Sequence[str]) -> str:
    pairs = zip(texts, COLUMNS, strict=True)
    return " ".join(text.rjust(width) for text, (_, width) in pairs)
