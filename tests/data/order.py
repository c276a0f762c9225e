"""The order of the rows of a few streams, by their digests: it never changes."""

import json
from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_hexdigest

from lightning_gpt.data.lanes import LaneStream
from lightning_gpt.data.packing import PackingName
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.stream import Stream
from tests.data.helpers import BYTES, EVERYTHING, Listed


def corpora() -> list[list[str]]:
    draw = np.random.RandomState(7)
    sizes = [draw.randint(1, 90, size=count) for count in (60, 25, 9)]
    return [["".join(map(chr, draw.randint(97, 123, size=length))) for length in lengths] for lengths in sizes]


def stream_of(packing: PackingName, weights: Sequence[float], max_tokens: int | None) -> Stream:
    readers = []
    for number, texts in enumerate(corpora()[: len(weights)]):
        source = Listed(texts, f"source {number}")
        source.max_tokens = max_tokens
        readers.append(Reader(source, EVERYTHING, "train", BYTES))
    if packing == "lanes":
        return LaneStream(tuple(readers), tuple(weights), 7, 20, 3, packing, 6)
    return Stream(tuple(readers), tuple(weights), 7, 20, 3, packing)


CASES: dict[str, tuple[PackingName, tuple[float, ...], int | None]] = {
    f"{packing}, {len(weights)} sources, {limit or 'all'} tokens": (packing, weights, limit)
    for packing in ("concatenate", "best_fit", "lanes")
    for weights in ((1.0,), (5.0, 2.0, 1.5))
    for limit in (None, 300)
}


def digest(stream: Stream) -> str:
    """Of some 1,500 rows taken in pieces, and of the rows taken of each source: several passes."""
    sequence = stream.open()
    rows = np.concatenate([sequence.take(count) for count in (1, 7, 30, 500, 1000)])
    taken = [source.taken for source in sequence.sources]
    return xxh3_64_hexdigest(rows.tobytes() + json.dumps(taken).encode())
