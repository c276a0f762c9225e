"""Every file in configs/ is parsed and everything it names is built."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_gpt.commands.lightning_cli import TrainCLI
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.models import GPT, SingleHeadModel
from lightning_gpt.models.registry import Choice
from lightning_gpt.training.module import LanguageModule

CONFIGS = Path(__file__).parents[2] / "configs"
# a study is no config of fit: tests/studies checks those
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if "studies" not in file.parts)
MODELS = sorted((CONFIGS / "model").glob("gpt_*.yaml"))
WHOLE = [CONFIGS / f"{name}.yaml" for name in ("quickstart", "quickstart_gpt2", "single_head", "paper")]


class BuiltOnly(TrainCLI):
    """The CLI up to the point where the work would start, its model without weights: some are of LLM scale."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


def build(*files: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...] = ()) -> TrainCLI:
    # the accelerator is the one thing that a machine without GPUs cannot build
    args = [argument for file in files for argument in ("--config", str(file))]
    on_cpu = ("--trainer.accelerator", "cpu", "--trainer.devices", "1")
    monkeypatch.setattr(sys, "argv", ["lightning-gpt", "fit", *args, *on_cpu, *extra])
    with torch.device("meta"):
        return BuiltOnly()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_the_promised_files() -> None:
    names = {str(file.relative_to(CONFIGS)) for file in FILES}
    assert names >= {
        *(f"model/{name}.yaml" for name in ("single_head", "gpt_2l", "gpt_4l", "gpt_8l", "gpt_12l")),
        *(f"data/{name}.yaml" for name in ("embedded", "wikipedia_books")),
        *(f"trainer/{name}.yaml" for name in ("cpu", "gpu", "multi_gpu")),
        *(file.name for file in WHOLE),
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_each_file_alone_builds_model_data_and_trainer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = build(file, monkeypatch=monkeypatch)
    assert isinstance(cli.model, LanguageModule)
    assert isinstance(cli.datamodule, TextData)
    written = yaml.safe_load(file.read_text())
    built = cli.model.model.config
    for key, value in written.get("model", {}).get("init_args", {}).items():
        if key != "optimization":
            assert_built(getattr(built, key), value)
    assert cli.datamodule.block_size == built.block_size
    assert cli.datamodule.vocab_size == built.vocab_size


def assert_built(built: Any, written: Any) -> None:
    """``built`` is what the file says; a choice has the options that the file gives, and the defaults of the rest."""
    if isinstance(built, tuple):
        pattern = written if isinstance(written, list) else [written]
        assert len(built) == len(pattern)
        for choice, given in zip(built, pattern, strict=True):
            assert_built(choice, given)
    elif isinstance(built, Choice):
        assert dict(built) == {**built, **({"kind": written} if isinstance(written, str) else written)}
    else:
        assert built == written


@pytest.mark.parametrize(
    ("model", "data", "trainer"),
    itertools.product(MODELS, sorted((CONFIGS / "data").glob("*.yaml")), sorted((CONFIGS / "trainer").glob("*.yaml"))),
    ids=lambda file: file.stem,
)
def test_model_data_and_trainer_compose(
    model: Path, data: Path, trainer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = build(model, data, trainer, monkeypatch=monkeypatch)
    assert cli.model.model.config.n_layer == int(model.stem.removeprefix("gpt_").removesuffix("l"))
    assert cli.model.model.config.vocab_size == 50257
    assert cli.trainer.max_epochs == 1


def test_overlays_change_width_and_heads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CONFIGS / "model"
    cli = build(folder / "gpt_8l.yaml", folder / "width_512.yaml", folder / "heads_8.yaml", monkeypatch=monkeypatch)
    config = cli.model.model.config
    assert (config.n_layer, config.n_head, config.dim, config.dropout) == (8, 8, 512, 0.1)


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_grid_models_have_the_sizes_that_their_names_say(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(file, monkeypatch=monkeypatch).model.model
    assert isinstance(model, GPT)
    layers, dim = model.config.n_layer, 256
    by_hand = 50257 * dim + 256 * dim + layers * (12 * dim * dim + 13 * dim) + 2 * dim
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand


def test_single_head_config_is_the_first_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = build(CONFIGS / "single_head.yaml", monkeypatch=monkeypatch)
    assert isinstance(cli.model.model, SingleHeadModel)
    config = cli.model.model.config
    assert (config.block_size, cli.datamodule.batch_size, config.dim, config.vocab_size) == (8, 5, 64, 50257)


def test_paper_config_is_the_papers_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = build(CONFIGS / "paper.yaml", monkeypatch=monkeypatch)
    optimization = cli.model.optimization
    assert cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches == 256
    assert cli.trainer.max_epochs == 20
    assert (optimization.lr, optimization.warmup) == (3e-4, 0.05)
    tokens = sum(source.max_tokens for source in cli.datamodule.sources)
    assert 50_000_000 <= tokens <= 200_000_000


def test_short_names_and_class_paths_name_the_same_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SingleHeadModule", "lightning_gpt.training.module.SingleHeadModule"):
        cli = build(monkeypatch=monkeypatch, extra=("--model", name))
        assert isinstance(cli.model.model, SingleHeadModel)


def test_config_of_a_run_builds_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(CONFIGS / "quickstart.yaml", monkeypatch=monkeypatch)
    dumped = _dump(first)
    (tmp_path / "again.yaml").write_text(dumped)
    again = build(tmp_path / "again.yaml", monkeypatch=monkeypatch)
    assert again.model.model.config == first.model.model.config
    assert again.config.fit.trainer.precision == first.config.fit.trainer.precision


def _dump(cli: Any) -> str:
    text: str = cli._parser("fit").dump(cli.config.fit, skip_none=False)
    return text
