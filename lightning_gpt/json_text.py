"""JSON that every parser reads: a number that is not finite is written as null, because JSON has none for it."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """The text of plain values; NaN and infinite numbers become null.

    Args:
        content: Numbers, text, booleans, None, and lists and mappings of these.
        indent: Spaces per level; all on one line when None.
        ascii_only: Whether to escape all other characters, also half a surrogate pair, which UTF-8 cannot hold.
    """
    return json.dumps(_finite(content), ensure_ascii=ascii_only, allow_nan=False, indent=indent)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
