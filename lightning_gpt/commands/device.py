"""The device that a command runs a model on."""

import torch

from lightning_gpt.errors import CallError


def named_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:N``. ``mps`` lacks the double precision that draws and sums are made in.

    Raises:
        CallError: The name is none of these, or this machine has no such device.
    """
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    wanted = "cuda:0" if name == "cuda" else name
    if wanted == "mps":
        raise CallError(f"device is 'mps', which lacks double precision; allowed on this machine: {', '.join(here)}")
    if wanted not in here:
        raise CallError(f"device is {name!r}; allowed on this machine: {', '.join(here)}")
    return torch.device(wanted)
