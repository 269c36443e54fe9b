"""A million wakes from eight threads, on each backend: `make soak`. None is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_turn import wakes_arrive

import pyloop


@pytest.mark.timeout(0)
def test_a_million_wakes_of_eight_threads_arrive(loop: pyloop.Loop) -> None:
    wakes_arrive(loop, threads=8, each=125_000)
