"""The long run behind tests/test_fastpath_leaks.py: a million operations of each kind.

`make soak`, not part of `make test`. With and without the fast path: PYLOOP_FASTPATH=0.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from operations import OPERATIONS, growth

COUNT = int(os.environ.get("PYLOOP_SOAK_OPERATIONS", "1000000"))
NOISE = 60


@pytest.mark.timeout(0)
@pytest.mark.parametrize("backend", ["auto"], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
def test_a_million_operations_leave_no_memory_block(
    loop: Any, monkeypatch: pytest.MonkeyPatch, operation: Any
) -> None:
    for name in ("pyloop", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    operation(loop, 20_000)
    grown = growth(loop, operation, COUNT)
    print(f"\n{operation.__name__}: {grown:+d} blocks after {COUNT} operations")
    assert grown <= NOISE
