"""A prepared corpus: a folder of tokenised documents, memory-mapped, with the hash of every part.

::

    manifest.json                  what the folder was made from, its sources and their parts
    card.json  card.md             what it holds, to read
    duplicates.jsonl               which documents duplicate which
    tokenizer/<name>.tiktoken
    <n>-<source>/part-00000.arrow  documents: number in the source, split, tokens closed by <|endoftext|>
    <n>-<source>/part-00000.json   the part's range of documents, its counts and its SHA-256

:mod:`~lightning_gpt.data.prepare.parts` writes and reads the parts; this file opens the folder that they make.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gpt.data.prepare.parts import Enough, Limits, Part, Tally, read_part
from lightning_gpt.data.sources.base import Document, SourceBase, filters_said
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError

FORMAT = 2
MANIFEST = "manifest.json"


class PreparedSource(SourceBase):
    """One source of a prepared corpus. It holds no open file, so it can be sent to another process.

    Args:
        folder: Where its parts are.
        parts: In the order of the documents.
        tokenizer: That made the tokens.
        filters: Which documents were accepted, as :attr:`Source.filter_identity` says it.
        limits: Of how many tokens of each split the source was read for; none where it was read to its end.
        name: Of the source.
    """

    def __init__(
        self, folder: Path, parts: tuple[Part, ...], tokenizer: Tokenizer, filters: str, limits: Limits, name: str
    ) -> None:
        super().__init__(name)
        self._filters = filters
        self.folder = folder
        self.parts = parts
        self.tokenizer = tokenizer
        self.limits = limits

    @property
    def filter_identity(self) -> str:
        """That of the source it was made of: what the folder leaves out is not in it."""
        return self._filters

    def require(self, max_tokens: int | None, eval_tokens: int) -> None:
        """Refuse to train or evaluate on more tokens than the source was read for."""
        for split, limit in self.limits.items():
            option, wanted = ("max_tokens", max_tokens) if split == "train" else ("eval_tokens", eval_tokens)
            if wanted is None or wanted > limit:
                raise CallError(
                    f"prepared folder {str(self.folder.parent)!r} was made with {option} {limit} for source "
                    f"{self.name!r} and the configuration has {option} {'null' if wanted is None else wanted}; "
                    f"prepare the corpus again, or take the folder's"
                )

    def accepts(self, text: str) -> bool:
        """Whether a document is in the folder: one that it leaves out is empty."""
        return bool(text)

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
    limits = described["limits"] if Enough(described["limits"], parts) else {}
    return PreparedSource(folder, parts, tokenizer, filters, limits, described["name"])


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
