"""The device mesh of a layout, and the groups of processes that its axes form."""

from collections.abc import Sequence

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lightning_gpt.parallel.layout import AXES, Axis, Layout


class Mesh:
    """The processes of a layout; made once in each of them, after the process group.

    Args:
        layout: Its sizes; their product is the number of processes.
        device: Type of the devices: ``cpu`` or ``cuda``.
    """

    def __init__(self, layout: Layout, device: str) -> None:
        self.layout = layout
        self.devices: DeviceMesh = init_device_mesh(device, tuple(map(layout.size, AXES)), mesh_dim_names=AXES)
        self.rank = dist.get_rank()
        self.place = layout.coordinates(self.rank)

    @property
    def data_rank(self) -> int:
        """Which share of the rows this process reads."""
        return self.layout.data_rank(self.rank)

    @property
    def data_size(self) -> int:
        """How many shares of the rows there are."""
        return self.layout.data_size

    def size(self, axis: Axis) -> int:
        """The number of processes along an axis."""
        return self.layout.size(axis)

    def axis(self, axis: Axis) -> DeviceMesh:
        """The processes that differ from this one in ``axis`` alone."""
        return self.devices[axis]

    def group(self, axis: Axis) -> dist.ProcessGroup:
        """The process group of an axis."""
        return self.axis(axis).get_group()

    def several(self, axes: Sequence[Axis], name: str) -> DeviceMesh:
        """The processes that differ from this one in ``axes`` alone, as one axis called ``name``."""
        return self.devices[tuple(axes)]._flatten(name)
