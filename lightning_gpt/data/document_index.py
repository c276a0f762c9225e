"""The index of a prepared source: where each training document lies, so that any token is found at once.

``train.index.npy`` is an array ``(4, documents)`` of int64, in document order: the document's number in the source,
where its tokens begin in its part, the tokens up to its end over all parts, and the XXH3 hash of its tokens. It is
memory-mapped, so a process reads the pages that it looks at. ``train.counts.npy`` says how often each token id occurs.
"""

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from lightning_gpt.data.fitted import FITTED, FittedWindows
from lightning_gpt.data.prepare.duplicates import SPLITS
from lightning_gpt.data.prepare.parts import PartFile
from lightning_gpt.data.window import digest_of, hash_of

INDEX = "train.index.npy"
COUNTS = "train.counts.npy"

_OPEN_PARTS = 8
"""Parts that a process keeps mapped; a window of shuffled rows lies in a few that follow each other."""


def build(folder: Path, parts: Sequence[PartFile], vocab_size: int, limit: int | None) -> dict[str, bytes]:
    """The index files of a source by name, from its parts.

    Args:
        folder: The folder with the parts.
        parts: The parts, in document order.
        vocab_size: Number of token ids.
        limit: How many training tokens to count the ids of; all when None.
    """
    numbers, begins, lengths, hashes = [], [], [], []
    counts, left = np.zeros(vocab_size, dtype=np.int64), limit
    for part in parts:
        part_numbers, labels, offsets, values = _columns(folder / part.file)
        chosen = np.flatnonzero(labels == SPLITS.index("train"))
        numbers.append(part_numbers[chosen])
        begins.append(offsets[chosen].astype(np.int64))
        lengths.append(offsets[chosen + 1].astype(np.int64) - offsets[chosen])
        spans = list(zip(offsets[chosen].tolist(), offsets[chosen + 1].tolist(), strict=True))
        hashes.append(np.array([hash_of(values[begin:end]) for begin, end in spans], dtype=np.uint64).view(np.int64))
        for begin, end in spans:
            taken = values[begin : end if left is None else min(end, begin + left)]
            counts += np.bincount(taken, minlength=vocab_size)
            left = None if left is None else left - len(taken)
    columns = [np.concatenate([np.empty(0, np.int64), *each]) for each in (numbers, begins, lengths, hashes)]
    columns[2] = np.cumsum(columns[2])
    joined = np.stack(columns)
    return {INDEX: npy(joined), COUNTS: npy(counts)}


def npy(array: np.ndarray) -> bytes:
    """``array`` as the content of a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _columns(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, splits, offsets and tokens of a part, as views of the memory-mapped file."""
    batches = list(pa.ipc.open_stream(pa.memory_map(str(file))))
    if not batches:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, np.zeros(1, dtype=np.int64), empty
    (batch,) = batches  # a part is written as one, so that its tokens are contiguous
    tokens = batch.column("tokens")
    return (
        batch.column("number").to_numpy(),
        batch.column("split").to_numpy(),
        tokens.offsets.to_numpy(),
        tokens.values.to_numpy(),
    )


class DocumentIndex:
    """The training documents of a prepared source, by their place among them; tokens are read when they are asked for.

    Args:
        folder: The folder with the parts and the index.
        parts: The parts, in document order.
        limit: Use the first ``limit`` tokens only; the document that exceeds it is cut. All when None.
    """

    def __init__(self, folder: Path, parts: Sequence[PartFile], limit: int | None = None) -> None:
        self.folder = folder
        self._files = [part.file for part in parts]
        self._part_ends = np.cumsum([part.splits["train"].documents for part in parts])
        columns = np.load(folder / INDEX, mmap_mode="r").view(np.ndarray)
        self.numbers, self._begins, self._ends, self._hashes = columns
        total = int(self._ends[-1]) if columns.shape[1] else 0
        self.total = total if limit is None else min(limit, total)
        """Tokens that are used."""
        self.documents = int(np.searchsorted(self._ends, self.total)) + 1 if self.total else 0
        """Documents that are used."""
        self._open: dict[int, np.ndarray] = {}

    def at(self, number: int) -> int:
        """The place of the first document whose number is at least ``number``."""
        return min(int(np.searchsorted(self.numbers, number)), self.documents)

    def before(self, document: int) -> int:
        """Tokens of the documents before this one."""
        return int(min(self._ends[document - 1], self.total)) if document else 0

    def holding(self, token: int) -> int:
        """The document that the token with this number lies in."""
        return int(np.searchsorted(self._ends, token, side="right"))

    def lengths(self, first: int, end: int) -> np.ndarray:
        """Tokens of the documents ``first`` to ``end - 1``, ``(documents,)``."""
        ends = np.minimum(self._ends[first:end], self.total)
        return np.diff(ends, prepend=self.before(first))

    def tokens(self, document: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Tokens ``begin`` to ``end - 1`` of a document, as a view of the memory-mapped part."""
        end = int(self.lengths(document, document + 1)[0]) if end is None else end
        part = int(np.searchsorted(self._part_ends, document, side="right"))
        if part not in self._open:
            if len(self._open) == _OPEN_PARTS:
                self._open.pop(next(iter(self._open)))
            self._open[part] = _columns(self.folder / self._files[part])[3]
        place = int(self._begins[document])
        return self._open[part][place + begin : place + end]

    def hash(self, document: int, length: int) -> int:
        """The hash of the first ``length`` tokens of a document; read only if it is cut."""
        if length == int(self._ends[document]) - (int(self._ends[document - 1]) if document else 0):
            return int(self._hashes[document : document + 1].view(np.uint64)[0])
        return hash_of(self.tokens(document, 0, length))

    def hashes(self, first: int, end: int) -> np.ndarray:
        """The hashes of the documents ``first`` to ``end - 1``, ``(documents,)`` uint64."""
        hashes: np.ndarray = self._hashes[first:end].view(np.uint64)
        if first < end == self.documents:
            hashes = np.append(hashes[:-1], np.uint64(self._last_hash))
        return hashes

    @cached_property
    def _last_hash(self) -> int:
        """That of the last document, which ``limit`` may cut."""
        last = self.documents - 1
        return self.hash(last, int(self.lengths(last, last + 1)[0]))

    @cached_property
    def fitted(self) -> FittedWindows | None:
        """The rows of ``best_fit`` windows, if ``prepare`` has stored them."""
        file = self.folder / FITTED
        return FittedWindows(np.load(file, mmap_mode="r").view(np.ndarray)) if file.exists() else None

    def digest(self, first: int, end: int) -> str:
        """The digest of the documents ``first`` to ``end - 1``."""
        return digest_of(self.hashes(first, end))

    @cached_property
    def token_counts(self) -> np.ndarray:
        """How often each id occurs, ``(vocab_size,)``; counted by reading if ``limit`` is below what was counted."""
        counts: np.ndarray = np.load(self.folder / COUNTS)
        if int(counts.sum()) == self.total:
            return counts
        counts = np.zeros_like(counts)
        for document in range(self.documents):
            counts += np.bincount(self.tokens(document), minlength=len(counts))
        return counts
