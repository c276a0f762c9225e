"""Float64 beside devices that have none."""

import torch
from torch import Tensor

WITHOUT_DOUBLE = {"mps"}
"""Types of devices that refuse tensors of float64."""


def has_double(device: torch.device | None) -> bool:
    """Whether the device (None: the default one) computes in float64."""
    return (torch.get_default_device() if device is None else device).type not in WITHOUT_DOUBLE


def double(x: Tensor) -> Tensor:
    """``x`` in float64: where it is, or on the CPU if its device has none."""
    return x.double() if has_double(x.device) else x.cpu().double()
