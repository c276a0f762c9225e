"""What docs/variants.md and docs/add-a-variant.md say, done."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.registry import Registry
from lightning_gpt.training.optim import adamw
from tests.models import checks
from tests.models.helpers import random_ids
from tests.models.variants import PARTS, SIZES, fresh

DOCS = Path(__file__).parents[1] / "docs"
ADD, VARIANTS = (DOCS / "add-a-variant.md").read_text(), (DOCS / "variants.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", ADD, re.M | re.S)
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", VARIANTS, re.M | re.S)]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Registry[Any]]:
    """The registries, which forget afterwards what is added meanwhile."""
    for registry in PARTS.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    return PARTS


def added(code: str, registries: dict[str, Registry[Any]]) -> list[dict[str, Any]]:
    """Run the page's code; the choices that there are more of after it."""
    before = {part: set(registry.names) for part, registry in registries.items()}
    exec(compile(code, "docs/add-a-variant.md", "exec"), {})
    return [{part: name} for part, registry in registries.items() for name in set(registry.names) - before[part]]


def test_the_page_adds_a_norm_an_attention_and_a_feed_forward_network(registries: dict[str, Registry[Any]]) -> None:
    parts = [sorted(part for choice in added(code, registries) for part in choice) for code in CODE]
    assert parts == [["norm", "qk_norm"], ["attention"], ["ffn"]]


@pytest.mark.parametrize("code", CODE, ids=["norm", "attention", "ffn"])
def test_a_variant_takes_ten_lines(code: str) -> None:
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


@pytest.mark.parametrize("code", CODE, ids=["norm", "attention", "ffn"])
def test_a_variant_that_was_added_trains_and_passes_what_runs_by_itself(
    code: str, registries: dict[str, Registry[Any]]
) -> None:
    for changes in added(code, registries):
        model = GPT(GPTConfig(**{**SIZES, **changes}))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        ids = random_ids(17, 2, 12)
        model.loss(ids, ids.roll(-1, 1)).backward()
        adamw(model, lr=1e-2).step()
        assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        checks.no_logit_depends_on_a_later_token(changes)
        checks.both_backends_are_the_same_function(changes)
        checks.reading_in_pieces_gives_the_logits_of_one_reading(changes, [7, 1, 1, 1, 4, 2, 1, 3])
        checks.documents_kept_apart_are_computed_as_if_alone(changes)
        checks.masks_that_layers_share_are_those_that_each_would_make(changes)
        checks.a_variant_is_rebuilt_from_its_description(changes)


def test_options_of_a_variant_that_was_added_are_known_as_the_page_says(registries: dict[str, Registry[Any]]) -> None:
    added(CODE[0], registries)
    model = GPT(GPTConfig(**{**SIZES, "qk_norm": {"kind": "peak", "eps": 0.001}}))
    assert model.blocks[0].attention.q_norm.eps == 0.001
    with pytest.raises(CallError, match="norm 'peak' has no option 'epsilon'; its options are eps"):
        GPTConfig(**{**SIZES, "norm": {"kind": "peak", "epsilon": 1}})


def test_what_was_added_is_gone_again() -> None:
    assert not {"peak", "dilated", "soft"} & {name for registry in PARTS.values() for name in registry.names}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_registered_variant_stands_in_the_table_with_its_options(part: str) -> None:
    section = next(text for text in VARIANTS.split("\n## ")[1:] if f"`{part}`" in text.splitlines()[0])
    rows = {row.split("|")[1].strip(" `"): row for row in section.splitlines() if row.startswith("| `")}
    assert sorted(rows) == PARTS[part].names
    for name, row in rows.items():
        left_out = name == "none" and PARTS[part].optional
        options = set() if left_out else set(PARTS[part].options(name))
        assert set(re.findall(r"`(\w+)`", row.split("|")[4])) == options, f"options of {part} {name}"


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_build_a_model(example: dict[str, Any]) -> None:
    model = fresh(example["model"]["init_args"])
    assert model(random_ids(17, 1, 9)).shape == (1, 9, 17)
