"""What docs/variants.md and docs/add-a-variant.md state, tested."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_gpt
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.registry import Registry
from lightning_gpt.training.optim import adamw
from tests.models import checks
from tests.models.helpers import random_ids
from tests.models.variants import PARTS, SIZES, build, fresh
from tests.processes import must_run, tiny_config, tiny_corpus, write_config

ROOT = Path(__file__).parents[1]
ADD = (ROOT / "docs/add-a-variant.md").read_text()
VARIANTS = "\n".join(
    page.read_text() for page in [ROOT / "docs/variants.md", *sorted((ROOT / "docs/variants").glob("*.md"))]
)


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language, as it stands there."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


NORM, ATTENTION, FFN, MIXER = CODE = blocks(ADD, "python")
NAMES = ["norm", "attention", "ffn", "mixer"]
EXAMPLES = [yaml.safe_load(block) for block in blocks(VARIANTS, "yaml")]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Registry[Any]]:
    """The registries; what a test adds to them is gone after it."""
    for registry in PARTS.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    return PARTS


def added(code: str, registries: dict[str, Registry[Any]]) -> list[dict[str, Any]]:
    """Run the page's code; returns the choices that it adds."""
    before = {part: set(registry.names) for part, registry in registries.items()}
    exec(compile(code, "docs/add-a-variant.md", "exec"), {})
    return [{part: name} for part, registry in registries.items() for name in set(registry.names) - before[part]]


def test_the_page_adds_a_norm_an_attention_a_feed_forward_network_and_a_mixer(
    registries: dict[str, Registry[Any]],
) -> None:
    parts = [sorted(part for choice in added(code, registries) for part in choice) for code in CODE]
    assert parts == [["norm", "qk_norm"], ["attention"], ["ffn"], ["attention"]]


def test_the_ranges_on_the_page_hold(registries: dict[str, Registry[Any]]) -> None:
    for code in CODE:
        added(code, registries)
    for part in ("norm", "qk_norm"):
        with pytest.raises(CallError, match=f"{part} eps is 0; it must be a positive number"):
            GPTConfig(**{part: {"kind": "peak", "eps": 0}})
    with pytest.raises(CallError, match="attention gap is 0; it must be a whole number from 1 to 16,777,216"):
        GPTConfig(attention={"kind": "dilated", "gap": 0})


def test_an_annotation_that_names_nothing_is_refused(registries: dict[str, Registry[Any]]) -> None:
    lines = ["from __future__ import annotations", *NORM.splitlines()]
    added("\n".join(line for line in lines if "import Positive" not in line), registries)
    with pytest.raises(CallError, match="PeakNorm: name 'Positive' is not defined in an annotation of its constructor"):
        GPTConfig(norm="peak")


@pytest.mark.parametrize("code", [NORM, ATTENTION, FFN], ids=NAMES[:3])
def test_a_variant_takes_ten_lines(code: str) -> None:
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


@pytest.mark.parametrize("code", CODE, ids=NAMES)
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


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_layers_whose_options_differ_have_a_mask_each(backend: str, registries: dict[str, Registry[Any]]) -> None:
    """An attention kind that overrides ``visible`` alone, and not the key by which layers share a mask."""
    added(ATTENTION, registries)
    pattern = [{"kind": "dilated", "gap": 2}, {"kind": "dilated", "gap": 3}]
    model, ids = build({"attention": pattern}, attention_backend=backend), random_ids(17, 1, 12)
    with model.record("blocks.*.attention.mask") as trace:
        recorded = model(ids)
    place = torch.arange(12)
    back = place[:, None] - place
    for mask, gap in zip(trace.layers("attention.mask"), (2, 3), strict=True):
        assert torch.equal(mask.expand(12, 12), (back >= 0) & (back % gap == 0))
    torch.testing.assert_close(model(ids), recorded)  # without a trace, the backend itself
    alone = [build({"attention": [choice, choice]}, attention_backend=backend) for choice in pattern]
    x = model.embed(ids, model.context(ids))
    for layer, same in enumerate(alone):  # the layer of this model, and of one in which both are alike
        x, of_same = model.layer(layer, x, model.context(ids)), same.layer(layer, x, same.context(ids))
        torch.testing.assert_close(x, of_same)
    torch.testing.assert_close(model.head(model.final_norm(x)), recorded)


def test_options_of_a_variant_that_was_added_are_known_as_the_page_says(registries: dict[str, Registry[Any]]) -> None:
    added(NORM, registries)
    model = GPT(GPTConfig(**{**SIZES, "qk_norm": {"kind": "peak", "eps": 0.001}}))
    assert model.blocks[0].attention.q_norm.eps == 0.001
    with pytest.raises(CallError, match="norm 'peak' has no option 'epsilon'; its options are eps"):
        GPTConfig(**{**SIZES, "norm": {"kind": "peak", "epsilon": 1}})


def test_an_expert_may_be_a_feed_forward_network_that_was_added(registries: dict[str, Registry[Any]]) -> None:
    added(FFN, registries)
    checks.both_backends_are_the_same_function({"ffn": {"kind": "moe", "expert": "soft"}})


def test_what_was_added_is_gone_again() -> None:
    added_names = {"peak", "dilated", "soft", "average"}
    assert not added_names & {name for registry in PARTS.values() for name in registry.names}


def test_the_commands_of_the_page_train_and_use_a_module_outside_the_package(tmp_path: Path) -> None:
    (tmp_path / "my_variants.py").write_text("\n\n".join(CODE))
    (mine,) = blocks(ADD, "yaml")
    (tmp_path / "mine.yaml").write_text(mine)
    (tmp_path / "configs").mkdir()
    small = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=4, val_check_interval=4)
    small["model"]["init_args"]["n_layer"] = 4
    write_config(tmp_path / "configs/quickstart.yaml", {**small, "name": "quickstart"})
    commands = [shlex.split(line) for line in ADD.splitlines() if line.startswith("lightning-gpt ")]
    assert [command[1] for command in commands] == ["fit", "generate"]
    for _, *args in commands:
        must_run(*args, cwd=tmp_path)


def test_a_file_in_the_folder_of_its_part_is_found(tmp_path: Path) -> None:
    package = Path(lightning_gpt.__file__).parent
    shutil.copytree(package / "models", tmp_path / "lightning_gpt/models")
    for file in ("__init__.py", "errors.py"):
        shutil.copy(package / file, tmp_path / "lightning_gpt" / file)
    (tmp_path / "lightning_gpt/models/attention/dilated.py").write_text(ATTENTION)
    (tmp_path / "lightning_gpt/models/ffn/soft.py").write_text(FFN)
    program = (
        "from lightning_gpt import GPTConfig; print(GPTConfig(attention='dilated', ffn='soft').attention[0]['gap'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2\n", done.stderr


def test_the_tests_of_the_variants_run_over_a_module_outside_the_package(tmp_path: Path) -> None:
    (tmp_path / "my_variants.py").write_text("\n\n".join(CODE))
    (command,) = [line for line in ADD.splitlines() if line.startswith("python -m pytest")]
    _, *args = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *args, "--collect-only", "-n", "0", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},  # in place of a module in the clone itself
        capture_output=True,
        text=True,
        check=False,
    )
    for choice in ("norm=peak", "qk_norm=peak", "attention=dilated", "attention=average", "ffn=soft"):
        assert f"test_both_backends_are_the_same_function[{choice}]" in done.stdout


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
