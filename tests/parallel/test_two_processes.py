"""Two processes compute what one does: every variant of a model in each layout, each collective, a gradient's norm."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_forked

CANNOT = (
    "attention delta_net",
    "attention latent",
    "attention joint_norm",
    "n_kv_head 1",
    "layer_drop",
    "head_bias, logit_softcap, logit_divisor or logit_scale",
    "convolution of a block",
    "needs whole rows",
)
"""What of the variants cannot be divided, as the lines that refuse them say."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    done = run_forked("tests.parallel.two_processes", str(folder / "found.json"), cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("mode", ["sequence", "tensor", "shard", "context"])
def test_every_variant_is_equal_or_refused(found: Any, mode: str) -> None:
    cases = found["variants"][mode]
    assert len(cases) > 15
    refused = {name: line for name, line in cases.items() if isinstance(line, str)}
    wrong = {name: differences for name, differences in cases.items() if name not in refused}
    assert {name: each for name, each in wrong.items() if max(each.values()) > 1e-10} == {}
    assert all(any(reason in line for reason in CANNOT) for line in refused.values()), refused
    assert bool(refused) == (mode != "shard")


def test_collectives_and_their_gradients(found: Any) -> None:
    assert set(found["collectives"]) == {"copied", "summed", "gathered", "scattered", "split", "joined"}
    assert max(found["collectives"].values()) == 0


def test_what_two_processes_both_compute_draws_the_same(found: Any) -> None:
    """Heads, and the parts of a divided stream, draw their own."""
    same = {mode: {name: value == 1 for name, value in at.items()} for mode, at in found["drawing"].items()}
    assert same["tensor"] == {"embedding": True, "attention": False, "block": True, "end": True, "gradients": False}
    assert same["sequence"] == {"embedding": True, "attention": False, "block": False, "end": True, "gradients": False}
    assert max(at["gradients"] for at in found["drawing"].values()) < 1e-15


def test_the_norm_of_plain_and_divided_gradients(found: Any) -> None:
    for name, (ours, theirs) in found["norms"].items():
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12), name
    assert found["norms"]["norm"][0] > 1
