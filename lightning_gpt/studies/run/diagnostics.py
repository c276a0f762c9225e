"""The depth diagnostics of a run by layer: reading them from its ``depth.json``, and what they are called."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gpt.analysis.depth import Diagnostic


def diagnostic(name: str) -> "Diagnostic":
    """The diagnostic called ``name``.

    Imports torch, so it is for the report, and for the process that checks the study.

    Raises:
        CallError: Where there is none of that name.
    """
    from lightning_gpt.analysis.depth import DIAGNOSTICS
    from lightning_gpt.errors import CallError

    if name not in DIAGNOSTICS:
        raise CallError(f"report: unknown diagnostic {name!r}; known are {', '.join(DIAGNOSTICS)}")
    return DIAGNOSTICS[name]


def read_layers(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``depth.json`` by step: ``{"step": 0, "token_cosine": [value of each layer]}``.

    A value per head is averaged over the heads. No file gives no entries: a run without the diagnostics has none.
    """
    try:
        content = json.loads((run / "depth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = content if isinstance(content, list) else []
    read = [_entry(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    return sorted(read, key=lambda entry: int(entry["step"]))


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    layers = {name: [_mean(each) for each in value] for name, value in entry.items() if isinstance(value, list)}
    return {"step": entry["step"], **layers}


def _mean(value: Any) -> float | None:
    """The mean of a number or of nested lists of them; None where one is missing or not finite."""
    if isinstance(value, list):
        parts = [_mean(each) for each in value]
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if parts and len(known) == len(parts) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
