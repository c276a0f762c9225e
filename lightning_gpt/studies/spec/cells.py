"""The cells of a study: one complete ``fit`` configuration for each combination of variants, axes and seeds."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

VARIANT = "variant"
"""The key of the axis that named variants form."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        number: Its position in the study, from 0.
        name: Its name, such as ``n_layer=4,seed=0``.
        settings: Its value on each axis, without the seed.
        seed: Its value of ``seed_everything``.
        config: Its complete configuration for ``fit``.
    """

    number: int
    name: str
    settings: dict[str, Any]
    seed: int
    config: dict[str, Any]

    def without(self, key: str) -> dict[str, Any]:
        """Its settings on all axes but one."""
        return {axis: value for axis, value in self.settings.items() if axis != key}

    @property
    def digest(self) -> str:
        """A short hash of the configuration: changing the configuration makes it another cell."""
        canonical = json.dumps(self.config, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    @property
    def folder(self) -> str:
        """The name of its folder, valid on any file system: name and digest."""
        safe = re.sub(r"[^\w.=,+-]+", "-", self.name)
        return f"{safe[:80]}-{self.digest}"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``over``: mappings are merged key by key, anything else is replaced."""
    result = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(result.get(key), dict) and isinstance(value, Mapping)
        result[key] = merged(result[key], value) if both else deepcopy(value)
    return result


def with_keys(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with dotted keys set: ``{"model.init_args.n_layer": 4}``."""
    result = dict(config)
    for key, value in values.items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = merged(result, nested)
    return result


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where the key is missing."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest unique ending of each dotted key: ``n_layer`` for ``model.init_args.n_layer``."""
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [other for other in keys if other != key]
        unique = (end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others))
        names[key] = next(unique, key)  # a key that is the end of another is no whole key, which fit will say
    return names


def is_number(value: Any) -> bool:
    """Whether a setting is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def setting_text(value: Any) -> str:
    """A setting's value as YAML writes it."""
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def setting_id(settings: Mapping[str, Any]) -> str:
    """What tells a setting from the others of its study."""
    return repr(list(settings.items()))


def make_cells(
    config: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    last: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = lambda settings, config: {},
) -> list[Cell]:
    """All cells, ordered by setting and then by seed; axes override variants, and variants override ``config``.

    ``last`` gives the dotted keys that are set after them, from a setting and its configuration.
    """
    cells: list[Cell] = []
    names = short_names([*([VARIANT] if variants else []), *grid])
    for settings in _settings(grid, variants):
        overrides = {**variants.get(settings.get(VARIANT, ""), {})}
        overrides |= {key: value for key, value in settings.items() if key != VARIANT}
        for seed in seeds:
            parts = [f"{names[key]}={setting_text(value)}" for key, value in settings.items()]
            name = ",".join([*parts, f"seed={seed}"])
            whole = with_keys(config, {**overrides, "seed_everything": seed})
            whole = with_keys(whole, last(settings, whole))
            cells.append(Cell(len(cells), name, settings, seed, whole))
    return cells


def _settings(grid: Mapping[str, Sequence[Any]], variants: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    axes = {**({VARIANT: list(variants)} if variants else {}), **grid}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
