"""Random numbers where processes that were seeded alike run different parts of one pass."""

import torch


def draw_apart(parts: int) -> list[int]:
    """One seed for each of ``parts`` parts of a pass: a function of the state of the CPU's generator, which moves on.

    Processes whose generators are in one state get the same seeds, whichever part they run.
    """
    return torch.randint(2**62, (parts,), device="cpu").tolist()


def seed_part(seed: int, device: torch.device) -> None:
    """Seed the generator of the CPU and that of ``device``.

    Args:
        seed: One of :func:`draw_apart`.
        device: Where the part runs.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
