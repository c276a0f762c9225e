"""The Trainer's options: our defaults, and the range of each option that has one.

Lightning takes some values out of range as they are: a negative ``gradient_clip_val`` or ``accumulate_grad_batches``
turns the gradient around.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from lightning_gpt.errors import CallError
from lightning_gpt.options import shown

TRAINER_DEFAULTS = {
    "num_sanity_val_steps": -1,  # the whole validation split once before training: the loss to start from
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,  # RunSummary says more
}

_MOST = 10**12
_MOST_DEVICES = 1024
_DURATION = "a duration above 0 as DD:HH:MM:SS, or a mapping such as {hours: 8}"


class Allowed(NamedTuple):
    """The values that an option may have."""

    words: str
    """The values in words."""
    holds: Callable[[Any], bool]
    """Whether a value is one of them. A value has the option's type already."""


def _is_whole(value: Any, lowest: int, highest: int = _MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _whole(lowest: int, highest: int = _MOST) -> Allowed:
    return Allowed(f"a whole number from {lowest} to {highest:,}", lambda value: _is_whole(value, lowest, highest))


def _limit(lowest: int) -> Allowed:
    """A number of batches, or a fraction of all; either may be 0 if ``lowest`` is."""
    fraction = "from 0 to 1" if lowest == 0 else "above 0 and up to 1"
    return Allowed(
        f"a whole number from {lowest} to {_MOST:,}, or a fraction (with a decimal point) {fraction}",
        lambda value: _is_whole(value, lowest) or (isinstance(value, float) and _is_fraction(value, lowest)),
    )


def _is_fraction(value: float, lowest: int) -> bool:
    return value <= 1 and (value > 0 or (value == 0 and lowest == 0))


def _is_duration(value: Any) -> bool:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,6}):([0-9]{2}):([0-9]{2}):([0-9]{2})", value)
        return found is not None and any(int(part) for part in found.groups())
    try:
        value = timedelta(**value) if isinstance(value, Mapping) else value
    except (TypeError, OverflowError, ValueError):
        return False
    return isinstance(value, timedelta) and value > timedelta()


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        if value in ("auto", "-1"):
            return True
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*,?", value):
            return False
        numbers = [int(part) for part in value.split(",") if part]
        value = numbers if "," in value else numbers[0]
    if isinstance(value, list):
        return 0 < len(value) == len(set(value)) <= _MOST_DEVICES and all(_is_whole(number, 0) for number in value)
    return _is_whole(value, 1, _MOST_DEVICES) or (_is_whole(value, -1) and value == -1)


_OR_NO_LIMIT = Allowed(
    f"-1 for no limit, or a whole number from 1 to {_MOST:,}", lambda value: value == -1 or _is_whole(value, 1)
)

TRAINER_RANGES: dict[str, Allowed] = {
    "max_steps": _OR_NO_LIMIT,
    "max_epochs": _OR_NO_LIMIT,
    "min_steps": _whole(0),
    "min_epochs": _whole(0),
    "max_time": Allowed(_DURATION, _is_duration),
    "limit_train_batches": _limit(1),
    "limit_val_batches": _limit(0),
    "limit_test_batches": _limit(0),
    "limit_predict_batches": _limit(0),
    "overfit_batches": _limit(0),
    "fast_dev_run": Allowed(
        f"true, false or a whole number from 0 to {_MOST:,}",
        lambda value: isinstance(value, bool) or _is_whole(value, 0),
    ),
    "val_check_interval": Allowed(
        f"{_limit(1).words}, or {_DURATION}", lambda value: _limit(1).holds(value) or _is_duration(value)
    ),
    "check_val_every_n_epoch": _whole(1),
    "num_sanity_val_steps": Allowed(
        f"-1 for all, or a whole number from 0 to {_MOST:,}", lambda value: _is_whole(value, -1)
    ),
    "log_every_n_steps": _whole(0),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": Allowed(
        "a finite number of at least 0; 0 and null do not clip", lambda value: math.isfinite(value) and value >= 0
    ),
    "gradient_clip_algorithm": Allowed("'norm' or 'value'", lambda value: value in ("norm", "value")),
    "reload_dataloaders_every_n_epochs": _whole(0),
    "devices": Allowed(
        f"'auto', -1 for all, a whole number from 1 to {_MOST_DEVICES:,}, or a list of different device numbers",
        _are_devices,
    ),
    "num_nodes": _whole(1, 100_000),
}
"""The range of each Trainer option that has one. null, where the option's type allows it, is always in range."""


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse Trainer options that are out of range.

    Args:
        options: Values by the Trainer's names, each of the option's type.

    Raises:
        CallError: A value is out of range; the message names the option and its range.
    """
    for name, allowed in TRAINER_RANGES.items():
        value = options.get(name)
        if value is not None and not allowed.holds(value):
            # whether the parser makes -1 or -1.0 of -1 depends on which of int | float and float | int was seen first
            given = int(value) if isinstance(value, float) and value.is_integer() else value
            raise CallError(f"trainer.{name} is {shown(given)}; it must be {allowed.words}")
