"""The door to the fast path: C-API twins of the hottest objects, on CPython.

`fastpath` is the module pyloop._fastpath, or None: not built, not CPython, or switched off by
PYLOOP_FASTPATH=0. Then the Python classes beside which each of its types stands serve alone.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TypeVar

from pyloop.core import address_of, address_of_loop, ffi, lib

__all__ = ["fastpath", "own", "why_not"]

_Class = TypeVar("_Class", bound=type)

fastpath: Any = None
why_not: str | None = None
"""Why there is no fast path, for people."""


def _load() -> Any:
    if sys.implementation.name != "cpython":
        raise ImportError("only CPython has it")
    try:
        import pyloop._fastpath as found
    except ModuleNotFoundError:
        raise ImportError("pyloop._fastpath is not in this installation") from None
    found.connect(address_of(lib.pl_api()))
    found.use_core(ffi.NULL, address_of_loop)
    return found


_wanted = os.environ.get("PYLOOP_FASTPATH", "")
if _wanted not in ("", "0", "1"):
    raise ValueError(f"PYLOOP_FASTPATH={_wanted!r}: expected 0 (do without), 1 (insist) or nothing")
if _wanted == "0":
    why_not = "PYLOOP_FASTPATH=0"
else:
    try:
        fastpath = _load()
    except ImportError as exc:
        why_not = str(exc)
        if _wanted:
            raise ImportError(f"PYLOOP_FASTPATH=1, but there is no fast path: {why_not}") from None


def own(cls: _Class) -> _Class:
    """Have CPython call what a class inherits from the fast path as if it were the class's own."""
    if fastpath is not None:
        fastpath.own(cls)
    return cls
