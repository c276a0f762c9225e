"""LightningCLI over our module, data and callbacks."""

import atexit
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import StrictParser, one_line, option_names
from lightning_gpt.commands.trainer_ranges import TRAINER_DEFAULTS, check_trainer
from lightning_gpt.console import say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.training.callbacks import (
    Averaging,
    BestCheckpoint,
    Board,
    Cost,
    ExpertUse,
    Grow,
    InitialLoss,
    LastCheckpoint,
    LayerDiagnostics,
    MetricsFile,
    NonFinite,
    Predictions,
    RunProgress,
    RunSummary,
    Samples,
    Spikes,
    StepMetrics,
    TokenRoutes,
    Upcycle,
)
from lightning_gpt.training.callbacks.non_finite import Action
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.module import GPTModule, LanguageModule, SingleHeadModule
from lightning_gpt.training.precision import fastest_precision

set_parsing_settings(config_read_mode_fsspec_enabled=False)  # a config is a local file; Lightning allows any URL

MODELS = (GPTModule, SingleHeadModule)
"""What ``--model`` may name by its short name."""


class _Parser(StrictParser, LightningArgumentParser):
    pass


class TrainCLI(LightningCLI):
    """LightningCLI with our callbacks, links and defaults.

    Args:
        args: The subcommand and its options; those of this process when None.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        quieten()
        self._called = (sys.argv[1:] if args is None else args)[0]
        super().__init__(
            LanguageModule,
            TextData,
            args=args,
            parser_class=_Parser,
            subclass_mode_model=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"exit_on_error": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is called: each takes a tenth of a second."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self._called}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own groups beside model, data and trainer, and what the model takes from the data."""
        parser.add_argument("--name", type=str, default="gpt", help="Name of the run; it is kept in runs/<name>.")
        parser.add_argument(
            "--non_finite",
            type=Action,
            default="stop",
            help="At a loss or gradient that is not finite: stop the run, skip the step, or rewind to last.ckpt.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoints")
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(LayerDiagnostics, "diagnostics")
        parser.add_lightning_class_args(Upcycle, "upcycle")
        parser.add_lightning_class_args(Grow, "grow")
        parser.add_lightning_class_args(Averaging, "averaging")
        parser.add_lightning_class_args(Spikes, "spikes")
        parser.set_defaults({"model": MODELS[0].__name__})
        parser.link_arguments("model.init_args.block_size", "data.block_size")
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with mistakes said in one line."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            known = {option for each in self._subcommand_parsers.values() for option in option_names(each)}
            raise CallError(one_line(str(error), sorted(known))) from None
        check_trainer(vars(self.config[self.config.subcommand].trainer))

    def _parse_ckpt_path(self) -> None:
        """Read the checkpoint before anything is built, so that a bad one costs nothing.

        The one that is used, in case of ``fit`` perhaps the one before it, is put into the config.
        """
        config = self.config[self.config.subcommand]
        self.checkpoint = None
        if config.get("ckpt_path") is not None:
            read = Checkpoint.read_newest if self.config.subcommand == "fit" else Checkpoint.read
            self.checkpoint = read(config.ckpt_path)
            config.ckpt_path = str(self.checkpoint.path)

    def before_instantiate_classes(self) -> None:
        """Put into the config, and so into the run's ``config.yaml``, what is chosen for this machine."""
        config = self.config[self.config.subcommand]
        if config.trainer.precision is None:
            config.trainer.precision, reason = fastest_precision(config.trainer.accelerator)
            say(f"precision: {config.trainer.precision} ({reason})")
        if self.config.subcommand != "fit":
            self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer whose run is kept in ``runs/<name>/version_N``."""
        config = self._get(self.config_init, "trainer")
        if config.logger is None or config.logger is True:
            keeps = self.subcommand in ("fit", "predict")
            name = self._get(self.config, "name")
            kwargs["logger"] = TensorBoardLogger("runs", name, version=_reserve_version(name)) if keeps else False
        metrics = StepMetrics()
        callbacks = [
            MetricsFile(),
            metrics,
            RunSummary(),
            Board(),
            ExpertUse(),
            TokenRoutes(),
            InitialLoss(),
            Cost(),
            Predictions(),
        ]
        if config.enable_progress_bar is not False:
            callbacks.append(RunProgress(metrics))
        if config.enable_checkpointing is not False and self.subcommand == "fit":
            callbacks.append(BestCheckpoint())
        if self.subcommand == "fit":
            callbacks.append(NonFinite(self._get(self.config, "non_finite")))
        plugins = [] if config.plugins is None else config.plugins
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CheckedFiles()]
        kwargs["callbacks"] = [*(config.callbacks or []), *callbacks]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise CallError(f"trainer: {error}") from None
        # NonFinite does not check the steps that Spikes leaves out; RunSummary's last words come after all others
        after = (NonFinite, RunSummary)
        trainer.callbacks.sort(  # type: ignore[attr-defined]
            key=lambda callback: after.index(type(callback)) + 1 if isinstance(callback, after) else 0
        )
        return trainer

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint of another architecture before the work starts."""
        if self.checkpoint is not None:
            self.checkpoint.require_same_model(self.model.model)


def _reserve_version(name: str) -> int:
    """The number of a new run's folder, made here so that two runs that start at once cannot both take it."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return 0  # the first process's folder is asked for, never this
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    for version in count():
        run = folder / f"version_{version}"
        try:
            run.mkdir()
        except FileExistsError:
            continue
        atexit.register(_remove_if_empty, run)
        return version
    raise AssertionError("there is always a next number")


def _remove_if_empty(run: Path) -> None:
    with suppress(OSError):  # it holds something, or is gone
        run.rmdir()


def quieten() -> None:
    """Silence what Lightning says that is not true of this package or not news to its user."""
    for about in (
        ".*does not have many workers.*",  # the loader takes under 2 % of a step
        ".*`IterableDataset` has `__len__` defined.*",  # each of our workers is configured for its part
        ".*ended before the epoch ended and your dataloader is not resumable.*",  # the cursor makes it so
        ".*The dirpath has changed from.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=about)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
