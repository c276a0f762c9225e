"""``lightning-gpt plan``: what a config costs on a kind of device, and the fastest layout that fits."""

import json as json_format
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lightning_gpt.commands.call import check_config_files, parse_function_call
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.options import Range, ShareAboveZero
from lightning_gpt.trust import trusted_options

if TYPE_CHECKING:
    from lightning_gpt.commands.planned_run import PlannedRun
    from lightning_gpt.planning.devices import DeviceKind
    from lightning_gpt.planning.plan import Assumptions, Plan

DEFAULT_DEVICE = "H100-SXM"
_FLAGS = ("json", "slurm")

_HELP = """usage: lightning-gpt plan [PLAN OPTIONS] [--config FILE ...] [OPTIONS OF fit]

Plan a training without running it: parameters, FLOPs, memory of each device, communication and time. The config is
read as fit reads it. A layout in its parallel section is planned as it is; without one, the fastest that fits is
searched: on --gpus devices, else on those of trainer.devices and num_nodes if they are more than one, else on the
fewest that are enough.

plan options:
  --device NAME          kind of device, of the table (default: {device}): {names}
  --devices_file FILE    a YAML file with devices of your own
  --gpus N               number of devices
  --share_of_peak X      rate of matrix products as a share of the device's peak (default: {peak})
  --share_of_memory X    share of the device's memory that a process can use (default: {memory})
  --json                 print JSON
  --slurm                print a SLURM script that trains the config in the layout

exit status: 0 if the layout fits, 1 if it does not, 2 if the call is wrong
lightning-gpt fit --help lists the options of fit.
"""


def plan_options(
    device: str = DEFAULT_DEVICE,
    devices_file: str | None = None,
    gpus: Annotated[int, Range(1, 2**20)] | None = None,
    share_of_peak: ShareAboveZero = 0.5,
    share_of_memory: ShareAboveZero = 0.92,
    json: bool = False,
    slurm: bool = False,
) -> Mapping[str, Any]:
    """The options of ``plan`` itself; all others are those of ``fit``.

    Args:
        device: Kind of device, by its name in the table.
        devices_file: YAML file with devices of the user's own.
        gpus: Number of devices; when omitted, that of the config's layout or trainer if it is above 1, else the fewest
            that are enough.
        share_of_peak: Rate of matrix products as a share of the device's peak.
        share_of_memory: Share of the device's memory that a process can use.
        json: Print JSON instead of tables.
        slurm: Print a SLURM script instead.
    """
    return locals()


def run(args: list[str]) -> None:
    """Parse ``args``, plan, and print.

    Raises:
        CallError: An option is wrong, or the layout suits neither the model nor the number of devices.
        WorkError: The layout does not fit the devices.
    """
    if any(argument in ("-h", "--help") for argument in args):
        _print_help()
        return
    own, fit = _divided(args)
    options = parse_function_call(plan_options, "plan", own)
    if options["json"] and options["slurm"]:
        raise CallError("--json and --slurm cannot be combined: each replaces what is printed")
    check_config_files(fit)
    device = _device(options["device"], options["devices_file"])
    from lightning_gpt.commands.planned_run import PlannedRun
    from lightning_gpt.planning.plan import Assumptions

    planned = PlannedRun.read(fit, device)
    assumed = Assumptions(share_of_peak=options["share_of_peak"], share_of_memory=options["share_of_memory"])
    made = _planned(planned, device, options["gpus"], assumed)
    if options["slurm"]:
        print(_script(planned, made, fit), end="")
    elif options["json"]:
        print(json_format.dumps(_as_data(planned, made, assumed), indent=2))
    else:
        _print_tables(planned, made, assumed)
    if not made.fits:
        raise WorkError(_lacking(planned, made, assumed))


def _divided(args: list[str]) -> tuple[list[str], list[str]]:
    """The options of ``plan`` and those of ``fit``."""
    names = list(signature(plan_options).parameters)
    own: list[str] = []
    fit: list[str] = []
    position = 0
    while position < len(args):
        name, equals, _ = args[position].partition("=")
        takes = 1
        if name.startswith("--") and name[2:] in names:
            flag = name[2:] in _FLAGS
            takes = 1 if equals or flag else 2
            own += [f"{name}=true"] if flag and not equals else args[position : position + takes]
        else:
            fit.append(args[position])
        position += takes
    return own, fit


def _device(name: str, file: str | None) -> "DeviceKind":
    from lightning_gpt.planning.devices import device_named, devices_of, known_devices

    return device_named(name, {**known_devices(), **({} if file is None else devices_of(file))})


def _planned(planned: "PlannedRun", device: "DeviceKind", gpus: int | None, assumed: "Assumptions") -> "Plan":
    """The plan of the config's layout, or the fastest that fits."""
    from lightning_gpt.planning.plan import plan
    from lightning_gpt.planning.search import fastest, fewest

    layout, training = planned.layout, planned.training
    if layout is not None:
        given = gpus or planned.devices
        if given is None:
            given = layout.devices if layout.data != "auto" else replace(layout, data=1).devices
        return plan(training, layout.on(given), device, assumed)
    if gpus is None and planned.devices is not None and planned.devices > 1:
        gpus = planned.devices
    if gpus is None:
        return fewest(training, device, assumed)
    best, closest = fastest(training, device, gpus, assumed)
    found = best or closest
    if found is None:
        raise CallError(
            f"no layout of {gpus:,} devices divides this model and batch; set data.global_batch to a multiple of "
            f"{gpus:,}, or use another number of devices"
        )
    return found


def _lacking(planned: "PlannedRun", made: "Plan", assumed: "Assumptions") -> str:
    """What a layout that does not fit lacks, and one that would fit."""
    from lightning_gpt.planning.search import fastest
    from lightning_gpt.planning.tables import gib

    said = f"{made.layout.described()} does not fit: the fullest device lacks {gib(-made.spare)} GiB"
    best, _ = fastest(planned.training, made.device, made.layout.devices, assumed)
    if best is not None:
        return f"{said}; {best.layout.described()} fits"
    peaks = _peaks(planned, made)
    works = [mode for mode, peak in peaks.items() if peak <= made.usable]
    return f"{said}; no layout of {made.layout.devices:,} does" + (
        f", but checkpointing {works[0]} would" if works else ""
    )


def _peaks(planned: "PlannedRun", made: "Plan") -> Mapping[str, float]:
    """The peak of the fullest device under each checkpointing; empty for a model that has none."""
    from lightning_gpt.planning.memory import rank_memory

    found = {}
    for mode in ("none", "attention", "block"):
        try:
            training = made.training.with_checkpointing(mode)
        except CallError:
            return {}
        found[mode] = max(rank_memory(training, made.layout, stage).total for stage in {0, made.layout.pipeline - 1})
    return found


def _print_tables(planned: "PlannedRun", made: "Plan", assumed: "Assumptions") -> None:
    from lightning_gpt.planning.tables import checkpointing_lines, gib, model_lines, plan_lines

    training = planned.training
    print("\n".join(model_lines(training)))
    print()
    print("\n".join(plan_lines(made, training, assumed)))
    peaks = _peaks(planned, made)
    if peaks:
        print()
        print("\n".join(checkpointing_lines(peaks, made.usable, training.checkpointing)))
    print()
    print(f"cache of generation: {gib(training.cache(1, training.time))} GiB per text of {training.time:,} tokens")


def _as_data(planned: "PlannedRun", made: "Plan", assumed: "Assumptions") -> dict[str, Any]:
    from lightning_gpt.planning.speed import optimal_tokens
    from lightning_gpt.planning.weights import by_component

    training = planned.training
    return {
        "parameters": {**by_component(training.weights), "all": training.parameters, "active": training.active},
        "training_flops_per_token": training.flops,
        "compute_optimal_tokens": optimal_tokens(training.active),
        "precision": training.precision,
        "assumed": vars(assumed),
        "plan": made.as_data(),
        "peak_by_checkpointing": _peaks(planned, made),
        "cache_bytes_per_text": training.cache(1, training.time),
    }


def _script(planned: "PlannedRun", made: "Plan", fit: list[str]) -> str:
    from lightning_gpt.planning.slurm import training_script

    devices, per_node = made.layout.devices, min(made.layout.devices, made.device.node)
    if devices % per_node:
        raise CallError(f"{devices} devices do not divide into nodes of {per_node}; set --gpus to a multiple of it")
    sizes = [f"--parallel.{name}={_typed(value)}" for name, value in made.layout.options().items() if value is not None]
    trainer = [f"--trainer.devices={per_node}", f"--trainer.num_nodes={devices // per_node}"]
    if planned.accelerator is not None:
        trainer.insert(0, f"--trainer.accelerator={planned.accelerator}")
    batches = _batches(planned, made)
    replaced = [option.partition("=")[0] for option in batches]
    kept = _without(fit, ("--parallel", *(option.partition("=")[0] for option in trainer), *replaced))
    return training_script(
        name=Path(planned.name).name,
        runs=str(planned.runs),
        folder=os.getcwd(),
        python=sys.executable,
        fit=[
            *kept,
            *([] if planned.training.copies_only or made.layout.devices == 1 else sizes),
            *batches,
            *trainer,
            f"--trainer.precision={planned.training.precision}",
        ],
        nodes=devices // per_node,
        per_node=per_node,
        trusted=trusted_options(),
    )


def _batches(planned: "PlannedRun", made: "Plan") -> list[str]:
    """The options of the batches that a searched layout takes, where they are not those of the config."""
    given, taken = planned.training, made.training
    options = [f"--data.batch_size={taken.rows}"] if taken.rows != given.rows else []
    if given.global_rows is None and taken.accumulate != given.accumulate:
        options.append(f"--trainer.accumulate_grad_batches={taken.accumulate}")
    return options


def _without(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """A command line without options and those in their sections, be their values joined to them by ``=`` or not."""
    kept, is_value = [], False
    for each in arguments:
        name, joined, _ = each.partition("=")
        if is_value and not each.startswith("--"):
            is_value = False
        elif any(name == option or name.startswith(f"{option}.") for option in options):
            is_value = not joined
        else:
            kept.append(each)
            is_value = False
    return kept


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print_help() -> None:
    from lightning_gpt.planning.devices import known_devices
    from lightning_gpt.planning.plan import SHARE_OF_MEMORY, SHARE_OF_PEAK

    names = ", ".join(known_devices())
    print(_HELP.format(device=DEFAULT_DEVICE, names=names, peak=SHARE_OF_PEAK, memory=SHARE_OF_MEMORY), end="")
