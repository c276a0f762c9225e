"""The parts of a prepared corpus: Arrow files of tokenised documents, each written atomically.

The ``datasets`` library writes the files, and ``datasets.Dataset.from_file`` opens them. A part covers the documents
``first_document`` to ``end_document - 1`` of its source; it leaves out those that the source does not accept and those
that were removed as duplicates.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from lightning_gpt.data.prepare.duplicates import SPLITS, document_metadata, metadata_bytes, read_metadata
from lightning_gpt.data.sources.base import Document, SourceBase
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import WorkError
from lightning_gpt.json_text import to_json
from lightning_gpt.whole_file import write_file

# a part ends with the document that reaches one of these limits
PART_CHARACTERS = 16_000_000
PART_DOCUMENTS = 4096


@dataclass(frozen=True)
class Tally:
    """Counts of documents, tokens and UTF-8 bytes."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(self.documents - other.documents, self.tokens - other.tokens, self.bytes - other.bytes)


_PLAIN_FIELDS = ("file", "first_document", "end_document", "tokens_read", "size", "sha256")


@dataclass(frozen=True)
class PartFile:
    """What an Arrow file contains, and the size and SHA-256 it must have."""

    file: str
    first_document: int
    end_document: int
    splits: dict[SplitName, Tally]
    tokens_read: dict[SplitName, int]
    """Tokens of each split, counted before duplicates were removed."""
    size: int
    sha256: str

    @property
    def total(self) -> Tally:
        """The sum over all splits."""
        return sum(self.splits.values(), Tally())

    def to_json(self) -> dict[str, Any]:
        """The part as plain values, including the totals."""
        return {**asdict(self), **asdict(self.total)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The part that :meth:`to_json` wrote."""
        splits: dict[SplitName, Tally] = {split: Tally(**values["splits"][split]) for split in SPLITS}
        plain = {name: values[name] for name in _PLAIN_FIELDS}
        return cls(splits=splits, **plain)


Limits = Mapping[SplitName, int]
"""How many tokens of each split to read of a source; empty to read it to its end."""


class Quota:
    """Tracks whether the parts of a source reach its limits. Without limits the quota is never met.

    It counts the tokens before duplicates were removed, so that removing some never makes a resumed run read further.
    """

    def __init__(self, limits: Limits, parts: Iterable[PartFile] = ()) -> None:
        self._missing = dict(limits)  # may become negative
        for part in parts:
            self.add(part)

    def add(self, part: PartFile) -> None:
        """Count the tokens of another part."""
        for split in self._missing:
            self._missing[split] -= part.tokens_read[split]

    @property
    def met(self) -> bool:
        """Whether every split has reached its limit."""
        return bool(self._missing) and max(self._missing.values()) <= 0


def parts_to_keep(parts: Iterable[PartFile], limits: Limits) -> list[PartFile]:
    """The first parts that together reach the limits; all of them if they never do."""
    kept, quota = [], Quota(limits)
    for part in parts:
        if quota.met:
            break
        kept.append(part)
        quota.add(part)
    return kept


def write_json(path: Path, content: Any) -> None:
    """Write plain values as a JSON file; equal values give equal bytes."""
    write_file(path, (to_json(content, indent=1) + "\n").encode())


@dataclass
class Task:
    """A part to write: its path without suffix, its range of documents, and the accepted documents in that range.

    A document that is split by position is several entries with the same number.
    """

    stem: Path
    first_document: int
    end_document: int
    numbers: list[int] = field(default_factory=list)
    splits: list[SplitName] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    characters: int = 0

    def add(self, number: int, document: Document, split: Split) -> None:
        """Add document ``number`` of the source."""
        for name, text in split.pieces(document.text, document.split):
            self.numbers.append(number)
            self.splits.append(name)
            self.texts.append(text)
            self.origins.append(document.origin)
            self.characters += len(text)


def remaining_tasks(source: SourceBase, split: Split, folder: Path, done: Sequence[PartFile]) -> Iterator[Task]:
    """The tasks that follow the parts ``done``. Where one ends depends on the documents alone."""
    start = done[-1].end_document if done else 0
    stems = (folder / part_name(number) for number in itertools.count(len(done)))
    task = Task(next(stems), start, start)
    for number, document in enumerate(source.documents(start), start):
        task.end_document = number + 1
        if source.accepts(document.text):
            task.add(number, document, split)
        if task.characters >= PART_CHARACTERS or len(task.texts) >= PART_DOCUMENTS:
            yield task
            task = Task(next(stems), number + 1, number + 1)
    if task.texts:
        yield task


class PartWriter:
    """Tokenises the documents of a task and writes the part, with the metadata that the search for duplicates needs.

    Args:
        tokenizer: Turns texts into token ids.
        near_duplicates: Whether to compute the signatures that a search for near duplicates needs.
    """

    def __init__(self, tokenizer: Tokenizer, near_duplicates: bool) -> None:
        self.tokenizer = tokenizer
        self.near_duplicates = near_duplicates

    def write(self, task: Task) -> PartFile:
        """Write the part; its ``.json`` is written last and marks it as complete."""
        metadata = document_metadata(task.numbers, task.splits, task.texts, task.origins, self.near_duplicates)
        write_file(task.stem.with_suffix(".npz"), metadata_bytes(metadata))
        tokens = [self._tokens(text, origin) for text, origin in zip(task.texts, task.origins, strict=True)]
        kept = (metadata["numbers"], metadata["labels"], metadata["bytes"])
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        read = {split: int(lengths[metadata["labels"] == label].sum()) for label, split in enumerate(SPLITS)}
        return self._write(task.stem, (task.first_document, task.end_document), read, kept, tokens)

    def _tokens(self, text: str, origin: str) -> np.ndarray:
        try:
            return self.tokenizer.encode_document(text)
        except WorkError as error:
            raise WorkError(f"{origin}: {error}") from None

    def drop(self, stem: Path, part: PartFile, removed: np.ndarray) -> PartFile:
        """Rewrite a part without the training documents ``removed``; those that it no longer contains are ignored."""
        numbers, labels, sizes = read_metadata(stem.with_suffix(".npz"), "numbers", "labels", "bytes")
        stays = ~(np.isin(numbers, removed) & (labels == SPLITS.index("train")))
        kept = (numbers[stays], labels[stays], sizes[stays])
        gone = set(removed.tolist())
        read = read_part(stem.with_suffix(".arrow"))
        tokens = [ids for number, split, ids in read if split != "train" or number not in gone]
        return self._write(stem, (part.first_document, part.end_document), part.tokens_read, kept, tokens)

    def _write(
        self,
        stem: Path,
        documents: tuple[int, int],
        tokens_read: dict[SplitName, int],
        marks: tuple[np.ndarray, np.ndarray, np.ndarray],
        tokens: Sequence[np.ndarray],
    ) -> PartFile:
        numbers, labels, sizes = marks
        content = _arrow_file(numbers, labels, tokens, self.tokenizer.token_type)
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        splits: dict[SplitName, Tally] = {}
        for label, split in enumerate(SPLITS):
            of_split = labels == label
            splits[split] = Tally(int(of_split.sum()), int(lengths[of_split].sum()), int(sizes[of_split].sum()))
        file = stem.with_suffix(".arrow")
        part = PartFile(file.name, *documents, splits, tokens_read, len(content), hashlib.sha256(content).hexdigest())
        write_file(file, content)
        write_json(stem.with_suffix(".json"), part.to_json())
        return part


def _arrow_file(numbers: np.ndarray, labels: np.ndarray, tokens: Sequence[np.ndarray], token_type: str) -> bytes:
    # takes a second to import, and readers do not need it
    from datasets import ClassLabel, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        {"number": Value("int64"), "split": ClassLabel(names=list(SPLITS)), "tokens": List(Value(token_type))}
    )
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    values = np.concatenate([np.empty(0, token_type), *tokens])
    columns = {"number": numbers, "split": labels, "tokens": pa.ListArray.from_arrays(offsets, values)}
    stream = pa.BufferOutputStream()
    # one record batch, so that the tokens are contiguous
    writer = ArrowWriter(features=features, stream=stream, writer_batch_size=max(1, len(numbers)))
    writer.write_table(pa.table(columns))
    writer.finalize(close_stream=False)
    return bytes(stream.getvalue())


def complete_parts(folder: Path) -> list[PartFile]:
    """The complete parts of a source, up to the first that is missing."""
    parts: list[PartFile] = []
    while (file := folder / f"{part_name(len(parts))}.json").exists():
        parts.append(PartFile.from_json(json.loads(file.read_text(encoding="utf-8"))))
    return parts


def part_name(number: int) -> str:
    """The name of a part's files without suffix."""
    return f"part-{number:05d}"


def read_part(file: Path, start: int = 0) -> Iterator[tuple[int, SplitName, np.ndarray]]:
    """Number, split and tokens of a part's documents from number ``start`` on.

    The tokens are read-only views of the memory-mapped file.
    """
    for batch in pa.ipc.open_stream(pa.memory_map(str(file))):
        numbers, labels = batch.column("number").to_numpy(), batch.column("split").to_numpy()
        tokens = batch.column("tokens")
        offsets, values = tokens.offsets.to_numpy(), tokens.values.to_numpy()
        for row in range(int(np.searchsorted(numbers, start)), len(numbers)):
            yield int(numbers[row]), SPLITS[labels[row]], values[offsets[row] : offsets[row + 1]]
