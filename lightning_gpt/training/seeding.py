"""Seeding the random numbers of one micro-batch."""

import torch


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generator of the CPU and that of ``device``, and no other.

    ``torch.manual_seed`` gives these two the same seed, and also looks for every other accelerator that torch knows of.
    That takes 0.1 ms even in a build without any, too much to pay for every micro-batch.

    Args:
        seed: Any 64-bit integer.
        device: Where the model runs. Of several accelerators of its type the current one is seeded, which under
            Lightning is the process's own.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
