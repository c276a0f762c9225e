"""A prepared corpus: a folder of tokenised documents, memory-mapped, with the hash of every part.

::

    manifest.json                  what the folder was made from, its sources and their parts
    card.json  card.md             what it holds, to read
    duplicates.jsonl               which documents duplicate which
    tokenizer/<name>.tiktoken
    <n>-<source>/part-00000.arrow  documents: number in the source, split, tokens closed by <|endoftext|>
    <n>-<source>/part-00000.json   the part's range of documents, its counts and its SHA-256

The Arrow files are written by the ``datasets`` library, and ``datasets.Dataset.from_file`` opens them. A part holds the
documents from ``first_document`` to before ``end_document`` of its source, less those that the source does not accept
and those that were removed as duplicates.
"""

import hashlib
import itertools
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from lightning_gpt.data.duplicates import SPLITS, marks_file, marks_of, read_marks
from lightning_gpt.data.sources import Document, Source, filters_said
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, WorkError

FORMAT = 1
MANIFEST = "manifest.json"

# a part ends with the document that reaches one of these
PART_CHARACTERS = 16_000_000
PART_DOCUMENTS = 4096


@dataclass(frozen=True)
class Tally:
    """An amount of text; ``bytes`` is its length in UTF-8."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Part:
    """An Arrow file and what is in it."""

    file: str
    first_document: int
    end_document: int
    splits: dict[SplitName, Tally]
    size: int
    sha256: str

    @property
    def total(self) -> Tally:
        """All splits together."""
        return sum(self.splits.values(), Tally())

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the totals."""
        return {**asdict(self), **asdict(self.total)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The part that :meth:`to_json` described."""
        splits: dict[SplitName, Tally] = {split: Tally(**values["splits"][split]) for split in SPLITS}
        plain = {name: values[name] for name in ("file", "first_document", "end_document", "size", "sha256")}
        return cls(splits=splits, **plain)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and its folder where that is missing, in one step: under its name it is whole or not there."""
    # the process's number keeps two that write the same file out of each other's way
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise WorkError(
            f"{path} cannot be written: {error.strerror}; what is done is kept: mend this, and run the command again"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write plain values as a JSON file, the same bytes for the same values."""
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


@dataclass
class Task:
    """A part to write: its path without suffix, its range of documents, and those among them that are used."""

    stem: Path
    first_document: int
    end_document: int
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    characters: int = 0

    def add(self, number: int, document: Document) -> None:
        """Put document ``number`` of the source into the part."""
        self.numbers.append(number)
        self.texts.append(document.text)
        self.origins.append(document.origin)
        self.characters += len(document.text)


def tasks(source: Source, folder: Path, done: Sequence[Part]) -> Iterator[Task]:
    """The parts of a source that are not done, cut by nothing but the documents."""
    start = done[-1].end_document if done else 0
    stems = (folder / part_name(number) for number in itertools.count(len(done)))
    task = Task(next(stems), start, start)
    for number, document in enumerate(source.documents(start), start):
        task.end_document = number + 1
        if source.accepts(document.text):
            task.add(number, document)
        if task.characters >= PART_CHARACTERS or len(task.texts) >= PART_DOCUMENTS:
            yield task
            task = Task(next(stems), number + 1, number + 1)
    if task.texts:
        yield task


class PartWriter:
    """Tokenises the documents of a part and writes it, with what the search for duplicates needs to know of them.

    Args:
        tokenizer: For the ids.
        split: Where each document belongs.
        near_duplicates: Whether they are looked for, which takes a signature of each document.
    """

    def __init__(self, tokenizer: Tokenizer, split: Split, near_duplicates: bool) -> None:
        self.tokenizer = tokenizer
        self.split = split
        self.near_duplicates = near_duplicates
        self.token_type = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"

    def write(self, task: Task) -> Part:
        """Make the part; its ``.json`` is written last, so that a part which has one is complete."""
        marks = marks_of(task.numbers, task.texts, task.origins, self.split, self.near_duplicates)
        write_file(task.stem.with_suffix(".npz"), marks_file(marks))
        tokens = [self._tokens(text, origin) for text, origin in zip(task.texts, task.origins, strict=True)]
        kept = (marks["numbers"], marks["labels"], marks["bytes"])
        return self._write(task.stem, (task.first_document, task.end_document), kept, tokens)

    def _tokens(self, text: str, origin: str) -> np.ndarray:
        try:
            return np.append(self.tokenizer.encode(text), np.uint32(self.tokenizer.end_of_text))
        except UnicodeEncodeError as error:
            raise WorkError(f"{origin}: no Unicode text ({error.reason} at character {error.start})") from None

    def drop(self, stem: Path, part: Part, removed: np.ndarray) -> Part:
        """Write a part again without the documents of these numbers; those that are gone already do not matter."""
        numbers, labels, sizes = read_marks(stem.with_suffix(".npz"), "numbers", "labels", "bytes")
        stays = ~np.isin(numbers, removed)
        kept = (numbers[stays], labels[stays], sizes[stays])
        wanted = set(kept[0].tolist())
        tokens = [ids for number, _, ids in read_part(stem.with_suffix(".arrow")) if number in wanted]
        return self._write(stem, (part.first_document, part.end_document), kept, tokens)

    def _write(
        self,
        stem: Path,
        documents: tuple[int, int],
        marks: tuple[np.ndarray, np.ndarray, np.ndarray],
        tokens: Sequence[np.ndarray],
    ) -> Part:
        numbers, labels, sizes = marks
        content = _arrow_file(numbers, labels, tokens, self.token_type)
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        splits: dict[SplitName, Tally] = {}
        for label, split in enumerate(SPLITS):
            of_split = labels == label
            splits[split] = Tally(int(of_split.sum()), int(lengths[of_split].sum()), int(sizes[of_split].sum()))
        file = stem.with_suffix(".arrow")
        part = Part(file.name, *documents, splits, len(content), hashlib.sha256(content).hexdigest())
        write_file(file, content)
        write_json(stem.with_suffix(".json"), part.to_json())
        return part


def _arrow_file(numbers: np.ndarray, labels: np.ndarray, tokens: Sequence[np.ndarray], token_type: str) -> bytes:
    # takes a second to import, which those who only read are spared
    from datasets import ClassLabel, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        {"number": Value("int64"), "split": ClassLabel(names=list(SPLITS)), "tokens": List(Value(token_type))}
    )
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    values = np.concatenate([np.empty(0, token_type), *tokens], dtype=token_type, casting="unsafe")
    columns = {"number": numbers, "split": labels, "tokens": pa.ListArray.from_arrays(offsets, values)}
    stream = pa.BufferOutputStream()
    # one batch, so that the tokens lie in one piece
    writer = ArrowWriter(features=features, stream=stream, writer_batch_size=max(1, len(numbers)))
    writer.write_table(pa.table(columns))
    writer.finalize(close_stream=False)
    return bytes(stream.getvalue())


def complete_parts(folder: Path) -> list[Part]:
    """The parts of a source that are written, up to the first that is not."""
    parts: list[Part] = []
    while (file := folder / f"{part_name(len(parts))}.json").exists():
        parts.append(Part.from_json(json.loads(file.read_text(encoding="utf-8"))))
    return parts


def part_name(number: int) -> str:
    """What the files of a part are called, less their suffixes."""
    return f"part-{number:05d}"


def read_part(file: Path, start: int = 0) -> Iterator[tuple[int, SplitName, np.ndarray]]:
    """Number, split and tokens of a part's documents from number ``start`` on; the tokens lie in the mapped file."""
    for batch in pa.ipc.open_stream(pa.memory_map(str(file))):
        numbers, labels = batch.column("number").to_numpy(), batch.column("split").to_numpy()
        tokens = batch.column("tokens")
        offsets, values = tokens.offsets.to_numpy(), tokens.values.to_numpy()
        for row in range(int(np.searchsorted(numbers, start)), len(numbers)):
            yield int(numbers[row]), SPLITS[labels[row]], values[offsets[row] : offsets[row + 1]]


class PreparedSource(Source):
    """One source of a prepared corpus. It holds no open file, so it can be sent to another process.

    Args:
        folder: Where its parts are.
        parts: In the order of the documents.
        tokenizer: That made the tokens.
        filters: Which documents were accepted, as :attr:`Source.filter_identity` says it.
    """

    def __init__(
        self, folder: Path, parts: tuple[Part, ...], tokenizer: Tokenizer, filters: str, **common: Any
    ) -> None:
        super().__init__(**common)
        self._filters = filters
        self.folder = folder
        self.parts = parts
        self.tokenizer = tokenizer

    @property
    def filter_identity(self) -> str:
        """That of the source it was made of: what the folder leaves out is not in it."""
        return self._filters

    def tally(self, split: SplitName) -> Tally:
        """What a split holds, without reading it."""
        return sum((part.splits[split] for part in self.parts), Tally())

    def tokens(self, start: int = 0) -> Iterator[tuple[int, SplitName, np.ndarray]]:
        """Number, split and tokens of the documents from number ``start`` on, found without reading those before."""
        first = bisect_right(self.parts, start, key=lambda part: part.end_document)
        for part in self.parts[first:]:
            yield from read_part(self.folder / part.file, start)

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The texts again; one that the folder leaves out is empty, so that the others keep their numbers."""
        following = start
        for number, _, tokens in self.tokens(start):
            for missing in range(following, number):
                yield Document("", self._origin(missing))
            yield Document(self.tokenizer.decode(tokens[:-1]), self._origin(number))
            following = number + 1

    def _origin(self, number: int) -> str:
        return f"{self.name}, document {number}"


@dataclass(frozen=True)
class PreparedCorpus:
    """A folder that :func:`open_prepared` has checked."""

    folder: Path
    tokenizer: Tokenizer
    split: Split
    sources: tuple[PreparedSource, ...]
    digest: str
    """Of all documents and their splits: two corpora with the same one hold the same texts in the same splits."""

    def require(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        val_share: float | None = None,
        test_share: float | None = None,
    ) -> None:
        """Refuse the folder where it was made with another tokenizer or split; what is None may be anything."""
        wanted_and_found = {
            "tokenizer": (tokenizer_fingerprint, self.tokenizer.fingerprint),
            "val_share": (val_share, self.split.val),
            "test_share": (test_share, self.split.test),
        }
        others = [
            f"{name} is {found} there and {wanted} here"
            for name, (wanted, found) in wanted_and_found.items()
            if wanted is not None and wanted != found
        ]
        if others:
            raise CallError(
                f"prepared folder {str(self.folder)!r} was made with other settings: {'; '.join(others)}; "
                f"prepare the corpus again, or take the folder's settings"
            )


def unfinished(folder: Path) -> Path:
    """Where a folder is made before it gets its name."""
    return folder.with_name(f"{folder.name}.partial")


def open_prepared(folder: str | Path) -> PreparedCorpus:
    """Check a prepared folder, the SHA-256 of every part included, and open it."""
    # Lightning comes with it, which the processes that write parts are spared
    from lightning_gpt.console import console

    folder = Path(folder)
    manifest = _read_manifest(folder)
    config = manifest["config"]
    tokenizer = _read_tokenizer(folder, manifest["tokenizer"])
    with console.status(f"checking the hashes of prepared folder {folder}"):
        sources = tuple(
            _read_source(folder / source["folder"], source["parts"], tokenizer, described)
            for source, described in zip(manifest["sources"], config["sources"], strict=True)
        )
    split = Split(config["val_share"], config["test_share"])
    return PreparedCorpus(folder, tokenizer, split, sources, manifest["split_digest"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        left = f"; {str(unfinished(folder))!r} is unfinished" if unfinished(folder).is_dir() else ""
        raise CallError(
            f"prepared folder {str(folder)!r} does not exist{left}: lightning-gpt prepare --output {folder} makes it"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except OSError as error:
        raise CallError(f"{str(folder)!r} is no prepared folder: {MANIFEST}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CallError(f"{folder / MANIFEST} is damaged: prepare the corpus again") from None
    if version != FORMAT:
        raise CallError(f"prepared folder {str(folder)!r} has format {version!r}; this version reads {FORMAT}")
    if "split_digest" not in manifest:
        raise CallError(f"prepared folder {str(folder)!r} is unfinished: run the same prepare again, and it goes on")
    return dict(manifest)


def _read_tokenizer(folder: Path, described: Mapping[str, Any]) -> Tokenizer:
    file = folder / described["file"]
    _check(file, described["size"], described["sha256"])
    return Tokenizer.from_file(file)


def _read_source(
    folder: Path, described_parts: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, described: Mapping[str, Any]
) -> PreparedSource:
    parts = tuple(Part.from_json(part) for part in described_parts)
    for part in parts:
        _check(folder / part.file, part.size, part.sha256)
    arguments = described["arguments"]
    filters = filters_said(arguments.get("min_characters", 0), arguments.get("keep"))
    return PreparedSource(folder, parts, tokenizer, filters, name=described["name"])


def _check(file: Path, size: int, sha256: str) -> None:
    """Refuse a file that is missing, cut or changed."""
    remedy = "prepare the corpus again, or restore the file"
    try:
        found = file.stat().st_size
        if found != size:
            raise CallError(f"{file} is damaged: it has {found:,} bytes and was written with {size:,}; {remedy}")
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CallError(f"{file} cannot be read: {error.strerror}; {remedy}") from None
    if digest != sha256:
        raise CallError(f"{file} is damaged: its SHA-256 is not the one that it was written with; {remedy}")
