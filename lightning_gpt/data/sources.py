"""Where documents come from. A source is a class that yields documents in a fixed order from any position."""

import glob
import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lightning_gpt.data.wikipedia import articles
from lightning_gpt.errors import CallError, WorkError


@dataclass(frozen=True)
class Document:
    """One text and where it came from, such as ``notes.jsonl, line 17``."""

    text: str
    origin: str


class Source(ABC):
    """Documents in a fixed order.

    Args:
        name: What the source is called in the cursor and in reports; unique within a mix.
        weight: Its share of the training rows, beside the weights of the other sources. Give every source a
            weight or none; with none, an epoch reads every document of every source once.
        max_tokens: Train on the first so many tokens of its training split only; on all of it when omitted.
    """

    countable = True
    """Whether reading it through once, to count it, is a reasonable thing to do before training."""

    def __init__(self, name: str, weight: float | None = None, max_tokens: int | None = None) -> None:
        if weight is not None and not 0 < weight < float("inf"):
            raise CallError(f"source {name!r} has weight {weight}; a weight is a positive number")
        if max_tokens is not None and max_tokens < 1:
            raise CallError(f"source {name!r} has max_tokens {max_tokens}; it must be at least 1")
        self.name = name
        self.weight = weight
        self.max_tokens = max_tokens

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on."""


class WikipediaSlice(Source):
    """The slice of a Wikipedia dump (English, articles A to Au) that gensim's wheel carries: no network needed.

    Args:
        name: What the source is called.
        weight: Its share of the training rows.
        max_tokens: Train on the first so many tokens only.
    """

    def __init__(
        self, name: str = "wikipedia-slice", weight: float | None = None, max_tokens: int | None = None
    ) -> None:
        super().__init__(name, weight, max_tokens)

    def documents(self, start: int = 0) -> Iterator[Document]:
        yield from _wikipedia_slice()[start:]


class PythonReference(Source):
    """The Python Language Reference, the book that every Python carries (``pydoc_data.topics``).

    Args:
        name: What the source is called.
        weight: Its share of the training rows.
        max_tokens: Train on the first so many tokens only.
    """

    def __init__(
        self, name: str = "python-reference", weight: float | None = None, max_tokens: int | None = None
    ) -> None:
        super().__init__(name, weight, max_tokens)

    def documents(self, start: int = 0) -> Iterator[Document]:
        from pydoc_data.topics import topics

        for topic in sorted(topics)[start:]:
            lines = topics[topic].splitlines()
            # section titles are underlined with a row of one mark, which reads as nothing
            kept = [line for line in lines if len(set(line)) != 1 or line[0] not in "*=-~^"]
            yield Document("\n".join(kept).strip(), f"pydoc_data.topics[{topic!r}]")


class Files(Source):
    """Local files: ``.txt`` and ``.md`` (a file is a document), ``.jsonl``, ``.parquet``, Wikipedia ``.xml.bz2``.

    Args:
        paths: Files, folders (all files of known kinds below) and globs (``corpus/**/*.jsonl``), read in this order;
            what a folder or glob gives is read in order of its name.
        column: The field that holds the text in ``.jsonl`` and ``.parquet`` files.
        separator: Cuts each ``.txt`` file into several documents, such as ``"\\n\\n\\n"``; a file is one when omitted.
        name: What the source is called.
        weight: Its share of the training rows.
        max_tokens: Train on the first so many tokens only.
    """

    def __init__(
        self,
        paths: str | list[str],
        column: str = "text",
        separator: str | None = None,
        name: str = "files",
        weight: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(name, weight, max_tokens)
        self.column = column
        self.separator = separator
        self.files = [file for path in ([paths] if isinstance(paths, str) else paths) for file in _expand(path)]
        if not self.files:
            raise CallError(f"source {name!r} was given no paths; give at least one file, folder or glob")

    def documents(self, start: int = 0) -> Iterator[Document]:
        return itertools.islice(
            itertools.chain.from_iterable(_READERS[_kind(file) or ""](self, file) for file in self.files), start, None
        )

    def _read_text(self, file: Path) -> Iterator[Document]:
        with _readable(file):
            raw = file.read_bytes()
        text = _decode(raw, file)
        pieces = [text] if self.separator is None else text.split(self.separator)
        for number, piece in enumerate(pieces, 1):
            if piece.strip():
                yield Document(piece, str(file) if len(pieces) == 1 else f"{file}, part {number}")

    def _read_jsonl(self, file: Path) -> Iterator[Document]:
        with _readable(file), file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                text = _decode(line, file, number)
                try:
                    record = json.loads(text)
                except json.JSONDecodeError as error:
                    raise WorkError(
                        f"{file}, line {number}: invalid JSON ({error.msg}, column {error.colno})"
                    ) from None
                yield Document(self._field(record, f"{file}, line {number}"), f"{file}, line {number}")

    def _read_parquet(self, file: Path) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            table = parquet.ParquetFile(file)
            if self.column not in table.schema_arrow.names:
                raise CallError(_no_column(self.column, table.schema_arrow.names, str(file)))
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[self.column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield Document(self._field({self.column: text}, f"{file}, row {number}"), f"{file}, row {number}")
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise WorkError(f"{file} cannot be read as Parquet: {_first_line(error)}") from None

    def _read_wikipedia(self, file: Path) -> Iterator[Document]:
        from xml.etree.ElementTree import ParseError

        try:
            for title, text in articles(file):
                yield Document(text, f"{file}, article {title!r}")
        except (ParseError, OSError, EOFError, StopIteration, RuntimeError) as error:
            raise WorkError(f"{file} cannot be read as a Wikipedia dump: {_first_line(error)}") from None

    def _field(self, record: Any, origin: str) -> str:
        if not isinstance(record, dict) or self.column not in record:
            names = list(record) if isinstance(record, dict) else []
            raise CallError(_no_column(self.column, names, origin))
        text = record[self.column]
        if not isinstance(text, str):
            raise WorkError(f"{origin}: {self.column!r} holds {type(text).__name__}, not text")
        return text


class Hub(Source):
    """A text data set of the Hugging Face Hub, streamed through ``datasets``. Needs the network while training.

    Args:
        path: The data set's name, such as ``wikimedia/wikipedia``.
        subset: Its configuration, such as ``20231101.en``.
        split: Which of its splits to read.
        column: The field that holds the text.
        revision: The commit or tag to read, so that a run can be repeated.
        name: What the source is called; the data set's name when omitted.
        weight: Its share of the training rows.
        max_tokens: Train on the first so many tokens only.
    """

    countable = False

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "text",
        revision: str | None = None,
        name: str | None = None,
        weight: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(name or path, weight, max_tokens)
        self.path, self.subset, self.split, self.column, self.revision = path, subset, split, column, revision

    def documents(self, start: int = 0) -> Iterator[Document]:
        stream = self._open()
        for number, record in enumerate(stream.skip(start) if start else stream, start):
            if self.column not in record:
                raise CallError(_no_column(self.column, list(record), f"the data set {self.path}"))
            yield Document(record[self.column], f"{self.path}, record {number}")

    def _open(self) -> Any:
        import datasets
        from huggingface_hub import HfApi

        try:
            # one quick question first: without a network `datasets` would retry for minutes before it said so
            HfApi().dataset_info(self.path, revision=self.revision, timeout=10)
            return datasets.load_dataset(
                self.path, self.subset, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # the Hub's client has changed its network library, and its errors, before
            raise WorkError(
                f"the Hub cannot be reached for data set {self.path!r} ({_first_line(error)}); without a network use "
                f"the embedded corpus (--config configs/data/embedded.yaml) or your own files (class_path: Files)"
            ) from None


@cache
def _wikipedia_slice() -> tuple[Document, ...]:
    """The embedded articles, parsed once a process (2 s)."""
    import gensim

    file = Path(gensim.__file__).parent / "test" / "test_data" / _SLICE_NAME
    remedy = "install a full wheel (pip install --force-reinstall 'gensim>=4.4,<5') or use your own files"
    if not file.is_file():
        raise WorkError(f"this build of gensim lacks its Wikipedia slice ({_SLICE_NAME}): {remedy}")
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SLICE_SHA256:
        raise WorkError(f"gensim's Wikipedia slice ({_SLICE_NAME}) is not the one known here (SHA-256): {remedy}")
    return tuple(Document(text, f"Wikipedia: {title}") for title, text in articles(file))


_SLICE_NAME = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SLICE_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"

_READERS: dict[str, Callable[[Files, Path], Iterator[Document]]] = {
    ".txt": Files._read_text,
    ".md": Files._read_text,
    ".jsonl": Files._read_jsonl,
    ".parquet": Files._read_parquet,
    ".xml.bz2": Files._read_wikipedia,
}


def _kind(file: Path) -> str | None:
    return next((suffix for suffix in _READERS if file.name.lower().endswith(suffix)), None)


def _expand(path: str) -> list[Path]:
    """The files that a path, folder or glob stands for."""
    known = ", ".join(_READERS)
    as_path = Path(path).expanduser()
    if as_path.is_dir():
        found = sorted(file for file in as_path.rglob("*") if file.is_file() and _kind(file))
        if not found:
            raise CallError(f"data folder {path!r} holds no file of a known kind ({known})")
        return found
    if as_path.exists():
        if _kind(as_path) is None:
            raise CallError(f"data file {path!r} is of no known kind; known are {known}")
        return [as_path]
    found = sorted(file for file in map(Path, glob.glob(str(as_path), recursive=True)) if file.is_file())
    if not found:
        raise CallError(f"data file {path!r} does not exist and fits no file as a glob")
    unknown = [str(file) for file in found if _kind(file) is None]
    if unknown:
        raise CallError(f"glob {path!r} gives {unknown[0]!r}, which is of no known kind; known are {known}")
    return found


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns a failure to open or read a file into one line."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"data file {str(file)!r} cannot be read: {error.strerror}") from None


def _decode(raw: bytes, file: Path, line: int | None = None) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line or raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise WorkError(f"{file}, line {line}: invalid UTF-8 (byte 0x{byte:02x} at offset {error.start})") from None


def _no_column(column: str, names: list[str], origin: str) -> str:
    return f"{origin} has no field {column!r}; it has {', '.join(map(repr, names)) or 'none'} (set the source's column)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
