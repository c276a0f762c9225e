"""LightningCLI over our module, data and callbacks."""

import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import StrictParser, option_names, parse
from lightning_gpt.commands.run_folder import ending_noted, newest_checkpoint, reserve, started_before
from lightning_gpt.commands.trainer_ranges import TRAINER_DEFAULTS, check_trainer
from lightning_gpt.commands.unsupported import (
    check_accelerator,
    check_callbacks,
    check_devices,
    check_loggers,
    check_nodes,
    check_precision,
    check_restarts,
    refused,
    refused_value,
)
from lightning_gpt.commands.weights import start_of, with_model_of
from lightning_gpt.console import say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.share import global_batch_share
from lightning_gpt.errors import CallError
from lightning_gpt.launch import Launch, torchrun_processes
from lightning_gpt.options import Seed, check_option, shown
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.strategy import MeshStrategy, strategy_for
from lightning_gpt.parallel.suited import require_rows, require_suited
from lightning_gpt.training.board_logger import BoardLogger
from lightning_gpt.training.callbacks import (
    Averaging,
    BestCheckpoint,
    Board,
    BusyMachine,
    Cost,
    EarlyEnd,
    ExpertUse,
    Grow,
    Heartbeat,
    InitialLoss,
    KeptMemory,
    LastCheckpoint,
    LayerDiagnostics,
    MetricsFile,
    NonFinite,
    Predictions,
    RunProgress,
    RunSummary,
    SameStart,
    Samples,
    Spikes,
    StepMetrics,
    TokenRoutes,
    Upcycle,
    Weights,
)
from lightning_gpt.training.callbacks.non_finite import Action
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.module import GPTModule, LanguageModule, SingleHeadModule
from lightning_gpt.training.precision import fastest_precision, full_name

set_parsing_settings(config_read_mode_fsspec_enabled=False)  # a config is a local file; Lightning allows any URL

MODELS = (GPTModule, SingleHeadModule)
"""What ``--model`` may name by its short name."""

_LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
"""What limits the batches that each command reads."""
_LONGEST_NAME = 200
"""Bytes of a folder's name; file systems allow 255, and studies and tools append to it."""


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
        self._launch = Launch.of_this_process()
        self.run_folder: Path | None = None
        """The folder that the run is kept in; None if nothing is kept."""
        try:
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
        except (MisconfigurationException, ModuleNotFoundError) as error:  # of Lightning's own, at any point of a run
            raise refused(error) from error
        except ValueError as error:
            known = refused_value(error)
            if known is None:
                raise
            raise known from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is called: each takes a tenth of a second."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self._called}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own groups beside model, data and trainer, and what the model takes from the data."""
        parser.add_argument(
            "--name",
            type=str,
            default="gpt",
            help="Name of the run, which is kept in runs/<name>; or the absolute path of the folder to keep it in.",
        )
        parser.add_argument(
            "--weights",
            type=str | None,
            default=None,
            help="Checkpoint to start from: its weights, with a new optimizer at step 0, its model and its tokenizer.",
        )
        parser.add_argument(
            "--non_finite",
            type=Action,
            default="stop",
            help="At a loss or gradient that is not finite: stop the run, skip the step, or rewind to last.ckpt.",
        )
        parser.add_class_arguments(LastCheckpoint, "checkpoints")  # no callback of the Trainer where nothing is saved
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(LayerDiagnostics, "diagnostics")
        parser.add_lightning_class_args(Upcycle, "upcycle")
        parser.add_lightning_class_args(Grow, "grow")
        parser.add_lightning_class_args(Averaging, "averaging")
        parser.add_lightning_class_args(Spikes, "spikes")
        parser.add_class_arguments(Layout, "parallel")
        parser.add_class_arguments(Heartbeat, "heartbeat")
        parser.set_defaults({"model": MODELS[0].__name__})
        parser.link_arguments("model.init_args.block_size", "data.block_size")
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with mistakes said in one line; the model is that of the weights to start from, if there are any."""
        known = {option for each in self._subcommand_parsers.values() for option in option_names(each)}
        args = sys.argv[1:] if args is None else args
        self._start = start_of(args)
        self.config = parse(parser, with_model_of(self._start, args), sorted(known))
        check_trainer(vars(self.config[self.config.subcommand].trainer))
        check_option("seed_everything", self.config[self.config.subcommand].seed_everything, bool | Seed)

    def _parse_ckpt_path(self) -> None:
        """Read the checkpoint before anything is built, so that a bad one costs nothing.

        The one that is used, in case of ``fit`` perhaps the one before it, is put into the config. The other commands
        need one: without it they would report figures of random weights.
        """
        config = self.config[self.config.subcommand]
        if config.get("weights_only") is False:
            raise CallError("weights_only is False; a checkpoint may hold tensors, numbers and text only")
        self.checkpoint = None
        _check_name(config.name)
        if self.config.subcommand == "fit" and not config.trainer.fast_dev_run:
            self._continue_run(config)
        if config.get("ckpt_path") is None and self.config.subcommand != "fit":
            raise CallError(f"{self.config.subcommand} needs a trained model: give --ckpt_path FILE")
        limit = _LIMITS.get(self.config.subcommand)
        if limit is not None and config.trainer[limit] == 0:
            raise CallError(f"trainer.{limit} is 0, so {self.config.subcommand} would measure nothing: leave it out")
        if config.get("ckpt_path") is not None:
            read = Checkpoint.read_newest if self.config.subcommand == "fit" else Checkpoint.read
            self.checkpoint = read(config.ckpt_path)
            config.ckpt_path = str(self.checkpoint.path)
            if self.config.subcommand == "fit":
                self.checkpoint.require_training()

    def _continue_run(self, config: Namespace) -> None:
        """Where a launcher has started this run again, continue it in its folder, from its last checkpoint."""
        self.run_folder = started_before(runs_of(config.trainer.default_root_dir, config.name), self._launch)
        if self.run_folder is None:
            return
        self.save_config_callback = None  # its config.yaml is there
        config.ckpt_path = str(newest_checkpoint(self.run_folder))
        say(f"started again: {self.run_folder} continues from {config.ckpt_path}")

    def before_instantiate_classes(self) -> None:
        """Put into the config, and so into the run's ``config.yaml``, what is chosen for this machine."""
        config = self.config[self.config.subcommand]
        check_accelerator(config.trainer.accelerator)
        check_precision(config.trainer.precision, config.trainer.accelerator)
        check_loggers(config.trainer.logger)
        if config.trainer.precision is None:
            config.trainer.precision, reason = fastest_precision(config.trainer.accelerator)
            say(f"precision: {config.trainer.precision} ({reason})")
        if self.config.subcommand != "fit":
            self.save_config_callback = None

    def make_run_folder(self) -> Path | None:
        """Make the folder that the run is kept in; None if nothing is kept."""
        config = self._get(self.config_init, "trainer")
        if self.run_folder is None and self.subcommand in ("fit", "predict") and not config.fast_dev_run:
            launch = self._launch if self.subcommand == "fit" else None
            self.run_folder = reserve(runs_of(config.default_root_dir, self._get(self.config, "name")), launch)
        return self.run_folder

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit":
            super()._run_subcommand(subcommand)
            return
        with ending_noted(self.run_folder, self._launch):
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer whose run is kept in ``runs/<name>/version_N``, whatever its loggers are.

        The folder is below ``default_root_dir`` if that is given. With ``fast_dev_run`` nothing is kept.
        """
        config = self._get(self.config_init, "trainer")
        layout: Layout = self._get(self.config_init, "parallel")
        background = self._get(self.config, "checkpoints").background
        layout.refuse_unused()
        if layout.is_chosen:
            kwargs["strategy"] = strategy_for(layout, config.strategy, full_name(config.precision))
            kwargs["strategy"].saves.background = background
        given = [] if config.callbacks is None else config.callbacks
        given = list(given) if isinstance(given, list | tuple) else [given]
        check_callbacks(given)
        if config.barebones:
            raise CallError("trainer.barebones cannot be used here: lightning-gpt bench measures the bare speed")
        here = torchrun_processes()
        if here is not None:
            check_restarts()
            check_devices(config.devices, here[0])
            kwargs["devices"], kwargs["num_nodes"] = here
        folder = self.make_run_folder()
        if config.logger is None or config.logger is True:
            # of a run that is started again: what was logged after its last checkpoint is logged once more
            step = None if self.checkpoint is None else self.checkpoint.content["global_step"] + 1
            kwargs["logger"] = (
                BoardLogger(str(folder.parent), "", version=folder.name, purge_step=step) if folder else False
            )
        metrics = StepMetrics()
        metrics_file = MetricsFile(folder)
        callbacks = [metrics_file, metrics, RunSummary(), EarlyEnd(), Board(), ExpertUse(), TokenRoutes()]
        callbacks += [InitialLoss(), Cost(), BusyMachine(), KeptMemory()]
        if not config.fast_dev_run:
            callbacks.append(Predictions())
        if config.enable_progress_bar is not False and not any(isinstance(each, ProgressBar) for each in given):
            callbacks.append(RunProgress(metrics))
        if self.subcommand == "fit":
            callbacks += [SameStart(self._started_with()), NonFinite(self._get(self.config, "non_finite"))]
            if self._start is not None:
                given.insert(0, Weights(self._start))  # before those that copy the model
            given.insert(0, self._get(self.config_init, "heartbeat"))  # first: another callback may be what hangs
            if config.enable_checkpointing is not False and not config.fast_dev_run:
                callbacks += [BestCheckpoint(), self._get(self.config_init, "checkpoints")]
        plugins = [] if config.plugins is None else config.plugins
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CheckedFiles(background)]
        kwargs["callbacks"] = [*given, *callbacks]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:
            raise refused(error) from error
        check_nodes(trainer)
        if isinstance(trainer.strategy, MeshStrategy):
            trainer.strategy.meet(trainer.world_size)
        elif layout.data != "auto":
            layout.on(trainer.world_size)
        if folder is not None:
            metrics_file.join(trainer)
        # NonFinite does not check the steps that Spikes leaves out; RunSummary's last words come after all others
        last = {NonFinite: 1, RunSummary: 2}
        trainer.callbacks.sort(key=lambda callback: last.get(type(callback), 0))  # type: ignore[attr-defined]
        return trainer

    def _started_with(self) -> dict[str, Any]:
        """What all processes of a run have in common: their options, and the step that they resume from."""
        options = vars(self.config[self.config.subcommand].as_flat())
        return {**options, "step": None if self.checkpoint is None else self.checkpoint.content.get("global_step")}

    def after_instantiate_classes(self) -> None:
        """Refuse another model's checkpoint, and a model or rows that the layout cannot divide, before work starts."""
        for checkpoint in (self.checkpoint, self._start):
            if checkpoint is not None:
                checkpoint.require_same_model(self.model.model)
        if self.checkpoint is not None:
            self.checkpoint.require_same_adapters(self.model.lora)
        elif self.model.lora is not None and self._start is None:
            raise CallError(
                "model.lora trains adapters of a trained model and leaves the model as it is: give --weights"
            )
        self._start = None  # its memory is not needed in training
        if isinstance(self.trainer.strategy, MeshStrategy):
            layout = self.trainer.strategy.layout
            require_suited(self.model.model, layout, self.model.compiles_blocks)
            require_rows(layout, getattr(self.datamodule, "batch_size", None), self.subcommand == "predict")
        self.require_whole_batches()

    def require_whole_batches(self) -> None:
        """Refuse an optimizer step whose rows are not a whole number of batches."""
        data = self.datamodule
        if self.subcommand == "fit" and isinstance(data, TextData) and data.global_batch is not None:
            global_batch_share(self.trainer, data.batch_size, data.global_batch)


def runs_of(root: str | None, name: str) -> Path:
    """The folder of all runs of a name."""
    return Path(root or "", "runs", name)


def _check_name(name: str) -> None:
    """Refuse a run's name that is neither a folder below ``runs`` nor an absolute path."""
    parts = name.removeprefix("/").split("/")
    if not name.isprintable() or any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in parts):
        raise CallError(
            f"name is {shown(name)}; allowed: a folder below runs, such as gpt or small/gpt, or an absolute path: no "
            f"empty part, no . or .., no control character, and at most {_LONGEST_NAME} bytes per part"
        )


def quieten() -> None:
    """Silence what Lightning says that is not true of this package or not news to its user."""
    for about in (
        ".*does not have many workers.*",  # the loader takes under 2 % of a step
        ".*`IterableDataset` has `__len__` defined.*",  # each of our workers is configured for its part
        ".*ended before the epoch ended and your dataloader is not resumable.*",  # the cursor makes it so
        "You requested to overfit but enabled .* dataloader shuffling.*",  # nothing shuffles these loaders
        ".*The dirpath has changed from.*",
        ".*could not find the monitored key in the returned metrics.*",  # a run without validation has no best model
        "Checkpoint directory .* exists and is not empty.*",  # of a run that is started again
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=about)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    threading.excepthook = _thread_failed


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread's error, unless the thread keeps it for the run, as TensorBoard's writer does."""
    if getattr(failed.thread, "exception", None) is not failed.exc_value:
        threading.__excepthook__(failed)
