"""The ring's protocol, explored over all interleavings with a kill at any step (ring_model.py)."""

from __future__ import annotations

import pytest
from ring_model import RULES_THAT_FAIL, Fault, State, explore, start

# Small, and yet each rule that is broken shows in one of them.
SMALL = [
    start(putters=1, getters=1, each=2, kills=1),
    start(putters=2, getters=1, kills=1),
    start(putters=1, getters=1, each=2, shut=True, kills=1),
]
LARGER = [
    start(putters=1, getters=2, kills=1),
    start(putters=2, getters=1, shut=True, kills=1),
    start(putters=2, getters=2, kills=1),
]


@pytest.mark.parametrize("state", SMALL + LARGER, ids=range(len(SMALL + LARGER)))
def test_no_interleaving_breaks_the_protocol(state: State) -> None:
    assert explore(state) > 500


def fault_of(state: State, broken: str) -> str:
    try:
        explore(state, broken)
    except Fault as fault:
        return str(fault)
    return ""


@pytest.mark.parametrize("broken", RULES_THAT_FAIL)
def test_broken_rule_is_found_out(broken: str) -> None:
    faults = (fault_of(state, broken) for state in SMALL)
    assert " -> " in next(filter(None, faults), "none was found")


def test_fault_tells_the_way_to_it() -> None:
    with pytest.raises(Fault, match=r"GET hangs at WAIT: GET ENTER -> .* -> PUT RING killed"):
        explore(SMALL[0], "commit before the ring")
