"""The run that ``fit`` would start, read as ``fit`` reads it, for a plan."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gpt.commands.lightning_cli import runs_of
from lightning_gpt.commands.study_check import ParsedOnly
from lightning_gpt.errors import CallError
from lightning_gpt.models import MemoryGPT
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.strategy import strategy_for
from lightning_gpt.parallel.suited import require_flags, require_suited
from lightning_gpt.planning.devices import DeviceKind, fitting_precisions
from lightning_gpt.planning.training import Training
from lightning_gpt.training.after_step import needs_copies, refuse_spread
from lightning_gpt.training.precision import full_name


class _Parsed(ParsedOnly):
    """The CLI of ``fit`` up to where training would start; what is meant for other devices is set aside."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        trainer = config.trainer
        flags = ("accelerator", "precision", "devices", "num_nodes", "strategy", "default_root_dir")
        self.asked = {name: trainer[name] for name in flags}
        self.layout = Layout(**vars(config.parallel))
        for name, value in Layout().options().items():
            config.parallel[name] = value
        super().before_instantiate_classes()
        trainer.num_nodes = 1

    def require_whole_batches(self) -> None:
        """Nothing, as the rows of each layout are checked; but refuse what no layout could take."""
        rows, given = self.datamodule.global_batch, self.trainer.accumulate_grad_batches
        if rows is not None and given != 1:
            raise CallError(
                f"data.global_batch {rows} and trainer.accumulate_grad_batches {given} cannot both be given: leave one "
                f"out"
            )


@dataclass(frozen=True)
class PlannedRun:
    """What a config says of a run.

    Args:
        training: What is trained.
        layout: The layout that the config asks for; None if it asks for none.
        devices: The number of devices that it asks for; None if it leaves that to the machine.
        name: The name of the run.
        runs: The folder whose ``version_N`` are the runs of that name.
        accelerator: The Trainer's flag for the device that is planned for; None if the config's is right.
    """

    training: Training
    layout: Layout | None
    devices: int | None
    name: str
    runs: Path
    accelerator: str | None

    @classmethod
    def read(cls, fit: list[str], device: DeviceKind) -> "PlannedRun":
        """Read the options of ``fit``.

        Args:
            fit: Its command line after the command's name.
            device: What is to be trained on, from which a precision follows that is not given.

        Raises:
            CallError: ``fit`` would refuse them, or the device has no units for the precision.
        """
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # nothing is run
        sys.argv[1:] = ["fit", *fit]
        cli = _Parsed()
        precision = full_name(cli.asked["precision"] or fitting_precisions(device)[0])
        device.rate(precision)
        cli.layout.refuse_unused()
        module, data, trainer = cli.model, cli.datamodule, cli.trainer
        if cli.layout.is_chosen:  # what fit checks of a layout that is asked for
            strategy_for(cli.layout, cli.asked["strategy"], precision)
            require_suited(module.model, cli.layout, module.compiles_blocks)
            refuse_spread(module.optimization)
        if module.lora is not None:
            raise CallError(
                "plan counts a training of all weights, and model.lora leaves them as they are: leave it out"
            )
        averaging = cli.config.fit.averaging.decay is not None
        training = Training(
            model=module.model,
            precision=precision,
            device=device.type,
            rows=data.batch_size,
            time=data.block_size,
            accumulate=trainer.accumulate_grad_batches,
            global_rows=data.global_batch,
            steps=trainer.max_steps if trainer.max_steps >= 0 else None,
            optimizer=module.optimization.optimizer,
            newton_schulz_steps=module.optimization.muon.newton_schulz_steps,
            compiles=module.compiles_blocks,
            copies_only=isinstance(module.model, MemoryGPT)
            or bool(needs_copies(module.optimization))
            or not _may_divide(cli.asked["strategy"], precision),
            is_averaged=averaging,
            has_documents=data.separate_documents and device.type == "cpu",  # a GPU's kernel needs no mask for them
        )
        name = str(cli.config.fit.name)
        runs = runs_of(cli.asked["default_root_dir"], name)
        wanted = "cpu" if device.type == "cpu" else "gpu"
        accelerator = None if cli.asked["accelerator"] in ("auto", wanted, device.type) else wanted
        layout = cli.layout if cli.layout.is_chosen or cli.layout.data != "auto" else None
        return cls(training, layout, _devices(cli.asked), name, runs, accelerator)


def _may_divide(strategy: object, precision: str) -> bool:
    """Whether the Trainer's flags go with a layout that divides the model."""
    try:
        require_flags(Layout(data=1, shard=2), strategy, precision)
    except CallError:
        return False
    return True


def _devices(asked: dict[str, Any]) -> int | None:
    """The number of devices that the Trainer's flags ask for, if they name one."""
    devices = asked["devices"]
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    elif isinstance(devices, str) and "," in devices:  # their numbers, such as 0,1
        devices = [each for each in devices.split(",") if each.strip()]
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1:
        return None
    return devices * int(asked["num_nodes"])
