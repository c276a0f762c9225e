"""Which layout is the fastest that fits, and how few devices do."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from lightning_gpt.errors import CallError
from lightning_gpt.parallel.layout import Layout, divisors
from lightning_gpt.planning.devices import DeviceKind
from lightning_gpt.planning.memory import rank_memory
from lightning_gpt.planning.plan import Assumptions, Plan, plan, require_plannable
from lightning_gpt.planning.training import Training

MOST_DEVICES = 4096
"""How many devices a search for the fewest goes up to, doubling."""
_MOST_CONTEXT = 64


def layouts(
    training: Training, device: DeviceKind, devices: int, *, divide_rows: bool
) -> Iterator[tuple[Training, Layout]]:
    """The layouts of a number of devices that the model and the batch allow, each with the batches that suit it.

    The tensor axis stays within a node, because it waits for every exchange; it divides the stream too.

    Args:
        training: What is trained.
        device: On what.
        devices: How many there are.
        divide_rows: Whether the tokens of a row are divided (the context axis) or not.
    """
    for tensor in (each for each in divisors(devices) if each <= device.node):
        for pipeline in (each for each in divisors(devices // tensor) if each <= training.layers):
            left = devices // tensor // pipeline
            for context in (each for each in divisors(left) if 1 < each <= _MOST_CONTEXT) if divide_rows else (1,):
                for expert in divisors(left // context) if training.experts else (1,):
                    rest = left // context // expert
                    for shard in divisors(rest):
                        layout = Layout(
                            pipeline=pipeline,
                            data=rest // shard,
                            shard=shard,
                            context=context,
                            tensor=tensor,
                            expert=expert,
                            sequence=tensor > 1,
                        )
                        yield from with_batches(training, layout, device)


def with_batches(training: Training, layout: Layout, device: DeviceKind) -> Iterator[tuple[Training, Layout]]:
    """Batches for a layout that give an optimizer step its rows, of those that ``fit`` takes.

    A batch has as many rows as were asked for, or the most below that divide a process's share. A pipeline takes the
    whole share as one batch, in micro-batches of so many rows, or in two for each of its devices.
    """
    own, left = divmod(training.step_rows(layout), layout.data_size)
    if left:
        return
    rows = max(each for each in divisors(own) if each <= training.rows)
    numbers: set[int | None] = {None}
    if layout.pipeline > 1:
        numbers = {own // rows, layout.pipeline_micro_batches}
        rows = own
    for number in numbers:
        run, found = training.with_batches(rows, own // rows), replace(layout, micro_batches=number)
        with suppress(CallError):
            require_plannable(run, found, device)
            yield run, found


def fastest(
    training: Training, device: DeviceKind, devices: int, assumed: Assumptions = Assumptions()
) -> tuple[Plan | None, Plan | None]:
    """The plan with the shortest time per token that fits, and the one that is closest to fitting.

    Args:
        training: What is trained.
        device: On what.
        devices: How many there are.
        assumed: What is assumed of the device.

    Returns:
        Of two equally fast plans the first is the one with fewer axes. Either is None if there is none; the second is
        of interest only where the first is None.
    """
    best = closest = None
    usable = device.memory * assumed.share_of_memory
    for divide_rows in (False, True):  # dividing rows makes each layer wait, so it is tried where nothing else fits
        for run, layout in layouts(training, device, devices, divide_rows=divide_rows):
            spare = usable - rank_memory(run, layout).total  # of the stage with the most in flight
            if spare < 0 and closest is not None and spare < closest.spare:
                continue
            made = plan(run, layout, device, assumed, every_stage=False)
            if closest is None or made.spare > closest.spare:
                closest = made
            if made.fits and (best is None or _order(made) < _order(best)):
                best = made
        if best is not None:
            break
    best, closest = (
        None if found is None else plan(found.training, found.layout, device, assumed) for found in (best, closest)
    )
    return best, closest


def _order(made: Plan) -> tuple[float, int]:
    """What a search compares: seconds per token to 3 digits, then the number of axes in use."""
    seconds = made.time.total / made.tokens
    axes = len(made.traffic)
    return float(f"{seconds:.2e}"), axes


def fewest(training: Training, device: DeviceKind, assumed: Assumptions = Assumptions()) -> Plan:
    """The fastest plan on the fewest devices, doubling from 1, that fit.

    Raises:
        CallError: Not even the most do; the message says by how much.
    """
    devices, closest = 1, None
    while devices <= MOST_DEVICES:
        best, near = fastest(training, device, devices, assumed)
        if best is not None:
            return best
        if near is not None and (closest is None or near.spare > closest.spare):
            closest = near
        devices *= 2
    lacking = (
        "no layout divides the model" if closest is None else f"the closest lacks {-closest.spare / 2**30:,.1f} GiB"
    )
    raise CallError(f"the model does not fit {MOST_DEVICES:,} {device.name}: {lacking}")
