"""Learning rate and batch size as functions of the optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]


def warmed_up(step: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at ``step`` (0 is the first) of a linear warm-up.

    It is ``(step + 1) / warmup_steps``: the first step already has 1/W of the peak, the last of the W steps all of it.
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def decayed(progress: float, shape: Literal["cosine", "linear", "1-sqrt"], final: float) -> float:
    """A decay from 1 at ``progress`` 0 to ``final`` at ``progress`` 1.

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
    """From optimizer step ``first`` onwards (0 is the run's first), a step has ``accumulate`` micro-batches."""

    first: int
    accumulate: int


def batch_stages(accumulate: int, warmup_steps: int) -> tuple[Stage, ...]:
    """Stages by which the batch grows to ``accumulate`` micro-batches in about ``warmup_steps`` optimizer steps.

    The sizes start at 1 and gain one prime factor at a time (12: 1, 2, 4, 12), so that each divides the next. Each
    size but the last is held for an equal number of steps. Brown et al. 2020 (2005.14165), appendix B, also grow the
    batch gradually. A stage is lengthened by the fewest steps after which the micro-batches done are a multiple of the
    next size. No step then crosses the end of an epoch, and no validation falls inside a step.
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
    """The number of micro-batches in optimizer step ``step``."""
    return next(stage.accumulate for stage in reversed(stages) if step >= stage.first)
