"""The sizes of a layout: how many devices each axis has, and which coordinates a process has on them."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from lightning_gpt.errors import CallError
from lightning_gpt.options import Range, Rows, check_options

Axis = Literal["pipeline", "data", "shard", "expert", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "shard", "expert", "context", "tensor")
"""From the outermost to the innermost: ranks that differ in the tensor axis alone are neighbours."""
DATA_AXES: tuple[Axis, ...] = ("data", "shard", "expert")
"""Processes that differ in one of these read different rows; all others read the same."""
Schedule = Literal["1f1b", "interleaved", "zero_bubble"]
Size = Annotated[int, Range(1, 2**20)]

_MOST_SUGGESTED = 3
_OPTIONS_OF_AXES: dict[str, Axis] = {
    "schedule": "pipeline",
    "micro_batches": "pipeline",
    "reshard": "shard",
    "offload": "shard",
}


def divisors(number: int) -> list[int]:
    """The whole numbers that divide ``number``, from 1."""
    return [each for each in range(1, number + 1) if number % each == 0]


@dataclass(frozen=True)
class Layout:
    """How a training is spread over devices; the ``parallel`` section of a config.

    The product of the sizes is the number of devices.

    Args:
        pipeline: Stages that the layers are divided into.
        data: Copies of the model that are trained on different rows; ``auto`` takes the devices that are left.
        shard: Devices that share the weights, gradients and optimizer state of one copy (FSDP2), each with rows of
            its own. With ``data`` above 1 the layout is hybrid sharding.
        context: Devices that share the tokens of each row.
        tensor: Devices that share each matrix.
        expert: Devices that share the experts of each mixture, each with rows of its own.
        sequence: Whether the tensor axis also divides the residual stream, along the tokens (sequence parallel,
            Korthikanti et al. 2022, 2205.05198).
        schedule: Order of a pipeline's micro-batches.
        micro_batches: Micro-batches that a pipeline divides a batch into; null takes twice the number of its devices.
        reshard: Whether the gathered weights of a block are freed after its forward pass and gathered again for the
            backward pass, which saves memory and costs communication.
        offload: Whether the shards wait in the memory of the CPU.

    Raises:
        CallError: An option is of the wrong type or out of its range.
    """

    pipeline: Size = 1
    data: Size | Literal["auto"] = "auto"
    shard: Size = 1
    context: Size = 1
    tensor: Size = 1
    expert: Size = 1
    sequence: bool = False
    schedule: Schedule = "1f1b"
    micro_batches: Rows | None = None
    reshard: bool = True
    offload: bool = False

    def __post_init__(self) -> None:
        check_options(type(self), vars(self), "parallel.")
        if self.sequence and self.tensor == 1:
            raise CallError("parallel.sequence divides the stream over the tensor axis, but parallel.tensor is 1")

    def size(self, axis: Axis) -> int:
        """The size of an axis.

        Raises:
            ValueError: ``data`` is still ``auto``; call :meth:`on` first.
        """
        size = getattr(self, axis)
        if size == "auto":
            raise ValueError("the size of the data axis is not known before the number of devices")
        assert isinstance(size, int)
        return size

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(map(self.size, AXES))

    @property
    def is_chosen(self) -> bool:
        """Whether an axis was given more than one device, so that the layout is set here and not by the trainer."""
        return any(getattr(self, axis) not in (1, "auto") for axis in AXES)

    def refuse_unused(self) -> None:
        """Refuse options that would change nothing, because their axis has one device.

        Raises:
            CallError: There is such an option.
        """
        for option, axis in _OPTIONS_OF_AXES.items():
            value = getattr(self, option)
            if value != getattr(Layout, option) and self.size(axis) == 1:
                given = str(value).lower()  # as YAML has it
                raise CallError(
                    f"parallel.{option} is {given}, which changes nothing while parallel.{axis} is 1: leave it out, or "
                    f"set parallel.{axis}"
                )

    def on(self, devices: int) -> "Layout":
        """The layout with the size of its data axis filled in.

        Raises:
            CallError: The product of the sizes is not ``devices``; the message names layouts that would work.
        """
        others = math.prod(self.size(axis) for axis in AXES if axis != "data")
        layout = self
        if self.data == "auto" and devices % others == 0:
            layout = replace(self, data=devices // others)
        if layout.data == "auto" or layout.devices != devices:
            product = others if self.data == "auto" else layout.devices
            multiple = "a multiple of " if self.data == "auto" else ""
            plural = "s" * (product != 1)
            works = "; ".join(each.described() for each in itertools.islice(self._nearby(devices), _MOST_SUGGESTED))
            raise CallError(
                f"parallel ({self.described()}) needs {multiple}{product} device{plural}, but there are {devices}; "
                f"for {devices}: {works}"
            )
        return layout

    def _nearby(self, devices: int) -> Iterator["Layout"]:
        """Layouts for ``devices`` that keep the chosen axes as far as they can."""
        chosen = [axis for axis in AXES if axis != "data" and self.size(axis) > 1]
        found = set()
        for keep in range(len(chosen), -1, -1):
            for axes in itertools.combinations(chosen, keep):
                sizes: dict[str, Any] = dict.fromkeys(AXES, 1)
                left = devices
                for axis in axes:
                    sizes[axis] = math.gcd(left, self.size(axis))
                    left //= sizes[axis]
                layout = replace(self, **{**sizes, "data": left, "sequence": self.sequence and sizes["tensor"] > 1})
                if layout not in found:
                    found.add(layout)
                    yield layout

    @property
    def is_copies(self) -> bool:
        """Whether every device has a copy of the whole model and whole rows of its own."""
        return all(self.size(axis) == 1 for axis in AXES if axis != "data")

    @property
    def pipeline_micro_batches(self) -> int:
        """Micro-batches that a pipeline divides each batch into; 1 without a pipeline."""
        if self.pipeline == 1:
            return 1
        return 2 * self.pipeline if self.micro_batches is None else self.micro_batches

    @property
    def data_size(self) -> int:
        """The number of processes that read different rows."""
        return math.prod(map(self.size, DATA_AXES))

    def coordinates(self, rank: int) -> dict[Axis, int]:
        """The place of a process on each axis."""
        place: dict[Axis, int] = {}
        for axis in reversed(AXES):
            rank, place[axis] = divmod(rank, self.size(axis))
        return place

    def data_rank(self, rank: int) -> int:
        """Which of the ``data_size`` shares of the rows a process reads."""
        place, number = self.coordinates(rank), 0
        for axis in DATA_AXES:
            number = number * self.size(axis) + place[axis]
        return number

    def described(self) -> str:
        """The axes in words: ``pipeline 2 × data 2``; ``1 device`` if there is one."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        words = [f"{axis} {size}" for axis, size in sizes.items() if size not in (1, "auto")]
        return " × ".join(words) or ("data auto" if self.data == "auto" else "1 device")

    def options(self) -> dict[str, object]:
        """The layout as a mapping, as it stands in a config."""
        return asdict(self)
