"""Processes train in layouts as one does, also from checkpoints; all of it: ``python -m benchmarks.layouts``."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.layout_cases import PROOFS, SHORT, LayoutCase, Proof, all_cases
from benchmarks.layout_checkpoints import LAYOUTS, Pair, all_pairs, devices, short_pairs
from benchmarks.layout_training import LayoutResult, Trained, differences, results_of
from tests.processes import run_forked


@pytest.fixture(scope="module")
def table() -> list[str]:
    done = run_forked("benchmarks.layouts", "--short", cwd=Path(__file__).parents[2])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return lines


@pytest.mark.parametrize("case", SHORT, ids=LayoutCase.described)
def test_a_layout_trains_as_one_process(table: list[str], case: LayoutCase) -> None:
    (line,) = (line for line in table if line.startswith(case.described()))
    assert "| holds |" in line


@pytest.mark.parametrize("pair", short_pairs(), ids=Pair.described)
def test_a_layout_resumes_what_another_has_saved(table: list[str], pair: Pair) -> None:
    (line,) = (line for line in table if line.startswith(pair.described()))
    assert "| holds |" in line


def test_every_layout_saves_and_loads() -> None:
    pairs = all_pairs()
    assert {pair.saved for pair in pairs} == {pair.loaded for pair in pairs} == set(LAYOUTS)
    small = [name for name in LAYOUTS if devices(name) < 4]
    assert {(pair.saved, pair.loaded) for pair in pairs if pair.model == "mixture"} >= set(product(small, small))
    assert set(short_pairs()) <= set(pairs)


def test_every_layout_and_every_proof_is_in_the_whole_table() -> None:
    cases = all_cases()
    assert {case.proof for case in cases} == set(PROOFS)
    assert {case.made().devices for case in cases} == {2, 4}
    assert all(any(case.layout == each.layout for each in cases) for case in SHORT)


@pytest.mark.parametrize(("wrong", "holds"), [("losses", False), ("weights", False), ("validation", False), ("", True)])
def test_a_difference_fails(wrong: str, holds: bool) -> None:
    theirs = Trained([1.0, 2.0], {"a": torch.zeros(2), "b": torch.ones(1)}, 3.0)
    ours = Trained([1.0, 2.0], {"a": torch.zeros(2), "b": torch.ones(1)}, 3.0)
    if wrong == "losses":
        ours.losses[1] += 1e-9
    elif wrong == "weights":
        ours.weights["a"] = torch.tensor([0.0, 1e-9], dtype=torch.float64)
    elif wrong == "validation":
        ours = Trained(ours.losses, ours.weights, 3.0 + 1e-9)
    assert LayoutResult(SHORT[0], differences(ours, theirs), "", 0.0).holds is holds
    assert not LayoutResult(SHORT[0], None, "it did not start", 0.0).holds


def test_a_missing_weight_fails() -> None:
    theirs = Trained([1.0], {"a": torch.zeros(2)}, 3.0)
    assert not LayoutResult(SHORT[0], differences(Trained([1.0], {}, 3.0), theirs), "", 0.0).holds


@dataclass(frozen=True)
class Failing:
    """A case in which one of the processes fails."""

    is_first: bool | None
    proved: Proof = SHORT[0].proved

    def described(self) -> str:
        return "failing"

    def differ(self, is_first: bool) -> list[float]:
        if is_first is self.is_first:
            raise ValueError("broken")
        return [0.0, 0.0, 0.0] if is_first else []


def test_a_case_in_which_any_process_fails_does_not_hold() -> None:
    results = results_of([Failing(True), Failing(False), Failing(None)], 2)
    assert [result.holds for result in results] == [False, False, True]
    assert [result.error for result in results] == ["ValueError: broken", "ValueError: broken", ""]
