"""What the doctor checks of a run: its configs and a checkpoint."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_gpt.doctor.finding import CheckResult, failed, ok, problem, warning
from lightning_gpt.doctor.machine import GIB, available_memory
from lightning_gpt.errors import CallError

if TYPE_CHECKING:
    from lightning_gpt.commands.lightning_cli import TrainCLI


class RunCheck:
    """Checks the run that ``fit`` would start.

    Args:
        configs: The config files, in order; may be empty.
        checkpoint: The checkpoint to resume, generate or inspect from.
    """

    def __init__(self, configs: list[str], checkpoint: str | None) -> None:
        self.configs = configs
        self.checkpoint = checkpoint
        self._cli: TrainCLI | None = None

    def config(self) -> Iterator[CheckResult]:
        """Parse the configs as ``fit`` does and build what they describe, the model without memory for its weights."""
        try:
            self._cli = _built(self.configs)
        except (Exception, SystemExit) as error:
            yield failed(error, "correct the config; lightning-gpt fit --help lists the options")
            return
        yield ok(f"{' + '.join(self.configs)}: fit accepts it")
        fit = self._cli.config.fit
        yield _run_folder(fit.trainer.default_root_dir, str(fit.name))

    def model(self) -> Iterator[CheckResult]:
        """The size of the model, and whether it can be trained in this machine's memory."""
        if self._cli is None:
            return
        module, trainer = self._cli.model, self._cli.trainer
        total = sum(parameter.numel() for parameter in module.model.parameters())
        needed, processes, of_each = _training_bytes(self._cli), trainer.num_devices, ""
        device = trainer.strategy.root_device
        if device.type == "cuda":
            import torch

            here, where = torch.cuda.get_device_properties(device).total_memory, "of the GPU"
            of_each = " on each device" if processes > 1 else ""
        else:
            needed *= processes  # which share the machine's memory
            here, where = available_memory(), "available"
            of_each = f" of {processes} processes" if processes > 1 else ""
        text = f"{total:,} parameters; {needed / GIB:,.2f} GiB for weights, gradients and optimizer{of_each}"
        text += f", of {here / GIB:,.1f} GiB {where}"
        if needed > here:
            yield problem(
                f"{text}: it does not fit",
                "a smaller model, a device with more memory, or more devices that share the weights (--parallel.shard)",
            )
        elif needed > here / 2:
            yield warning(f"{text}; activations come on top", "a smaller batch_size, or checkpointing: block")
        else:
            yield ok(f"{text}; activations come on top")

    def data(self) -> Iterator[CheckResult]:
        """The sources and the number of steps."""
        if self._cli is None:
            return
        from lightning_gpt.data.share import share_of

        data, trainer = self._cli.datamodule, self._cli.trainer
        names = ", ".join(source.name for source in data.sources)
        prepared = self._cli.config.fit.data.prepared
        how = "tokenised while training" if prepared is None else f"prepared in {prepared}, every part as written"
        rows = share_of(trainer, data.batch_size, data.global_batch).step_rows
        count = "an unknown number of steps"
        if trainer.max_steps >= 0:
            count = f"{trainer.max_steps:,} steps"
        elif trainer.max_epochs is not None and trainer.max_epochs >= 0:
            count = f"{trainer.max_epochs:,} epochs of steps"
        else:
            yield problem(
                "fit refuses a run of unknown length: the learning rate depends on it",
                "set trainer.max_steps or max_epochs",
            )
        yield ok(f"{names} ({how}); {count}, each of {rows:,} rows ({rows * data.block_size:,} tokens)")

    def saved(self) -> Iterator[CheckResult]:
        """Whether the checkpoint is whole, what it holds, and whether it fits the config."""
        from lightning_gpt.checkpoint import Checkpoint

        assert self.checkpoint is not None
        try:
            read = Checkpoint.read(self.checkpoint)
        except CallError as error:
            yield failed(error, "use another checkpoint, or copy it again from where it was written")
            return
        weights = read.content["state_dict"]
        path = read.path
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        yield ok(
            f"{self.checkpoint}: whole ({size:,} bytes checked); {read.model['name']}, step "
            f"{read.content['global_step']:,}, {sum(each.numel() for each in weights.values()):,} weights"
        )
        read.config()
        bad = [name for name, each in weights.items() if not each.isfinite().all()]
        if bad:
            yield problem(f"{bad[0]} has values that are not finite", "use a checkpoint of an earlier step")
        if self._cli is not None:
            try:
                read.require_same_model(self._cli.model.model)
            except CallError as error:
                yield failed(error, "use the config.yaml of the checkpoint's run")
                return
            yield ok("the config builds the same architecture, so the run can be resumed")


def _built(configs: list[str]) -> "TrainCLI":
    """The model (on the meta device), data and trainer of a config.

    Raises:
        CallError: ``fit`` would refuse the config.
    """
    from lightning_gpt.commands.call import check_config_files

    args = [part for file in configs for part in ("--config", file)]
    check_config_files(args)
    # imports Lightning, which takes seconds
    from lightning_gpt.commands.study_check import ParsedOnly
    from lightning_gpt.commands.unsupported import check_accelerator, check_precision

    class OfThisMachine(ParsedOnly):
        def before_instantiate_classes(self) -> None:
            """All as given, so that a device that is missing is found."""
            trainer = self.config.fit.trainer
            check_accelerator(trainer.accelerator)
            check_precision(trainer.precision, trainer.accelerator)

    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # nothing is run
    sys.argv[1:] = ["fit", *args]
    return OfThisMachine()


def _run_folder(root: str | None, name: str) -> CheckResult:
    """Whether the folder of the runs of that name can be written."""
    from lightning_gpt.commands.lightning_cli import runs_of

    folder = runs_of(root, name)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return problem(f"the run's folder {folder} cannot be made in {existing.absolute()}", "choose another --name")
    versions = len(list(folder.glob("version_*")))
    return ok(f"the run is kept in {folder}" + (f", {versions} so far" if versions else ""))


def _training_bytes(cli: "TrainCLI") -> float:
    """Bytes of weights, gradients and optimizer state in the process that holds the most, from their definitions.

    AdamW keeps two numbers per weight and Muon one per weight of a hidden matrix, in the weights' own type. The layout
    of ``parallel`` divides them.
    """
    from lightning_gpt.planning.weights import Weight, weights_of, weights_of_stage
    from lightning_gpt.training.muon import hidden_matrices

    model, optimization, layout = cli.model.model, cli.model.optimization, cli.config_init.fit.parallel
    muon = hidden_matrices(model) if optimization.optimizer == "muon" else {}
    by_muon = {parameter for parameters in muon.values() for parameter in parameters}
    width = {"16-true": 2, "bf16-true": 2, "64-true": 8}.get(cli.trainer.precision, 4)
    weights = weights_of(model)
    parameters = {id(weight): each for weight, each in zip(weights, model.parameters(), strict=True)}

    def copies(weight: Weight) -> int:
        parameter = parameters[id(weight)]
        return 2 + (1 if parameter in by_muon else 2) if parameter.requires_grad else 1

    n_layer, is_tied = len(model.block_views()), model.head.is_tied
    stages = (weights_of_stage(weights, n_layer, layout, stage, is_tied) for stage in range(layout.pipeline))
    held = max(sum(weight.on_rank(layout) * copies(weight) for weight in stage) for stage in stages)
    shared: float = width * held / layout.shard
    return shared
