"""What a source's documents come from: recorded in a prepared folder, and compared when the folder is used.

The record has the source's class, the arguments that decide its documents, and the size and checksum of each file it
read. File names are relative to the path that was given, so a corpus may be moved as a whole.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from lightning_gpt.data.sources.base import NamedFile, Source
from lightning_gpt.errors import WorkError

ALWAYS_SUMMED = 2**30
"""Bytes. The files of a source that is no larger are always read to compare their checksums, which takes about a
second. In a larger source a file is not read if its size and modification time are as recorded."""

_SHOWN = 3
_LONGEST_NAME = 40


def made_of(source: Source) -> dict[str, Any]:
    """The record of a source, as JSON values: its name, class, arguments and files.

    Raises:
        WorkError: A file cannot be read.
    """
    files = [
        {"file": name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "xxh3_128": _sum(path)}
        for name, path in source.input_files() or []
        for stat in [path.stat()]
    ]
    return {"name": source.name, "class": type(source).__name__, "arguments": source.arguments(), "files": files}


def differences(record: Mapping[str, Any], source: Source) -> list[str]:
    """How a source differs from a record; empty if it would give the same documents.

    Without its files, a source is compared by its arguments alone, including the paths.

    Raises:
        WorkError: A file cannot be read.
    """
    if record["class"] != type(source).__name__:
        return [f"its class is {type(source).__name__}, was {record['class']}"]
    files = source.input_files()
    here, there = source.arguments(), record["arguments"]
    compared = [name for name in here | there if files is None or name not in source.places]
    changed = [
        f"{name} is {_plain(here.get(name))}, was {_plain(there.get(name))}"
        for name in compared
        if here.get(name) != there.get(name)
    ]
    return changed + ([] if files is None else list(changed_files(record["files"], files)))


def changed_files(records: Sequence[Mapping[str, Any]], files: Sequence[NamedFile]) -> Iterator[str]:
    """How files differ from their records: missing, new, of another size or content, or in another order.

    Raises:
        WorkError: A file cannot be read.
    """
    was = dict(zip(_distinct([record["file"] for record in records]), records, strict=True))
    now = dict(zip(_distinct([name for name, _ in files]), [path for _, path in files], strict=True))
    small = sum(record["bytes"] for record in records) <= ALWAYS_SUMMED
    for key in was | now:
        name = _short(key[0])
        if key not in now:
            yield f"the file {name} is missing"
        elif key not in was:
            yield f"the file {name} is new"
        else:
            change = _change(was[key], now[key], small)
            if change:
                yield f"{name}: {change}"
    if was.keys() == now.keys() and list(was) != list(now):
        first = next(there[0] for there, here in zip(now, was, strict=True) if there != here)
        yield f"the files are in another order, from {_short(first)} on"


def listed(changes: Sequence[str]) -> str:
    """The first few changes, and how many more there are."""
    more = len(changes) - _SHOWN
    return "; ".join([*changes[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])])


def _change(record: Mapping[str, Any], path: Path, always_summed: bool) -> str | None:
    try:
        stat = path.stat()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if stat.st_size != record["bytes"]:
        return f"{stat.st_size:,} bytes, was {record['bytes']:,}"
    if not always_summed and stat.st_mtime_ns == record["modified_ns"]:
        return None
    return None if _sum(path) == record["xxh3_128"] else "its content changed (the size did not)"


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxh3_128).hexdigest()
    except OSError as error:
        raise WorkError(f"data file {str(path)!r} cannot be read: {error.strerror}") from None


def _distinct(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with the number of times it occurred before: two folders may have files of the same name."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _plain(value: Any) -> str:
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"…{text[1 - _LONGEST_NAME :]}"
