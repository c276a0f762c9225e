"""The layer diagnostics of a run by layer, read from its ``layers.json``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_layers(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``layers.json``, by step: ``{"step": 0, "token_cosine": [value of each layer]}``.

    A value per head is averaged over the heads. A run without the diagnostics has no such file, and so no entries.
    """
    try:
        content = json.loads((run / "layers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = content if isinstance(content, list) else []
    read = [_entry(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    return sorted(read, key=lambda entry: int(entry["step"]))


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    layers = {name: [_mean(each) for each in value] for name, value in entry.items() if isinstance(value, list)}
    return {"step": entry["step"], **layers}


def _mean(value: Any) -> float | None:
    """The mean of a number or of nested lists of numbers; None where one is missing or not finite."""
    if isinstance(value, list):
        parts = [_mean(each) for each in value]
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if parts and len(known) == len(parts) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
