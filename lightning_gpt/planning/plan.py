"""A layout on a device: memory, communication and time together, and whether it fits."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.options import ShareAboveZero
from lightning_gpt.parallel.layout import Axis, Layout
from lightning_gpt.parallel.suited import require_suited
from lightning_gpt.planning.communication import Traffic, traffic
from lightning_gpt.planning.devices import DeviceKind
from lightning_gpt.planning.memory import RankMemory, rank_memory
from lightning_gpt.planning.speed import StepTime, step_time
from lightning_gpt.planning.training import Training

SHARE_OF_PEAK = 0.5
"""Rate of matrix products, as a share of a device's peak, where nothing else is said."""
SHARE_OF_MEMORY = 0.92
"""What the libraries and the allocator leave of a device's memory, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan assumes of a device.

    Args:
        share_of_peak: Rate of matrix products, as a share of the device's peak.
        share_of_memory: Share of the device's memory that a process can use.
    """

    share_of_peak: ShareAboveZero = SHARE_OF_PEAK
    share_of_memory: ShareAboveZero = SHARE_OF_MEMORY


@dataclass(frozen=True)
class Plan:
    """One layout of a training on one kind of device.

    Args:
        layout: The layout.
        device: The kind of device.
        stages: Memory of the devices of each stage.
        traffic: What a device of the busiest stage sends, by axis.
        time: The time of a step.
        rows: Rows of a micro-batch in one process.
        micro_batches: Micro-batches of a step in one process.
        tokens: Tokens of a step over all devices.
        flops: FLOPs of a step over all devices, without what is recomputed.
        usable: Bytes of a device that can be used.
    """

    layout: Layout
    device: DeviceKind
    stages: tuple[RankMemory, ...]
    traffic: Mapping[Axis, Traffic]
    time: StepTime
    rows: int
    micro_batches: int
    tokens: int
    flops: float
    usable: float

    @property
    def fullest(self) -> RankMemory:
        """Memory of the devices of the fullest stage."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def spare(self) -> float:
        """Bytes that are left on the fullest device; negative if it does not fit."""
        return self.usable - self.fullest.total

    @property
    def fits(self) -> bool:
        """Whether every device holds its part."""
        return self.spare >= 0

    @property
    def tokens_per_second(self) -> float:
        """Over all devices."""
        return self.tokens / self.time.total

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation: without what is recomputed, as a share of the peak."""
        return self.flops / self.time.total / self.layout.devices

    def as_data(self) -> dict[str, Any]:
        """Plain values, for JSON; bytes and seconds."""
        return {
            "layout": self.layout.options(),
            "devices": self.layout.devices,
            "device": self.device.name,
            "fits": self.fits,
            "spare_bytes": self.spare,
            "memory": [{**stage.parts(), "host": stage.host, "total": stage.total} for stage in self.stages],
            "traffic": {axis: {**asdict(each), "sent": each.sent} for axis, each in self.traffic.items()},
            "step_seconds": {**asdict(self.time), "total": self.time.total},
            "rows": self.rows,
            "micro_batches": self.micro_batches,
            "tokens_per_step": self.tokens,
            "tokens_per_second": self.tokens_per_second,
        }


def plan(
    training: Training,
    layout: Layout,
    device: DeviceKind,
    assumed: Assumptions = Assumptions(),
    *,
    every_stage: bool = True,
) -> Plan:
    """Plan a layout.

    Args:
        training: What is trained.
        layout: How; its data axis has a size.
        device: On what.
        assumed: What is assumed of the device.
        every_stage: Whether memory is planned for every stage, or for the first and the last, which are the fullest.

    Raises:
        CallError: The model or the batch cannot be divided as the layout asks, or the device has no units for the
            precision.
    """
    refused = next(refusals(training, layout), None)
    if refused is not None:
        raise CallError(refused)
    numbers = range(layout.pipeline) if every_stage else sorted({0, layout.pipeline - 1})
    stages = tuple(rank_memory(training, layout, stage) for stage in numbers)
    busiest = max(
        (traffic(training, layout, device, stage) for stage in {0, layout.pipeline // 2, layout.pipeline - 1}),
        key=lambda by_axis: sum(each.seconds for each in by_axis.values()),
    )
    tokens = training.step_rows(layout) * training.time
    return Plan(
        layout=layout,
        device=device,
        stages=stages,
        traffic=busiest,
        time=step_time(training, layout, device, assumed.share_of_peak),
        rows=training.micro_rows(layout),
        micro_batches=training.micro_batches(layout),
        tokens=tokens,
        flops=tokens * training.flops,
        usable=device.memory * assumed.share_of_memory,
    )


def refusals(training: Training, layout: Layout) -> Iterator[str]:
    """Why a model or a batch cannot be divided as a layout asks, a line each."""
    stages, c, e = layout.pipeline, layout.context, layout.expert
    try:
        require_suited(training.model, layout)
    except CallError as error:
        yield str(error)
    if stages > training.layers:
        yield f"parallel.pipeline is {stages}, but the model has {training.layers} layers"
    if c > 1 and training.time % (2 * c):
        yield f"parallel.context {c} needs a block_size that is a multiple of {2 * c}; it is {training.time}"
    if e > 1 and not training.experts:
        yield f"parallel.expert is {e}, but the model has no mixture of experts"
    for number in training.experts:
        if number % e:
            yield f"parallel.expert is {e}; it must divide n_expert, which is {number}"
    try:
        training.micro_batches(layout)
    except CallError as error:
        yield str(error)
