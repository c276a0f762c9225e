"""What a study does once before its cells run: check them, and train the vocabularies that they share."""

import io
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from lightning_gpt.commands.lightning_cli import TrainCLI
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.studies.spec.equal import WIDTH_KEY
from lightning_gpt.whole_file import write_file

_Figure = TypeVar("_Figure")


class ParsedOnly(TrainCLI):
    """The CLI of ``fit`` up to where training would start; it can check several configurations in turn."""

    def _run_subcommand(self, subcommand: str) -> None:
        return

    def make_run_folder(self) -> None:
        """Nothing is kept."""

    def before_instantiate_classes(self) -> None:
        """Build for this machine's CPU: cells may be meant for another machine."""
        trainer = self.config[self.config.subcommand].trainer
        trainer.accelerator, trainer.devices, trainer.strategy = "cpu", 1, "auto"
        trainer.precision = "32-true"

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; the model on the meta device, without memory for its weights."""
        with torch.device("meta"):
            super().instantiate_classes()

    def check(self) -> None:
        """Parse ``sys.argv`` and build what it describes."""
        self.parse_arguments(self.parser, None)
        self.before_instantiate_classes()
        self.instantiate_classes()


def check_cells(cells: Sequence[Cell]) -> list[int]:
    """Build each setting of a study as ``fit`` would; returns the number of parameters of each cell's model.

    Raises:
        CallError: ``fit`` would refuse a cell; the message names the cell and the reason.
    """
    return _of_each_built(cells, lambda cli: _parameters(cli.model))


def step_work(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """Tokens and FLOPs of an optimizer step of each cell, on one device.

    Raises:
        CallError: ``fit`` would refuse a cell.
    """
    return _of_each_built(cells, _step_work)


def _step_work(cli: ParsedOnly) -> dict[str, float]:
    data, model = cli.datamodule, cli.model.model
    tokens = data.batch_size * cli.trainer.accumulate_grad_batches * model.config.block_size
    return {"tokens": tokens, "flops": tokens * training_flops_per_token(model, model.config.block_size)}


def equal_widths(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """For each cell, the width at which its model has most nearly as many parameters as the first cell's model.

    Widths are multiples of twice the number of heads, so that a head's width is even; the first keeps its own.

    Raises:
        CallError: ``fit`` would refuse a cell.
    """
    models = _of_each_built(cells, lambda cli: cli.model.model)
    wanted = _parameters(models[0])
    widths = [models[0].config.dim, *(_width_with(model, wanted) for model in models[1:])]
    return [{WIDTH_KEY: width} for width in widths]


def _width_with(model: LanguageModel, parameters: int) -> int:
    unit = 2 * math.lcm(*(view.mixer.n_head for view in model.block_views()))

    def count(units: int) -> int:
        with torch.device("meta"):
            return _parameters(type(model)(replace(model.config, dim=units * unit)))

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return unit * min((low, high), key=lambda units: abs(count(units) - parameters))


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _of_each_built(cells: Sequence[Cell], figure: Callable[[ParsedOnly], _Figure]) -> list[_Figure]:
    """A figure of what ``fit`` would build for each cell; cells that differ in their seeds alone are built once."""
    cli: ParsedOnly | None = None
    found: dict[str, _Figure] = {}
    _quieten()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        file = Path(folder) / "cell.yaml"
        for cell in cells:
            setting = _without_seed(cell)
            if setting in found:
                continue
            file.write_text(yaml.safe_dump(cell.config), encoding="utf-8")
            sys.argv = ["lightning-gpt", "fit", "--config", str(file)]
            try:
                if cli is None:
                    cli = ParsedOnly()
                else:
                    cli.check()
            except Exception as error:
                reason: BaseException | None = error
                while reason is not None and not isinstance(reason, CallError):
                    reason = reason.__cause__
                said = " ".join(str(reason or f"{type(error).__name__}: {error}").split())
                said = said.removeprefix(f"config file {str(file)!r}: ")  # a temporary file of ours
                raise CallError(f"cell {cell.number}, {cell.name}: {said}") from None
            found[setting] = figure(cli)
    return [found[_without_seed(cell)] for cell in cells]


def _without_seed(cell: Cell) -> str:
    """What tells a cell's configuration from those that are not the same but for the seed."""
    return json.dumps({**cell.config, "seed_everything": 0}, sort_keys=True)


def train_vocabulary(config: dict[str, Any], folder: Path) -> None:
    """Train the vocabulary that a cell's configuration needs, and write it to ``folder``."""
    _quieten()
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):
        file = Path(temporary) / "cell.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        sys.argv = ["lightning-gpt", "fit", "--config", str(file)]
        data = ParsedOnly().datamodule
    folder.mkdir(parents=True, exist_ok=True)
    assert isinstance(data, TextData)
    data.setup("tokenizer")
    write_file(folder / data.tokenizer.file_name, data.tokenizer.table.encode())


def _quieten() -> None:
    """Silence messages about a run's seed, since nothing is run here."""
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
