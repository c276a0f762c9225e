"""What makes settings equal: the steps for equal tokens or FLOPs, or the width for equal parameters."""

from collections.abc import Mapping
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.studies.spec.cells import value_at

AMOUNTS: dict[str, str] = {"tokens": "tokens", "flops": "FLOPs"}
"""What can be made equal by the number of steps, and its name in a sentence."""

PARAMETERS = "parameters"
"""What can be made equal by the width."""

STEP_KEYS = ("trainer.max_steps", "trainer.val_check_interval")
"""The options that are set for equal tokens or FLOPs."""

BATCH_WARMUP = "model.init_args.optimization.batch_warmup"
"""The option that makes the batches of the first steps smaller."""

WIDTH_KEY = "model.init_args.dim"
"""The option that is set for equal parameters."""

StepWork = Mapping[str, float]
"""Tokens and FLOPs of an optimizer step, by their keys in AMOUNTS; for equal parameters, the width by WIDTH_KEY."""


def amount_of(config: Mapping[str, Any], work: StepWork, equal: str) -> float:
    """Tokens or FLOPs of the whole training that a configuration describes."""
    return _plan(config)[0] * work[equal]


def steps_for(config: Mapping[str, Any], work: StepWork, equal: str, amount: float) -> dict[str, Any]:
    """The keys that give a configuration the steps for an amount, with as many validations, the last at the end.

    The steps are a multiple of the validations, and so up to half their number away from the amount.
    """
    steps, interval, each = _plan(config)
    validations = steps * each // interval
    apart = max(1, round(amount / work[equal] / validations))
    return dict(zip(STEP_KEYS, (validations * apart, apart * each), strict=True))


def _plan(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Optimizer steps, micro-batches between validations and micro-batches per step of a configuration."""
    steps, interval = (value_at(config, key) for key in STEP_KEYS)
    each = value_at(config, "trainer.accumulate_grad_batches") or 1
    whole = isinstance(steps, int) and isinstance(interval, int) and steps > 0 and interval > 0
    if not whole or value_at(config, "data.global_batch") is not None or steps * each % interval or interval % each:
        raise CallError(
            "equal needs trainer.max_steps, a trainer.val_check_interval that divides it, and data.batch_size, not "
            "data.global_batch"
        )
    return steps, interval, each
