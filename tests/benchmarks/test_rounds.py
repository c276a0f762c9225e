"""Rounds: everyone in each, the first thrown away, ratios of figures of one round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rounds import Spread, interleaved, ratio


def test_everyone_runs_in_each_round_in_an_order_that_turns() -> None:
    calls: list[str] = []

    def cost(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    measured = interleaved({"a": lambda: cost("a"), "b": lambda: cost("b")}, rounds=3)
    assert "".join(calls) == "baabbaab"
    assert measured == {"a": [3, 6, 7], "b": [4, 5, 8]}, "the figures of the first round count for nothing"


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    theirs, ours = [2.0, 4.0, 8.0], [1.0, 2.0, 4.0]
    assert ratio(theirs, ours) == Spread(2, 2, 2)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_spread(figures: list[float]) -> None:
    spread = Spread.of(figures)
    assert spread.least <= spread.median <= spread.most
    assert {spread.least, spread.most} <= set(figures)
    assert spread.scaled(1000).median == pytest.approx(1000 * spread.median)
