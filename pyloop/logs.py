"""Where the command's log goes: stderr, a line each, unless the program has set up its own."""

from __future__ import annotations

import logging
import sys

from pyloop.protocol import log

__all__ = ["LEVELS", "log_to_stderr"]

LEVELS = ("debug", "info", "warning", "error", "critical")
_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(message)s"


def log_to_stderr(level: str) -> None:
    """Write what the logger `pyloop` is told to stderr, from a level on.

    A program that has given that logger, or the root logger, a handler keeps what it has.
    """
    if log.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    log.addHandler(handler)
    log.setLevel(level.upper())
