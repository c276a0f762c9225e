"""What differs between two sets of named tensors, in a line."""

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by name."""


def differences(saved: Shapes, wanted: Shapes) -> str:
    """Every tensor that is missing, that is not expected, or that has another shape; empty if there is none.

    Args:
        saved: What there is.
        wanted: What there should be.
    """
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    shaped: dict[str, list[str]] = {}
    for name in wanted:
        if name in saved and tuple(saved[name]) != tuple(wanted[name]):
            shaped.setdefault(f"{_shape(saved[name])} and not {_shape(wanted[name])}", []).append(name)
    parts = [f"missing: {', '.join(grouped(missing))}"] if missing else []
    parts += [f"not expected: {', '.join(grouped(extra))}"] if extra else []
    parts += [f"of shape {shapes}: {', '.join(grouped(names))}" for shapes, names in shaped.items()]
    return "; ".join(parts)


def _shape(shape: Iterable[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def grouped(names: Iterable[str]) -> list[str]:
    """Names, those that differ in the number of their layer alone as one: ``blocks.0–3.norm.weight``.

    Args:
        names: Names that differ, such as the keys of a state dict.
    """
    numbers: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"\.(\d+)\.", name)
        pattern = name if found is None else f"{name[: found.start(1)]}{{}}{name[found.end(1) :]}"
        numbers.setdefault(pattern, []).extend([] if found is None else [int(found[1])])
    return [pattern.format(_ranges(sorted(each))) if each else pattern for pattern, each in numbers.items()]


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
