"""A choice of a variant is one thing, however it is written, and a checkpoint keeps the choice that was trained."""

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.loading import load
from lightning_gpt.models import GPTConfig
from lightning_gpt.models.norms import LayerNorm
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.wrappers.token_routing import MixtureOfDepths
from lightning_gpt.training.module import GPTModule
from tests.models.helpers import random_ids
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import weights

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 16, "block_size": 8, "vocab_size": 40}
SPELLINGS: dict[str, list[Any]] = {
    "norm": ["layer", {"kind": "layer"}, {"kind": "layer", "eps": 1e-5}],
    "qk_norm": ["none", {"kind": "none"}],
    "residual": ["pre", {"kind": "pre"}],
    "position": ["rotary", {"kind": "rotary"}, {"kind": "rotary", "base": 10000.0, "factor": 1.0}],
    "attention": ["full", {"kind": "full"}, {"kind": "full", "n_kv_head": None}, ["full"], [{"kind": "full"}]],
    "ffn": ["gelu", {"kind": "gelu", "hidden": None}, [{"kind": "gelu"}]],
    "layer_drop": [None, "none", {"kind": "none"}],
    "token_routing": [None, "none", {"kind": "none"}],
    "memory": [None, "none", {"kind": "none"}],
}
"""Every way to write the default, and rotary positions."""


def trained(folder: Path, **config: Any) -> Path:
    """The checkpoint of three training steps of a small model."""
    L.seed_everything(0)
    module = GPTModule(**{**SIZES, **config})
    rows = torch.randint(40, (6, 9), generator=torch.Generator().manual_seed(0))
    batches = DataLoader([{"ids": row[:-1], "targets": row[1:]} for row in rows], batch_size=2)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(module, batches)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def change_default(monkeypatch: pytest.MonkeyPatch, variant: type, option: str, value: Any) -> None:
    """Let ``variant`` be registered with another default of an option."""
    constructor = inspect.signature(variant.__init__)  # type: ignore[misc]
    parameters = [p.replace(default=value) if p.name == option else p for p in constructor.parameters.values()]
    original = variant.__init__  # type: ignore[misc]

    def changed(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{option: value, **options})

    changed.__signature__ = constructor.replace(parameters=parameters)  # type: ignore[attr-defined]
    monkeypatch.setattr(variant, "__init__", changed)


# --- one thing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", SPELLINGS)
def test_every_spelling_of_a_choice_is_one_config_and_one_description(part: str) -> None:
    modules = [GPTModule(**{**SIZES, part: spelling}) for spelling in SPELLINGS[part]]
    first, *others = modules
    for other in others:
        assert other.model.config == first.model.config
        assert hash(other.model.config) == hash(first.model.config)
        assert other.model.describe() == first.model.describe()


@pytest.mark.parametrize("rule", ["rezero", {"kind": "rezero"}])
def test_zero_projections_are_refused_under_rezero_however_it_is_written(rule: Any) -> None:
    for make in (GPTConfig, GPTModule):
        with pytest.raises(CallError, match="zero_projections and residual rezero cannot be combined"):
            make(**SIZES, residual=rule, zero_projections=True)


@pytest.mark.parametrize("memory", [{"kind": "tokens", "n_memory": 2}])
def test_memory_tokens_take_every_way_to_write_no_layer_drop_and_refuse_one(memory: dict[str, Any]) -> None:
    for none in SPELLINGS["layer_drop"]:
        GPTModule(**SIZES, memory=memory, layer_drop=none)
    for rate in ({"kind": "linear", "rate": 0.2}, {"kind": "constant", "rate": 0.2}):
        with pytest.raises(
            CallError, match="memory 'tokens' needs every layer in every step, but layer_drop skips some"
        ):
            GPTModule(**SIZES, memory=memory, layer_drop=rate)


@pytest.mark.parametrize("part", SPELLINGS)
def test_a_checkpoint_fits_every_spelling_of_its_choice(part: str, tmp_path: Path) -> None:
    first, *others = SPELLINGS[part]
    checkpoint = Checkpoint.read(trained(tmp_path, **{part: first}))
    for other in others:
        checkpoint.require_same_model(GPTModule(**{**SIZES, part: other}).model)


def test_a_run_is_resumed_by_a_config_that_spells_its_choices_otherwise(tmp_path: Path) -> None:
    """It ends with the weights of the run left alone; its ``config.yaml`` is plain and builds the same model."""
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=8, val_check_interval=4)
    content["checkpoints"]["every_n_steps"] = 4
    content["model"]["init_args"] |= {
        "position": "rotary",
        "attention": "full",
        "ffn": ["gelu", {"kind": "moe", "n_expert": 4}],
        "layer_drop": "none",
        "token_routing": {"kind": "mixture_of_depths", "capacity": 0.5},
        "optimization": {"schedule": "constant", "warmup": 0.0},
    }
    must_run("fit", "--config", str(write_config(tmp_path / "one.yaml", content)), cwd=tmp_path)
    half = ("--trainer.max_steps", "4")
    must_run("fit", "--config", "one.yaml", *half, cwd=tmp_path)
    content["model"]["init_args"] |= {
        "norm": {"kind": "layer", "eps": 1e-5},
        "residual": {"kind": "pre"},
        "position": {"kind": "rotary", "base": 10000.0},
        "attention": [{"kind": "full", "n_kv_head": None}],
        "ffn": [{"kind": "gelu"}, {"kind": "moe", "n_expert": 4, "top_k": 2, "balance": "loss"}],
        "layer_drop": {"kind": "none"},
        "token_routing": {"kind": "mixture_of_depths", "capacity": 0.5, "every": 2, "layers": None},
        "memory": "none",
    }
    write_config(tmp_path / "other.yaml", content)
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    done = must_run("fit", "--config", "other.yaml", "--ckpt_path", last, cwd=tmp_path)
    alone, resumed = (weights(tmp_path / f"runs/tiny/version_{version}") for version in (0, 2))
    assert alone.keys() == resumed.keys()
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)

    written = tmp_path / "runs/tiny/version_2/config.yaml"
    assert yaml.safe_load(written.read_text())["model"]["init_args"]["token_routing"]["capacity"] == 0.5
    must_run("validate", "--config", str(written), "--ckpt_path", last, cwd=tmp_path)

    # what the run says of itself, and of an architecture that is another
    model = next(line for line in done.stderr.splitlines() if line.startswith("model: "))
    assert "norm layer, residual pre, position rotary, attention full, ffn [gelu, moe (n_expert 4)]" in model
    assert "layer_drop none, token_routing mixture_of_depths (capacity 0.5), n_unique none" in model
    refused = run_command(
        *("fit", "--config", "other.yaml", "--ckpt_path", last),
        *("--model.position", "{kind: rotary, base: 500.0}", "--model.token_routing", "none", "--model.ffn", "swiglu"),
        cwd=tmp_path,
    )
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        "has a different architecture: position is rotary there and rotary (base 500.0) here; "
        "ffn is [gelu, moe (n_expert 4)] there and swiglu here; "
        "token_routing is mixture_of_depths (capacity 0.5) there and none here"
    )


@pytest.mark.parametrize(
    "config",
    [{}, {"tie_embeddings": False}, {"n_unique": 1}, {"ffn": ["gelu", "swiglu"]}, {"memory": "tokens"}],
    ids=str,
)
def test_the_table_of_parts_lists_each_parameter_once(config: dict[str, Any], tmp_path: Path) -> None:
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=1, val_check_interval=1)
    memory = {"memory": {"kind": "tokens", "n_memory": 3, "segment": 8}} if "memory" in config else {}
    content["model"]["init_args"] |= {**config, **memory}
    done = must_run("fit", "--config", str(write_config(tmp_path / "tiny.yaml", content)), cwd=tmp_path)
    lines = done.stderr.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split() == ["part", "parameters"]) + 1
    end = next(number for number, line in enumerate(lines) if line.split()[:1] == ["all"])
    counts = {line.split()[0]: int(line.split()[-1].replace(",", "")) for line in lines[start : end + 1]}
    in_all = counts.pop("all")
    model = load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")
    assert in_all == sum(parameter.numel() for parameter in model.parameters())
    assert sum(counts.values()) == in_all
    assert ("head" in counts) == (not model.config.tie_embeddings)


# --- what was trained is what is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "variant", "option", "value"),
    [
        ({"position": "rotary"}, RotaryPositions, "base", 3.0),
        ({"norm": {"kind": "layer"}}, LayerNorm, "eps", 0.5),
        ({"token_routing": "mixture_of_depths"}, MixtureOfDepths, "layers", [0]),
    ],
)
def test_a_checkpoint_keeps_its_model_when_a_default_changes(
    config: dict[str, Any],
    variant: type,
    option: str,
    value: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (part,) = config
    last, ids = trained(tmp_path, **config), random_ids(40, 2, 8)
    before = load(last)
    change_default(monkeypatch, variant, option, value)
    today = GPTModule(**{**SIZES, **config}).model
    assert today.config != before.config, "the default must have changed to show anything"
    after = load(last)
    assert after.config == before.config
    assert torch.equal(after(ids), before(ids))
    with pytest.raises(CallError, match=rf"different architecture: {part} is .*{option} .* there and .* here"):
        Checkpoint.read(last).require_same_model(today)
