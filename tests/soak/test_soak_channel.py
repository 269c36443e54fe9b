"""The long run behind tests/test_channel_kill.py: 1,000 kills of each kind, and as many as
PYLOOP_SOAK_SECONDS allows.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from channels import Maker
from test_channel_kill import kill_rounds

ROUNDS = int(os.environ.get("PYLOOP_SOAK_ROUNDS", "1000"))
SECONDS = float(os.environ.get("PYLOOP_SOAK_SECONDS", "0"))
BATCH = 50


@pytest.mark.timeout(0)
@pytest.mark.parametrize("named", [False, True], ids=["nameless", "named"])
def test_soak_of_killed_putters_and_getters(named: bool) -> None:
    maker, end = Maker(named), time.monotonic() + SECONDS
    rounds = put = lost = 0
    while rounds < ROUNDS or time.monotonic() < end:
        more = kill_rounds(maker(1 << (10 + rounds // BATCH % 7), 512), BATCH)
        rounds, put, lost = rounds + BATCH, put + more[0], lost + more[1]
        maker.close()
    print(f"\n{rounds} kills, {put} messages put, {lost} lost in the hands of killed getters")
