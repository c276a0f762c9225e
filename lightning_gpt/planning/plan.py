"""A layout on a device: memory, communication and time together, and whether it fits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.options import ShareAboveZero
from lightning_gpt.parallel.layout import Axis, Layout
from lightning_gpt.parallel.suited import require_device, require_rows, require_suited
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
        training: What is trained, with the batches of this layout.
        layout: The layout.
        device: The kind of device.
        stages: Memory of the devices of each stage.
        traffic: What a device of the busiest stage sends, by axis.
        time: The time of a step.
        tokens: Tokens of a step over all devices.
        flops: FLOPs of a step over all devices, without what is recomputed.
        usable: Bytes of a device that can be used.
    """

    training: Training
    layout: Layout
    device: DeviceKind
    stages: tuple[RankMemory, ...]
    traffic: Mapping[Axis, Traffic]
    time: StepTime
    tokens: int
    flops: float
    usable: float

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step in one process."""
        return self.training.micro_batches(self.layout)

    @property
    def rows(self) -> int:
        """Rows of a micro-batch in one process."""
        return self.training.micro_rows(self.layout)

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
            "batch_size": self.training.rows,
            "batches": self.training.batches(self.layout),
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
    require_plannable(training, layout, device)
    numbers = range(layout.pipeline) if every_stage else sorted({0, layout.pipeline - 1})
    stages = tuple(rank_memory(training, layout, stage) for stage in numbers)
    busiest = max(
        (traffic(training, layout, device, stage) for stage in {0, layout.pipeline // 2, layout.pipeline - 1}),
        key=lambda by_axis: sum(each.seconds for each in by_axis.values()),
    )
    tokens = training.step_rows(layout) * training.time
    return Plan(
        training=training,
        layout=layout,
        device=device,
        stages=stages,
        traffic=busiest,
        time=step_time(training, layout, device, assumed.share_of_peak),
        tokens=tokens,
        flops=tokens * training.flops,
        usable=device.memory * assumed.share_of_memory,
    )


def require_plannable(training: Training, layout: Layout, device: DeviceKind) -> None:
    """Refuse a layout that ``fit`` would refuse for the model or the batch.

    Raises:
        CallError: The model or the batch cannot be divided as the layout asks.
    """
    if not layout.is_copies:
        if training.copies_only:
            raise CallError(
                f"this training needs a copy of the model on every device, and {layout.described()} divides it"
            )
        require_suited(training.model, layout, training.compiles)
    require_rows(layout, training.rows, predicts=False)
    require_device(layout, device.type)
    training.batches(layout)
