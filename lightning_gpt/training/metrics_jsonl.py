"""The format of ``metrics.jsonl``, the file in which a run keeps what it logged; imports no Lightning.

Each line is a JSON object: what was logged at one moment, under the tags that TensorBoard shows, and besides the tags

- ``step``: optimizer steps taken; ``steps``: how many the run is to take, null where that is unknown
- ``split``: the split that was being read: ``train``, ``val``, ``test`` or ``predict``
- ``rows``, ``tokens``: rows trained on so far, over all processes and sources, and their tokens (rows × block_size);
  null outside ``fit``
- ``seconds``: since ``fit`` began, start-up left out; a resumed run counts on from the step that it resumes from

A scalar that is NaN or infinite is null, because JSON has no number for it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_gpt.errors import CallError

FILE_NAME = "metrics.jsonl"
FIELDS = frozenset({"step", "steps", "split", "rows", "tokens", "seconds"})
"""What a line holds besides the scalars; a scalar logged under one of these names is not kept."""

Line = dict[str, Any]


def to_text(lines: Iterable[Line]) -> str:
    """The lines as they stand in the file, each ended by a newline."""
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def read_metrics(file: Path) -> list[Line]:
    """The lines of a ``metrics.jsonl``; none where there is no such file.

    What follows the last newline is a line cut short by a kill, and is left out.

    Raises:
        CallError: It holds something else; names the line.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    lines: list[Line] = []
    for number, raw in enumerate(content.split(b"\n")[:-1], 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            scalars_of(line)
            is_ours = isinstance(line["step"], int) and isinstance(line["seconds"], int | float)
        except (ValueError, LookupError, AttributeError, TypeError):
            is_ours = False
        if not is_ours:
            raise CallError(
                f"line {number} of {str(file)!r} is not a line of metrics: repair or delete it, or move the file away"
            )
        lines.append(line)
    return lines


def scalars_of(line: Line) -> dict[str, float]:
    """A line's scalars by tag; nan where the file has null."""
    return {
        tag: math.nan if value is None else float(value)
        for tag, value in line.items()
        if tag not in FIELDS and not isinstance(value, dict)
    }


def plain(value: Any) -> Any:
    """A logged value as JSON has it: a number, null, or a mapping of such."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
