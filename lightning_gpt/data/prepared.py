"""A prepared corpus: a folder of tokenised documents, memory-mapped, with the hash of every part.

::

    manifest.json                  the settings and files it was made of, its parts, and a checksum of all this
    card.json  card.md             a summary
    duplicates.jsonl               every duplicate with the document it duplicates
    tokenizer/<name>.tiktoken
    <n>-<source>/part-00000.arrow  documents: number in the source, split, tokens ending with <|endoftext|>
    <n>-<source>/part-00000.json   the part's range of documents, its counts and its SHA-256
    <n>-<source>/train.index.npy   where each training document lies; train.counts.npy: how often each token occurs
    <n>-<source>/train.best_fit.npy   the rows of each window, if the configuration packs them so

:mod:`~lightning_gpt.data.prepare.corpus` makes the folder; this module opens it.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128_hexdigest

from lightning_gpt.data.document_index import DocumentIndex
from lightning_gpt.data.made_of import differences, listed
from lightning_gpt.data.prepare.parts import Limits, PartFile, Quota, Tally, read_part
from lightning_gpt.data.sources.base import Document, Source, SourceBase, describe_filters
from lightning_gpt.data.split import Split, SplitBy, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError

FORMAT = 4
MANIFEST = "manifest.json"


class PreparedSource(SourceBase):
    """One source of a prepared corpus. It keeps no file open, so it can be sent to another process.

    Args:
        folder: The folder with its parts.
        parts: Its parts, in document order.
        tokenizer: The tokenizer that encoded the documents.
        filters: The :attr:`~lightning_gpt.data.sources.base.Source.filter_identity` of the original source.
        limits: The token limits that the source was read up to; empty if it was read to its end.
        split: How its documents were split.
        name: The name of the source.
    """

    def __init__(
        self,
        folder: Path,
        parts: tuple[PartFile, ...],
        tokenizer: Tokenizer,
        filters: str,
        limits: Limits,
        split: Split,
        name: str,
    ) -> None:
        super().__init__(name)
        self._filters = filters
        self.folder = folder
        self.parts = parts
        self.tokenizer = tokenizer
        self.limits = limits
        self.split = split
        self._index: tuple[int | None, DocumentIndex] | None = None

    @property
    def filter_identity(self) -> str:
        """The ``filter_identity`` of the original source, whose filters were applied when the folder was made."""
        return self._filters

    def require(self, max_tokens: int | None, eval_tokens: int) -> None:
        """Raise a CallError if training or evaluation may need more tokens than the folder has."""
        for split, limit in self.limits.items():
            option, wanted = ("max_tokens", max_tokens) if split == "train" else ("eval_tokens", eval_tokens)
            if wanted is None or wanted > limit:
                raise CallError(
                    f"prepared folder {str(self.folder.parent)!r} was made with {option} {limit} for source "
                    f"{self.name!r}, but the configuration has {option} {'null' if wanted is None else wanted}; "
                    f"prepare the corpus again, or use the folder's value"
                )

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise a CallError if the ids in the folder are not those of a checkpoint's tokenizer."""
        if self.tokenizer.fingerprint != tokenizer.fingerprint:
            raise CallError(
                f"prepared folder {str(self.folder.parent)!r} has token ids of a different tokenizer from the "
                f"checkpoint's: prepare the texts with the checkpoint's tokenizer, or leave data.prepared out"
            )

    @property
    def training(self) -> DocumentIndex:
        """The index of the training documents, up to ``max_tokens``."""
        if self._index is None or self._index[0] != self.max_tokens:
            self._index = self.max_tokens, DocumentIndex(self.folder, self.parts, self.max_tokens)
        return self._index[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_index": None}

    def accepts(self, text: str) -> bool:
        """Whether a document is in the folder; :meth:`documents` yields an empty text for one that is not."""
        return bool(text)

    def tally(self, split: SplitName) -> Tally:
        """The counts of a split, from the parts' metadata."""
        return sum((part.splits[split] for part in self.parts), Tally())

    def tokens(self, start: int = 0) -> Iterator[tuple[int, SplitName, np.ndarray]]:
        """Number, split and tokens of the documents from number ``start`` on; earlier parts are not read."""
        first = bisect_right(self.parts, start, key=lambda part: part.end_document)
        for part in self.parts[first:]:
            yield from read_part(self.folder / part.file, start)

    def texts(self, split: SplitName, start: int = 0) -> Iterator[tuple[int, str]]:
        """Number and decoded text of the documents of a split, or of their part in it."""
        for number, part, tokens in self.tokens(start):
            if part == split:
                yield number, self.tokenizer.decode(tokens[:-1])

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The decoded documents; those that the folder left out are empty, so that the others keep their numbers."""
        following = start
        for number, parts in groupby(self.tokens(start), key=itemgetter(0)):
            for missing in range(following, number):
                yield Document("", self._origin(missing))
            text = "".join(self.tokenizer.decode(tokens[:-1]) for _, _, tokens in parts)
            yield Document(text, self._origin(number))
            following = number + 1

    def _origin(self, number: int) -> str:
        return f"{self.name}, document {number}"


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared folder whose files :func:`open_prepared` has checked."""

    folder: Path
    tokenizer: Tokenizer
    split: Split
    """The shares that were asked for."""
    split_by: SplitBy
    """How they were to be split."""
    sources: tuple[PreparedSource, ...]
    digest: str
    """A hash of all documents and their splits: equal for the same texts in the same splits."""
    records: tuple[Mapping[str, Any], ...]
    """What each source was made of, as :func:`~lightning_gpt.data.made_of.made_of` describes it."""
    asked_tokenizer: int | str
    """The vocabulary size that was asked for (a small corpus yields a smaller one), or the tokenizer's fingerprint."""

    def require_sources(self, sources: Sequence[Source]) -> None:
        """Raise a CallError if the folder was made from other sources than these, or from other files.

        The comparison reads files; see :data:`~lightning_gpt.data.made_of.ALWAYS_SUMMED`. A source whose files are not
        on this machine is compared by its arguments alone.
        """
        # imports Lightning, which loader processes and workers do not need
        from lightning_gpt.console import console, say

        names, ours = [record["name"] for record in self.records], [source.name for source in sources]
        if names != ours:
            raise CallError(
                f"prepared folder {str(self.folder)!r} has the sources {', '.join(names)}, but the configuration has "
                f"{', '.join(ours)}"
            )
        for record, source in zip(self.records, sources, strict=True):
            with console.status(f"comparing {source.name} with prepared folder {self.folder}"):
                changes = differences(record, source)
            if changes:
                raise CallError(
                    f"prepared folder {str(self.folder)!r} was made of another source {source.name!r}: "
                    f"{listed(changes)}; prepare the corpus again"
                )
            if source.input_files() is None:
                say(f"{source.name}: its files are not on this machine, so they are not compared with {self.folder}")

    def require_vocabulary(self, vocab_size_to_train: int | None) -> None:
        """Raise a CallError if the folder has no vocabulary of the size to train; None allows any."""
        if vocab_size_to_train not in (None, self.tokenizer.vocab_size, self.asked_tokenizer):
            raise CallError(
                f"prepared folder {str(self.folder)!r} has a vocabulary of {self.tokenizer.vocab_size} tokens, "
                f"but tokenizer is {vocab_size_to_train}"
            )

    def require(
        self,
        *,
        tokenizer_fingerprint: str | None = None,
        val_share: float | None = None,
        test_share: float | None = None,
        split_by: SplitBy | None = None,
    ) -> None:
        """Raise a CallError if the folder was made with another tokenizer or split; None allows any value."""
        wanted_and_found = {
            "tokenizer": (tokenizer_fingerprint, self.tokenizer.fingerprint),
            "val_share": (val_share, self.split.val),
            "test_share": (test_share, self.split.test),
            "split_by": (split_by, self.split_by),
        }
        differences = [
            f"{name} is {found} in the folder and {wanted} in the configuration"
            for name, (wanted, found) in wanted_and_found.items()
            if wanted is not None and wanted != found
        ]
        if differences:
            raise CallError(
                f"prepared folder {str(self.folder)!r} was made with other settings: {'; '.join(differences)}; "
                f"prepare the corpus again, or use the folder's settings"
            )


def unfinished(folder: Path) -> Path:
    """The name of a prepared folder while it is being made."""
    return folder.with_name(f"{folder.name}.partial")


def open_prepared(folder: str | Path) -> PreparedCorpus:
    """Open a prepared folder after checking the SHA-256 of every part and of the tokenizer.

    Raises:
        CallError: The folder does not exist, is unfinished, damaged, or in another format.
    """
    # imports Lightning, which loader processes and workers do not need
    from lightning_gpt.console import console

    folder = Path(folder)
    manifest = _read_manifest(folder)
    config = manifest["config"]
    tokenizer = _read_tokenizer(folder, manifest["tokenizer"])
    shares = Split(config["val_share"], config["test_share"])
    with console.status(f"checking the hashes of prepared folder {folder}"):
        sources = tuple(
            _read_source(folder / source["folder"], source, tokenizer, described, shares)
            for source, described in zip(manifest["sources"], config["sources"], strict=True)
        )
    return PreparedCorpus(
        folder,
        tokenizer,
        shares,
        config["split_by"],
        sources,
        manifest["split_digest"],
        tuple(config["sources"]),
        config["tokenizer"],
    )


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """The checksum of a manifest's content, apart from the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        partial = f" ({str(unfinished(folder))!r} is unfinished)" if unfinished(folder).is_dir() else ""
        raise CallError(
            f"prepared folder {str(folder)!r} does not exist{partial}: make it with lightning-gpt prepare "
            f"--output {folder}"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except OSError as error:
        raise CallError(f"{str(folder)!r} is not a prepared folder: {MANIFEST}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CallError(f"{folder / MANIFEST} is damaged: prepare the corpus again") from None
    if version != FORMAT:
        raise CallError(
            f"prepared folder {str(folder)!r} has format {version!r}; this version reads format {FORMAT}: prepare the "
            f"corpus again"
        )
    if "split_digest" not in manifest:
        raise CallError(f"prepared folder {str(folder)!r} is unfinished: run the same prepare command again to resume")
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise CallError(f"{folder / MANIFEST} is damaged: its checksum is wrong; prepare the corpus again")
    return dict(manifest)


def _read_tokenizer(folder: Path, described: Mapping[str, Any]) -> Tokenizer:
    file = folder / described["file"]
    _check(file, described["size"], described["sha256"])
    return Tokenizer.from_file(file)


def _read_source(
    folder: Path,
    content: Mapping[str, Any],
    tokenizer: Tokenizer,
    described: Mapping[str, Any],
    shares: Split,
) -> PreparedSource:
    parts = tuple(PartFile.from_json(part) for part in content["parts"])
    for part in parts:
        _check(folder / part.file, part.size, part.sha256)
    for name, index in content["index"].items():
        _check(folder / name, index["size"], index["sha256"])
    arguments = described["arguments"]
    filters = describe_filters(arguments.get("min_characters", 0), arguments.get("keep"))
    limits = described["limits"] if Quota(described["limits"], parts).met else {}
    split = replace(shares, by_position=described["by_position"], named=tuple(described["named_splits"]))
    return PreparedSource(folder, parts, tokenizer, filters, limits, split, described["name"])


def _check(file: Path, size: int, sha256: str) -> None:
    """Raise a CallError if a file is missing or is not as it was written.

    Of several processes on a machine the first reads the files whole; the others compare sizes.
    """
    remedy = "prepare the corpus again, or restore the file"
    try:
        found = file.stat().st_size
        if found != size:
            raise CallError(f"{file} is damaged: it has {found:,} bytes instead of {size:,}; {remedy}")
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0":
            return
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CallError(f"{file} cannot be read: {error.strerror}; {remedy}") from None
    if digest != sha256:
        raise CallError(f"{file} is damaged: its SHA-256 does not match the manifest; {remedy}")
