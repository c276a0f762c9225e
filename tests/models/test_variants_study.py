"""The shipped study of all variants has every one that is registered, at nearly equal parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_gpt.models import GPTConfig
from tests.models.variants import PARTS, fresh

STUDY = yaml.safe_load((Path(__file__).parents[2] / "configs/studies/variants.yaml").read_text())
VARIANTS: dict[str, dict[str, Any]] = {
    name: {
        key.removeprefix("model.init_args."): value
        for key, value in changes.items()
        if not key.startswith("model.init_args.optimization.")
    }
    for name, changes in STUDY["variants"].items()
}


def parameters(changes: dict[str, Any]) -> int:
    sizes = {**STUDY["config"]["model"]["init_args"], "block_size": 64, "vocab_size": 2048}
    with torch.device("meta"):
        model = fresh({**sizes, **changes})
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(choice: Any) -> set[str]:
    each = choice if isinstance(choice, list | tuple) else [choice]
    return {"none" if one is None else one["kind"] if isinstance(one, dict) else one for one in each}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_registered_variant_has_a_line_in_the_study(part: str) -> None:
    lines = [kinds(changes[part]) for changes in VARIANTS.values() if part in changes]
    standard = kinds(vars(GPTConfig()).get(part))  # it has no memory: a model with one is another class
    assert set().union(*lines, standard) == set(PARTS[part].names)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_nearly_equal(name: str) -> None:
    assert parameters(VARIANTS[name]) == pytest.approx(parameters({}), rel=0.02)
