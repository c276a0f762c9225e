"""The learning rate, and the batch, over the optimizer steps of a run."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]


def warmed_up(step: int, warmup_steps: int) -> float:
    """The share of the peak that a linear warm-up has reached at ``step`` (0 is the first): all of it at its end."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def decayed(progress: float, shape: Literal["cosine", "linear", "1-sqrt"], final: float) -> float:
    """A decay from 1, where ``progress`` is 0, to ``final``, where it is 1.

    ``cosine``: half a period, Loshchilov & Hutter 2017 (1608.03983), eq. 5. ``1-sqrt``: ``1 − √progress``, Hägele et
    al. 2024 (2405.18392), eq. 1.
    """
    remaining = {
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
        "1-sqrt": 1 - math.sqrt(progress),
    }[shape]
    return final + (1 - final) * remaining


@dataclass(frozen=True)
class Stage:
    """From optimizer step ``first`` (0 is the first of the run) on, a step has ``accumulate`` micro-batches."""

    first: int
    accumulate: int


def batch_stages(accumulate: int, warmup_steps: int) -> tuple[Stage, ...]:
    """How the batch grows to ``accumulate`` micro-batches within about ``warmup_steps`` optimizer steps.

    The sizes are 1 and then one prime factor more each time (12: 1, 2, 4, 12), so that each divides the next, and each
    but the last is held for an equal number of steps: Brown et al. 2020 (2005.14165), appendix B, grow the batch
    gradually too. A stage is lengthened by as few steps as let it end where a step of the next size may begin, which is
    at a multiple of that size: then a step never crosses an epoch, nor a validation the middle of a step.
    """
    sizes = [1]
    while sizes[-1] < accumulate:
        left = accumulate // sizes[-1]
        sizes.append(sizes[-1] * next(factor for factor in range(2, left + 1) if left % factor == 0))
    each = math.ceil(warmup_steps / max(1, len(sizes) - 1))
    stages, step, micro_batches = [], 0, 0
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        stages.append(Stage(step, size))
        if following is not None:
            steps = each
            while (micro_batches + steps * size) % following:
                steps += 1
            step, micro_batches = step + steps, micro_batches + steps * size
    return tuple(stages)


def accumulated_at(stages: tuple[Stage, ...], step: int) -> int:
    """Micro-batches in optimizer step ``step``."""
    return next(stage.accumulate for stage in reversed(stages) if step >= stage.first)
