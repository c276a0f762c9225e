"""The device that a command runs a model on."""

import torch

from lightning_gpt.errors import CallError


def named_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        CallError: The name is none of these, or this machine has no such device.
    """
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in here:
        raise CallError(f"device is {name!r}; allowed on this machine: {', '.join(here)}")
    return torch.device(wanted)
