"""Documents from local files: plain text, JSON Lines, Parquet and Wikipedia dumps."""

import glob
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lightning_gpt.data.sources.base import (
    Document,
    NamedFile,
    Source,
    first_line,
    missing_field,
    text_field,
)
from lightning_gpt.data.sources.wikipedia import articles
from lightning_gpt.data.split import SplitName
from lightning_gpt.errors import CallError, WorkError, invalid_unicode
from lightning_gpt.options import check_options
from lightning_gpt.system_error import refused_path

Reading = Generator[Document, None, int]
"""Yields a file's documents from number ``start`` on; returns how many were skipped: ``start``, or all it has."""


class Files(Source):
    """Local files: ``.txt``, ``.md``, ``.jsonl`` (also ``.gz``, ``.zst``), ``.parquet``, Wikipedia ``.xml.bz2``.

    A ``.txt`` or ``.md`` file is one document. The licence text that Project Gutenberg adds to its ``.txt`` files is
    removed.

    Args:
        paths: Files, folders (all supported files below them) and globs (``corpus/**/*.jsonl``), read in this order;
            the files of a folder or glob are read in order of their names.
        val_paths: Files, folders and globs whose documents are for validation. The other documents then give nothing
            to validation. A file that ``paths`` names too is only used here.
        test_paths: The same for the test split.
        column: The field that holds the text in JSON Lines and Parquet files.
        separator: Splits each ``.txt`` and ``.md`` file into documents, such as ``"\\n\\n\\n"``; without it a file is
            one document.
    """

    default_name = "files"
    places = ("paths", "val_paths", "test_paths")

    def __init__(
        self,
        paths: str | list[str],
        column: str = "text",
        separator: str | None = None,
        val_paths: str | list[str] | None = None,
        test_paths: str | list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_options(Files.__init__, locals(), f"source {self.name!r}: ")
        self.column = column
        self.separator = separator
        if separator == "":
            raise CallError(f"source {self.name!r} has an empty separator; leave it out to keep each file whole")
        named = {"paths": paths, "val_paths": val_paths, "test_paths": test_paths}
        self.paths = {
            option: [given] if isinstance(given, str) else given for option, given in named.items() if given is not None
        }
        for option, given in self.paths.items():
            if not given:
                raise CallError(f"source {self.name!r} was given no {option}; give at least one file, folder or glob")
            if not all(given):
                raise CallError(f"source {self.name!r} has an empty path in {option}; write . for the working folder")
        self.named_splits = tuple(split for split, option in _NAMING.items() if option in self.paths)
        # where none of them exists, a prepared folder may still do without them
        here = any(_exists(path) for given in self.paths.values() for path in given)
        self._files = self._find() if here else None

    def _find(self) -> list[tuple[SplitName | None, NamedFile]]:
        """All files in the order in which they are read, each with the split that it was named for.

        Raises:
            CallError: A path matches no file, a file is for two splits, or none is left for training.
        """
        found: list[tuple[SplitName | None, NamedFile]] = []
        used: dict[Path, str] = {}
        for split, option in _NAMING.items():
            for path in self.paths.get(option, []):
                for name, file in _expand(path):
                    before = used.setdefault(file.resolve(), option)
                    if before != option:
                        raise CallError(f"source {self.name!r}: {str(file)!r} is in {before} and in {option}")
                    found.append((split, (f"{name} ({option})", file)))
        others = [named for path in self.paths["paths"] for named in _expand(path)]
        left = [(None, named) for named in others if named[1].resolve() not in used]
        if not left:
            raise CallError(
                f"source {self.name!r} has no file left for training: all are in {' or '.join(_NAMING.values())}"
            )
        return [*found, *left]

    def check(self) -> None:
        if self._files is None:
            self._find()  # raises a CallError that says what is missing

    def arguments(self) -> dict[str, Any]:
        paths = {option: self.paths.get(option) for option in self.places}
        return {**super().arguments(), **paths, "column": self.column, "separator": self.separator}

    def input_files(self) -> list[NamedFile] | None:
        return None if self._files is None else [named for _, named in self._files]

    def documents(self, start: int = 0) -> Iterator[Document]:
        self.check()
        for split, (_, file) in self._files or []:
            reading = _READERS[_kind(file) or ""](self, file, start)
            start -= yield from reading if split is None else _assigned(reading, split)

    def _read_text(self, file: Path, start: int) -> Reading:
        # even a skipped file must be read: empty ones are not documents and do not count
        with _refusing(f"data file {str(file)!r} cannot be read", OSError):
            raw = file.read_bytes()
        text = _decode(raw, file)
        if file.suffix.lower() == ".txt":
            text = without_licence(text)
        pieces = [text] if self.separator is None else text.split(self.separator)
        filled = [(number, piece) for number, piece in enumerate(pieces, 1) if piece.strip()]
        for number, piece in filled[start:]:
            yield Document(piece, str(file) if len(pieces) == 1 else f"{file}, part {number}")
        return min(start, len(filled))

    def _read_jsonl(self, file: Path, start: int) -> Reading:
        passed = 0
        for number, line in _lines(file):
            if line.isspace():
                continue
            if passed < start:
                passed += 1
                continue
            origin = f"{file}, line {number}"
            text = _decode(line, file, number)
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise WorkError(f"{origin}: invalid JSON ({error.msg}, column {error.colno})") from None
            except (ValueError, RecursionError) as error:  # numbers or nesting beyond Python's limits
                raise WorkError(f"{origin}: JSON beyond Python's limits ({first_line(error)})") from None
            field = text_field(record, self.column, origin)
            if b"\\u" in line:  # an escape may name half of a character
                try:
                    field.encode()
                except UnicodeEncodeError as error:
                    raise WorkError(f"{origin}: {invalid_unicode(error)}") from None
            yield Document(field, origin)
        return passed

    def _read_parquet(self, file: Path, start: int) -> Reading:
        import pyarrow
        import pyarrow.parquet as parquet

        problem = f"{file} cannot be read as Parquet"
        with (
            _refusing(problem, pyarrow.ArrowException, OSError, UnicodeDecodeError),
            parquet.ParquetFile(file, page_checksum_verification=True) as table,
        ):
            names = table.schema_arrow.names
            if self.column not in names:
                raise missing_field(self.column, names, str(file))
            # skip row groups before the start without reading them: the footer has their row counts
            row, group, sizes = 0, 0, [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)]
            while group < len(sizes) and row + sizes[group] <= start:
                row, group = row + sizes[group], group + 1
            wanted = list(range(group, len(sizes)))
            for batch in table.iter_batches(batch_size=256, row_groups=wanted, columns=[self.column]):
                passed = min(max(0, start - row), len(batch))
                for number, text in enumerate(batch.column(0)[passed:].to_pylist(), row + passed + 1):
                    origin = f"{file}, row {number}"
                    yield Document(text_field({self.column: text}, self.column, origin), origin)
                row += len(batch)
            return min(start, row)

    def _read_wikipedia(self, file: Path, start: int) -> Reading:
        # ElementTree resolves no external entities, and expat limits how far the internal ones expand
        from xml.etree.ElementTree import ParseError  # nosec B405

        passed = 0
        # RuntimeError: raised by gensim when a file ends before its first element is complete
        with _refusing(f"{file} cannot be read as a Wikipedia dump", ParseError, OSError, EOFError, RuntimeError):
            # skipped articles are cleaned too: only then is it known whether they are long enough to count
            for title, text in articles(file):
                if passed < start:
                    passed += 1
                else:
                    yield Document(text, f"{file}, article {title!r}")
        return passed


def _assigned(reading: Reading, split: SplitName) -> Reading:
    """The same documents, each assigned to ``split``."""
    while True:
        try:
            document = next(reading)
        except StopIteration as end:
            return int(end.value)
        yield replace(document, split=split)


_NAMING: dict[SplitName, str] = {"val": "val_paths", "test": "test_paths"}

_READERS: dict[str, Callable[[Files, Path, int], Reading]] = {
    ".txt": Files._read_text,
    ".md": Files._read_text,
    ".jsonl": Files._read_jsonl,
    ".jsonl.gz": Files._read_jsonl,
    ".jsonl.zst": Files._read_jsonl,
    ".parquet": Files._read_parquet,
    ".xml.bz2": Files._read_wikipedia,
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def _kind(file: Path) -> str | None:
    return next((suffix for suffix in _READERS if file.name.lower().endswith(suffix)), None)


def _exists(path: str) -> bool:
    """Whether a path exists, or as a glob matches anything."""
    as_path = _without_tilde(path)
    return as_path.exists() or any(True for _ in glob.iglob(str(as_path), recursive=True))


def _entries_below(folder: Path) -> Iterator[Path]:
    """All entries of a folder and its subfolders, apart from the subfolders themselves."""

    def refuse(error: OSError) -> NoReturn:  # Path.rglob leaves such a folder out without a word
        raise refused_path(f"data folder {error.filename!r} cannot be read", error)

    seen: set[tuple[int, int]] = set()
    roots = [folder]
    for root in roots:  # linked folders come after all others, so that no file is found by a link that has a place
        for parent, folders, names in os.walk(root, onerror=refuse):
            place = os.stat(parent)
            if (place.st_dev, place.st_ino) in seen:
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))
            roots += sorted(link for name in folders if (link := Path(parent, name)).is_symlink())
            for name in names:
                entry = Path(parent, name)
                if (_kind(entry) or not entry.suffix) and entry.is_symlink() and not entry.exists():
                    raise CallError(f"{str(entry)!r} is a link to {os.readlink(entry)!r}, which does not exist")
                yield entry


def _expand(path: str) -> list[NamedFile]:
    """The files of a path, folder or glob, named relative to the folder, or to the part of the glob before any ``*``.

    Raises:
        CallError: There are none, one is of an unsupported kind, or a folder cannot be read.
    """
    known = ", ".join(_READERS)
    as_path = _without_tilde(path)
    if as_path.is_dir():
        found = sorted(file for file in _entries_below(as_path) if file.is_file() and _kind(file))
        if not found:
            raise CallError(f"data folder {path!r} contains no supported file ({known})")
        return [(str(file.relative_to(as_path)), file) for file in found]
    if as_path.exists():
        if not as_path.is_file():  # a pipe or a device may never end
            raise CallError(f"data file {path!r} is not a regular file")
        if _kind(as_path) is None:
            raise CallError(f"data file {path!r} is not of a supported kind ({known})")
        return [(as_path.name, as_path)]
    found = sorted(file for file in map(Path, glob.glob(str(as_path), recursive=True)) if file.is_file())
    if not found:
        raise CallError(f"data file {path!r} does not exist, and as a glob it matches no file")
    unknown = [str(file) for file in found if _kind(file) is None]
    if unknown:
        raise CallError(f"glob {path!r} matches {unknown[0]!r}, which is not of a supported kind ({known})")
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), as_path.parts))
    return [(str(file.relative_to(base)), file) for file in found]


def _without_tilde(path: str) -> Path:
    """The path, with ``~`` as the home folder, unless a file or folder is really named so.

    Raises:
        CallError: There is no such user, or this user has no home folder.
    """
    if Path(path).exists():
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise CallError(f"data file {path!r}: the home folder {user!r} is not known; give the whole path") from None


@contextmanager
def _refusing(problem: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn these errors into a WorkError that starts with ``problem``."""
    try:
        yield
    except errors as error:
        raise WorkError(f"{problem}: {getattr(error, 'strerror', None) or first_line(error)}") from None


_BUFFER = 2**16
"""Bytes. Lines are often longer than Python's default buffer; a much larger one would lose more of a truncated file."""


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file, decompressed as they are read."""
    number = 0
    try:
        with file.open("rb", buffering=_BUFFER) as raw:
            compression = _COMPRESSIONS.get(file.suffix.lower())
            for number, line in enumerate(_decompressed(raw, compression) if compression else raw, 1):
                yield number, line
    except OSError as error:
        where = f" after line {number}" if number else ""
        reason = error.strerror or first_line(error)
        raise WorkError(f"data file {str(file)!r} cannot be read{where}: {reason}") from None


def _decompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    """The decompressed bytes of a file. Arrow's stream reads both formats and is faster than ``gzip``."""
    import pyarrow

    if os.fstat(raw.fileno()).st_size == 0:
        raise OSError(f"it is empty, so it is not a {compression} file")
    return io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), _BUFFER)


def _decode(raw: bytes, file: Path, line: int | None = None) -> str:
    """The text of a file, or of one of its lines, without the byte-order mark that some editors begin a file with."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line or raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise WorkError(f"{file}, line {line}: invalid UTF-8 (byte 0x{byte:02x} at offset {error.start})") from None
    return text.removeprefix("\ufeff") if line in (None, 1) else text


# the rest of a marker's line, including a title that continues on up to two more lines, up to the closing asterisks
_TITLE = r"(?:(?:[^\n]*\n(?=\S)){0,2}?[^\n]*?\*{3}[ \t\r]*$|[^\n]*)"
_MARK = re.compile(
    rf"""
    ^(?P<start> \*{{3}}[ ]?START[ ]OF[ ](?:THE|THIS)[ ]PROJECT[ ]GUTENBERG\b{_TITLE}
              | \*END\*?[ ]?THE[ ]SMALL[ ]PRINT[^\n]*)
  | ^(?P<end>   \*{{3}}[ ]?END[ ]OF[ ](?:THE|THIS)[ ]PROJECT[ ]GUTENBERG\b{_TITLE}
              | End[ ]of[ ](?:(?:the|this)[ ])?Project[ ]Gutenberg\b[^\n]*)
    """,
    re.M | re.I | re.X,
)
_LONGEST_LICENCE = 30_000
"""Characters. Project Gutenberg's longest licence has 19,000; anything longer is kept as text despite its marker."""


def without_licence(text: str) -> str:
    """The text without Project Gutenberg's licence, which precedes a START marker and follows an END marker.

    The text may contain several books. Without markers it is returned unchanged.
    """
    marks = [(mark.start(), mark.end(), mark.lastgroup) for mark in _MARK.finditer(text)]
    if not marks:
        return text
    kept, position, after_end = [], 0, False
    for start, end, kind in [*marks, (len(text), len(text), "end")]:
        if start - position > _LONGEST_LICENCE or not (after_end or kind == "start"):
            kept.append(text[position:start])
        position, after_end = end, kind == "end"
    return "".join(kept).strip("\r\n")
