"""Four processes train in layouts as one process does; the whole table is ``python -m benchmarks.layouts``."""

from pathlib import Path

import pytest
import torch

from benchmarks.layouts import PROOFS, SHORT, Case, Result, Trained, all_cases, differences
from tests.processes import run_forked


@pytest.fixture(scope="module")
def table() -> list[str]:
    done = run_forked("benchmarks.layouts", "--short", "--devices", "4", cwd=Path(__file__).parents[2])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return lines


@pytest.mark.parametrize("case", SHORT, ids=Case.described)
def test_a_layout_trains_as_one_process(table: list[str], case: Case) -> None:
    (line,) = (line for line in table if line.startswith(case.described()))
    assert "| holds |" in line


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
    assert Result(SHORT[0], differences(ours, theirs), "", 0.0).holds is holds
    assert not Result(SHORT[0], None, "it did not start", 0.0).holds


def test_a_missing_weight_fails() -> None:
    theirs = Trained([1.0], {"a": torch.zeros(2)}, 3.0)
    assert not Result(SHORT[0], differences(Trained([1.0], {}, 3.0), theirs), "", 0.0).holds
