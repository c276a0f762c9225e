"""Prepare a corpus: tokenise sources into a folder, find duplicates, write the manifest and the card.

All work happens in ``<folder>.partial``. A part whose ``.json`` exists there is complete, so a run that was killed
resumes after the last complete part; at the end one rename gives the folder its name. The result depends on the
documents and the settings alone: neither interruptions nor the number of workers change a byte.

:mod:`~lightning_gpt.data.prepared` opens the folder.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning_gpt.cluster import Cluster
from lightning_gpt.console import console
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.document_index import DocumentIndex, build, npy
from lightning_gpt.data.fitted import FITTED
from lightning_gpt.data.indexed import fit_all
from lightning_gpt.data.made_of import changed_files, listed, made_of
from lightning_gpt.data.prepare.card import card_text, make_card
from lightning_gpt.data.prepare.duplicates import search
from lightning_gpt.data.prepare.parts import Limits, PartWriter, complete_parts, write_json
from lightning_gpt.data.prepare.workers import Progress, write_parts
from lightning_gpt.data.prepared import FORMAT, MANIFEST, manifest_checksum, unfinished
from lightning_gpt.data.sources.base import Source, SourceBase
from lightning_gpt.data.split import SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.hardware import cores
from lightning_gpt.json_text import to_json
from lightning_gpt.system_error import refused_path
from lightning_gpt.whole_file import write_file


def prepare_corpus(
    folder: Path,
    data: TextData,
    *,
    jobs: int | None,
    remove_duplicates: bool,
    near_duplicate_threshold: float | None,
    progress: Progress,
    on: Cluster | None = None,
) -> None:
    """Tokenise all documents of ``data`` into ``folder``, resuming what an earlier call left unfinished.

    Args:
        folder: The folder to make; it must not exist.
        data: The sources, the tokenizer (trained first if it has to be) and the split.
        jobs: Number of worker processes, or of tasks at a time on a cluster; one per usable core when None.
        remove_duplicates: Whether to remove training documents that duplicate a validation or test document, or an
            earlier training document.
        near_duplicate_threshold: Lowest similarity of near duplicates; None to find exact duplicates only.
        progress: Receives the parts as they are written.
        on: The cluster that tokenises; this machine when None.

    Raises:
        CallError: The unfinished folder was started with other settings or files, or no document has text.
        WorkError: The folder cannot be written, another process is preparing it, a worker died, or a file changed
            while it was read.
        Stopped: After Ctrl-C.
    """
    with console.status("checksumming the files of the sources"):
        records = [made_of(source) for source in data.configured]
    limits = [_limits(source, data) for source in data.sources]
    config = {
        "tokenizer": data.vocab_size_to_train or data.tokenizer.fingerprint,
        "val_share": data.val_share,
        "test_share": data.test_share,
        "split_by": data.split_by,
        "near_duplicate_threshold": near_duplicate_threshold,
        "remove_duplicates": remove_duplicates,
        "sources": [
            {**record, "limits": of, "by_position": split.by_position, "named_splits": list(split.named)}
            for record, of, split in zip(records, limits, data.splits, strict=True)
        ],
    }
    work = unfinished(folder)
    with _locked(work, config, data.configured) as finished:
        if not finished:
            folders = [_source_folder(work, position, each.name) for position, each in enumerate(data.sources)]
            writer = PartWriter(_tokenizer(work, data), near_duplicate_threshold is not None)
            sources = list(zip(data.sources, data.splits, folders, limits, strict=True))
            write_parts(sources, writer, jobs or (cores() if on is None else on.cores), progress, on)
            changed = _changed_files(config, data.configured)
            if changed:
                raise WorkError(f"{listed(changed)}: it changed while it was read; delete {work} and start over")
            _finish(work, config, folders, writer, data)
        for temporary in (*work.rglob("*.npz"), *work.rglob("*.tmp")):
            temporary.unlink()
        work.rename(folder)


def _limits(source: SourceBase, data: TextData) -> Limits:
    """How many tokens of each split to read at least; no limits when the source is read to its end.

    Evaluation never takes more than ``eval_tokens`` of one source.
    """
    if source.max_tokens is None:
        return {}
    shares: dict[SplitName, float] = {"val": data.val_share, "test": data.test_share}
    held_out = [split for split, share in shares.items() if share or split in source.named_splits]
    return {"train": source.max_tokens, **dict.fromkeys(held_out, data.eval_tokens)}


@contextmanager
def _locked(work: Path, config: dict[str, Any], sources: Sequence[Source]) -> Iterator[bool]:
    """Create the unfinished folder, or reopen it, and hold its lock; yields whether only the rename is left.

    Raises:
        CallError: It was started with other settings or other files, or it cannot be created.
        WorkError: Another process holds its lock, or the disk is full.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise refused_path(f"{work} cannot be created", error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun: dict[str, Any] = {"format": FORMAT, "config": config}
        if not (work / MANIFEST).exists():
            write_json(work / MANIFEST, begun)
        started = json.loads((work / MANIFEST).read_text(encoding="utf-8"))
        was, now = ({"format": each["format"], **_settings(each["config"])} for each in (started, begun))
        changes, what = list(_differences(was, now)), "settings"
        if not changes:
            changes, what = _changed_files(started["config"], sources), "files"
        if changes:
            raise CallError(
                f"{work} was started with other {what}: {listed(changes)}; delete it to start over, or choose another "
                f"output"
            )
        yield "split_digest" in started
    except BlockingIOError:
        raise WorkError(f"another process is already preparing {work}") from None
    finally:
        os.close(lock)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What must be the same when an unfinished folder is resumed, apart from the files."""
    sources = [{name: each for name, each in source.items() if name != "files"} for source in config["sources"]]
    return {**config, "sources": sources}


def _changed_files(config: Mapping[str, Any], sources: Sequence[Source]) -> list[str]:
    """How the files of the sources differ from those that were recorded."""
    pairs = zip(config["sources"], sources, strict=True)
    return [change for record, source in pairs for change in changed_files(record["files"], source.input_files() or [])]


def _differences(was: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in was | now:
            yield from _differences(was.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for position, pair in enumerate(zip(was, now, strict=True)):
            yield from _differences(*pair, f"{key}[{position}]")
    elif was != now:
        yield f"{key} changed from {was!r} to {now!r}"


def _source_folder(work: Path, position: int, name: str) -> Path:
    """The folder for a source's parts; characters that a folder's name may not contain become dashes."""
    return work / f"{position}-{re.sub('[^a-zA-Z0-9._-]+', '-', name)}"


def _tokenizer(work: Path, data: TextData) -> Tokenizer:
    """The tokenizer that the folder already holds, else that of the data (trained now if it has to be)."""
    folder = work / "tokenizer"
    for file in (*folder.glob("*.tiktoken"), *folder.glob("*.json")):
        return Tokenizer.from_file(file)
    data.setup("prepare")
    write_file(folder / data.tokenizer.file_name, data.tokenizer.table.encode())
    return data.tokenizer


def _finish(work: Path, config: dict[str, Any], folders: list[Path], writer: PartWriter, data: TextData) -> None:
    """Find duplicates, remove them if asked to, and write the card and the manifest."""
    names = [source["name"] for source in config["sources"]]
    written = [
        (name, folder / Path(part.file).stem, part)
        for name, folder in zip(names, folders, strict=True)
        for part in complete_parts(folder)
    ]
    if not written:
        raise CallError(f"the corpus is empty: no document with text in {', '.join(names)}")
    with console.status("looking for duplicates"):
        metadata = [(name, stem.with_suffix(".npz")) for name, stem, _ in written]
        found = search(metadata, config["near_duplicate_threshold"], config["remove_duplicates"])
        for (_, stem, part), removed in zip(written, found.removed, strict=True):
            if len(removed):
                writer.drop(stem, part, removed)
    with console.status("writing the index of the training documents"):
        contents = [
            _content(folder, source, limits.get("train"), writer.tokenizer, data)
            for folder, source, limits in zip(
                folders, data.sources, (source["limits"] for source in config["sources"]), strict=True
            )
        ]
    table = writer.tokenizer.table.encode()
    manifest = {
        "format": FORMAT,
        "config": config,
        "tokenizer": {
            "name": writer.tokenizer.name,
            "vocab_size": writer.tokenizer.vocab_size,
            "fingerprint": writer.tokenizer.fingerprint,
            "token_type": writer.tokenizer.token_type,
            "file": f"tokenizer/{writer.tokenizer.file_name}",
            "size": len(table),
            "sha256": sha256(table).hexdigest(),
        },
        "split_digest": found.digest,
        "sources": contents,
    }
    lines = (to_json(asdict(duplicate)) + "\n" for duplicate in found.duplicates)
    write_file(work / "duplicates.jsonl", "".join(lines).encode())
    card = make_card(manifest, found.duplicates)
    write_json(work / "card.json", card)
    write_file(work / "card.md", card_text(card).encode())
    # last: its split_digest marks the folder as complete
    write_json(work / MANIFEST, {**manifest, "checksum": manifest_checksum(manifest)})


def _content(
    folder: Path, source: SourceBase, limit: int | None, tokenizer: Tokenizer, data: TextData
) -> dict[str, Any]:
    """Write the index of a source, and describe its folder."""
    parts = complete_parts(folder)
    files = build(folder, parts, tokenizer.vocab_size, limit)
    for name, content in files.items():
        write_file(folder / name, content)
    (folder / FITTED).unlink(missing_ok=True)  # of an earlier start, with another packing
    if data.packing == "best_fit":
        index = DocumentIndex(folder, parts, limit)
        files[FITTED] = npy(fit_all(source, index, data.block_size + 1, data.shuffle_window))
        write_file(folder / FITTED, files[FITTED])
    return {
        "folder": folder.name,
        "parts": [part.to_json() for part in parts],
        "index": {name: {"size": len(each), "sha256": sha256(each).hexdigest()} for name, each in files.items()},
    }
