"""How arrays reach the page: one JSON object, then the arrays' bytes, which the browser reads without a copy.

Four bytes hold the length of the JSON, little-endian. Its entry ``arrays`` says of each array its type, shape, and
place after the JSON, in bytes; each begins at a multiple of four.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_gpt.json_text import to_json

_TYPES = {"f": np.float32, "i": np.int32, "u": np.uint8, "b": np.uint8}


def packed(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """``content`` and ``arrays`` as the page's ``unpack`` reads them."""
    places: dict[str, Any] = {}
    parts: list[bytes] = []
    start = 0
    for name, array in arrays.items():
        kind = np.dtype(_TYPES[array.dtype.kind]).newbyteorder("<")
        data = np.ascontiguousarray(array, dtype=kind).tobytes()
        places[name] = {"type": kind.name, "shape": list(array.shape), "start": start}
        parts.append(data + b"\0" * (-len(data) % 4))
        start += len(parts[-1])
    head = to_json({**content, "arrays": places}, ascii_only=True).encode()
    head += b" " * (-len(head) % 4)
    return b"".join((len(head).to_bytes(4, "little"), head, *parts))
