"""Time of an optimizer step, and how many tokens a model of a size is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_gpt.parallel.layout import Axis, Layout
from lightning_gpt.parallel.stages import layers_of_process
from lightning_gpt.planning.communication import Traffic, traffic
from lightning_gpt.planning.devices import DeviceKind
from lightning_gpt.planning.flops import BACKWARD
from lightning_gpt.planning.memory import CHUNKS
from lightning_gpt.planning.tracing import iteration_dtype, weight_dtype
from lightning_gpt.planning.training import Training
from lightning_gpt.planning.weights import Weight, weights_of_stage

EXPOSED: tuple[Axis, ...] = ("tensor", "context", "expert", "pipeline")
"""Axes whose communication a block waits for; that of the others runs beside the products."""
_ADAMW_NUMBERS = 7
"""Numbers that AdamW reads and writes per weight: weight, two moments (both ways each) and the gradient."""
_MUON_NUMBERS = 9
"""The same of Muon: weight (twice), momentum and direction (all both ways) and the gradient."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step on the slowest stage.

    Args:
        products: The matrix products, at the stated share of the peak, with what checkpointing recomputes.
        exposed: Communication that products wait for.
        hidden: Communication that runs beside the products.
        optimizer: The optimizer's step.
        bubble: Time in which stages of a pipeline wait for each other.
    """

    products: float
    exposed: float
    hidden: float
    optimizer: float
    bubble: float

    @property
    def total(self) -> float:
        """The step: communication beside the products counts where it takes longer than they do."""
        return max(self.products, self.hidden) + self.exposed + self.bubble + self.optimizer


def bubble_share(layout: Layout) -> float:
    """Idle time of a pipeline as a share of its working time.

    1F1B ``(p − 1) / m``; interleaved with v parts per device ``(p − 1) / (v m)`` (Narayanan et al. 2021, 2104.04473,
    section 2.2); zero bubble ZB-H1 a third of 1F1B's where the forward pass and the gradients of inputs and of
    weights take equal times (Qi et al. 2023, 2401.10241, table 1).
    """
    divisor = {"1f1b": 1, "interleaved": CHUNKS, "zero_bubble": 3}[layout.schedule]
    return (layout.pipeline - 1) / (divisor * layout.pipeline_micro_batches)


def stage_flops(training: Training, layout: Layout, stage: int) -> float:
    """FLOPs of a micro-batch's forward and backward pass on one device of a stage, with what is recomputed."""
    layers = layers_of_process(training.layers, layout, stage)
    forward = sum(training.layer_flops[layer][0] for layer in layers)
    again = {"block": forward, "attention": sum(training.layer_flops[layer][1] for layer in layers)}
    if stage == layout.pipeline - 1:
        forward += training.head_flops
    tokens = training.micro_rows(layout) * training.time
    return ((1 + BACKWARD) * forward + again.get(training.checkpointing, 0.0)) * tokens / layout.tensor / layout.context


def step_time(training: Training, layout: Layout, device: DeviceKind, share_of_peak: float) -> StepTime:
    """The time of an optimizer step.

    Args:
        training: What is trained.
        layout: How.
        device: On what.
        share_of_peak: The rate of matrix products, as a share of the device's peak.

    Raises:
        CallError: The device has no units for the precision, or the rows do not divide as the layout asks.
    """
    rate = device.rate(training.precision) * share_of_peak
    micro_batches = training.micro_batches(layout)
    slowest: StepTime | None = None
    for stage in sorted({0, layout.pipeline // 2, layout.pipeline - 1}):
        products = stage_flops(training, layout, stage) * micro_batches / rate
        by_axis = traffic(training, layout, device, stage)
        exposed, hidden = _seconds(by_axis, True), _seconds(by_axis, False)
        held = weights_of_stage(training.weights, training.layers, layout, stage, training.is_tied)
        values = sum(each.on_rank(layout) for each in held) / layout.shard
        if layout.offload:  # gradients go to the CPU's memory and weights come back
            exposed += 2 * values * weight_dtype(training.precision).itemsize / (min(device.link_gb_s, 64) * 1e9)
        updated = optimizer_seconds(training, held, layout, device, share_of_peak)
        bubble = (products + exposed) * bubble_share(layout)
        time = StepTime(products, exposed, hidden, updated, bubble)
        slowest = time if slowest is None or time.total > slowest.total else slowest
    assert slowest is not None
    return slowest


def optimizer_seconds(
    training: Training, held: Sequence[Weight], layout: Layout, device: DeviceKind, share_of_peak: float
) -> float:
    """The time of the optimizer's own step on a device that holds parts of the weights ``held``.

    Muon's iterations are products of whole matrices, which every device computes, whatever the layout.
    """
    numbers = products = 0.0
    for each in held:
        by_muon = training.optimizer == "muon" and each.is_hidden
        numbers += each.on_rank(layout) * (_MUON_NUMBERS if by_muon else _ADAMW_NUMBERS)
        products += training.newton_schulz_steps * each.iteration_flops if by_muon else 0.0
    moved = numbers / layout.shard * weight_dtype(training.precision).itemsize
    is_fp32 = iteration_dtype(training.precision) == torch.float32
    rate = device.rate("32-true" if is_fp32 else training.precision) * share_of_peak
    return moved / (device.memory_gb_s * 1e9) + products / rate


def _seconds(by_axis: Mapping[Axis, Traffic], exposed: bool) -> float:
    return sum(each.seconds for axis, each in by_axis.items() if (axis in EXPOSED) == exposed)


_A, _B, _ALPHA, _BETA = 406.4, 410.7, 0.34, 0.28
"""Of the loss ``E + A/N^α + B/D^β``: Hoffmann et al. 2022 (2203.15556), section 3.3, equation 10."""


def optimal_tokens(parameters: int) -> Mapping[str, float]:
    """Tokens for which a model of ``parameters`` is compute-optimal (Hoffmann et al. 2022, 2203.15556).

    ``20 per parameter``: approaches 1 and 2, where tokens and parameters grow alike (table 2, and table 3's ratio).
    ``fitted loss``: approach 3, equation 4, solved for the compute ``C = 6 N D`` whose best model has this size. It
    asks for more tokens at large sizes.
    """
    a = _BETA / (_ALPHA + _BETA)
    g = (_ALPHA * _A / (_BETA * _B)) ** (1 / (_ALPHA + _BETA))
    compute = 6 * (parameters / g) ** (1 / a)
    return {"20 per parameter": 20.0 * parameters, "fitted loss": compute / (6 * parameters)}
