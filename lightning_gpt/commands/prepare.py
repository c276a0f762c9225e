"""``lightning-gpt prepare``: the documents of a config's data section, tokenised into a folder.

The main process reads the sources in order and cuts them into parts; worker processes tokenise and write the parts.
All work is done in ``<output>.partial``, where a part that has its ``.json`` is complete, so that a run which was
killed goes on after the last of them; the folder gets its name in one step, at the end. What a part holds depends on
the documents alone, so neither a kill nor the number of processes leaves a trace.

Only what a worker needs is imported here, because each of them imports this file.
"""

import fcntl
import json
import os
import re
import signal
import threading
from argparse import ArgumentError
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser

from lightning_gpt.commands.call import check_config_files, one_line, option_names
from lightning_gpt.commands.prepare_progress import Progress
from lightning_gpt.data.prepare.card import card_text, make_card
from lightning_gpt.data.prepare.duplicates import check_threshold, search
from lightning_gpt.data.prepare.parts import (
    Enough,
    Limits,
    Part,
    PartWriter,
    Task,
    complete_parts,
    needed,
    tasks,
    write_json,
)
from lightning_gpt.data.prepared import FORMAT, MANIFEST, unfinished
from lightning_gpt.data.sources.base import SourceBase, require_distinct_names
from lightning_gpt.data.split import SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, Stopped, WorkError
from lightning_gpt.whole_file import write_file

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData

# arguments of a source that say what training takes of it, not what its documents are
_OF_TRAINING = ("weight", "max_tokens", "max_passes")


@dataclass(frozen=True)
class DataSection:
    """The data section of a call's configs: the data, and each source's name, class and arguments as plain values."""

    data: "TextData"
    sources: list[dict[str, Any]]


def parse_data_call(function: Callable[..., None], command: str, args: list[str]) -> tuple[DataSection, dict[str, Any]]:
    """The data section, and the keyword arguments that ``args`` give for ``function`` beside its ``section``.

    A config may be that of a whole run: what is in it beside its data section is not looked at.
    """
    check_config_files(args)
    # Lightning takes seconds to import, so the files are looked at first
    from lightning_gpt.data.datamodule import TextData

    parser = ArgumentParser(prog=f"lightning-gpt {command}", exit_on_error=False)
    parser.add_argument(
        "--config", action="append", required=True, type=str, help="YAML file with a data section; may be repeated."
    )
    parser.add_function_arguments(function, skip={"section"})
    parser.add_class_arguments(TextData, "data")
    try:
        parsed = parser.parse_args(_with_data_of_configs(args))
    except ArgumentError as error:
        raise CallError(one_line(str(error), option_names(parser))) from None
    given = [source.as_dict().get("init_args", {}) for source in parsed.data.sources or []]
    parsed.data.prepared = None  # a run's config may name the folder that is to be made
    data = parser.instantiate_classes(parsed).data
    sources = [
        {"name": source.name, "class": type(source).__name__, "arguments": _documents_only(arguments)}
        for source, arguments in zip(data.sources, given or [{}] * len(data.sources), strict=True)
    ]
    options = {name: value for name, value in vars(parsed).items() if name not in ("config", "data")}
    return DataSection(data, sources), options


def _with_data_of_configs(args: list[str]) -> list[str]:
    """The arguments, with the data section of each config file put after it as an option of its own."""
    result, sections = [], []
    for position, argument in enumerate(args):
        result.append(argument)
        name, equals, value = argument.partition("=")
        if name == "--config" and equals:
            file = value
        elif position and args[position - 1] == "--config":
            file = argument
        else:
            continue
        sections.append(yaml.safe_load(Path(file).read_text(encoding="utf-8")).get("data"))
        result.append(f"--data={json.dumps(sections[-1] or {}, default=str)}")
    if sections and not any(sections):
        raise CallError("no config file has a data section; give one that has the key 'data'")
    return result


def _documents_only(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a source that decide on its documents, as JSON has them; a function becomes its import path."""
    chosen = {name: value for name, value in arguments.items() if name not in _OF_TRAINING}
    as_json = json.dumps(chosen, default=lambda function: f"{function.__module__}.{function.__qualname__}")
    return dict(json.loads(as_json))


def prepare(
    section: DataSection,
    output: str,
    jobs: int | None = None,
    remove_duplicates: bool = False,
    near_duplicate_threshold: float | None = 0.8,
) -> None:
    """Tokenise all documents of the data section into a folder, for training to map into memory.

    Args:
        section: The data section.
        output: The folder to make. A run that was stopped goes on when it is called again with the same settings.
        jobs: Processes that tokenise; as many as there are processors when omitted. The folder is the same.
        remove_duplicates: Leave out training documents that duplicate a validation or test document, or an earlier
            training document. Validation and test stay as they are.
        near_duplicate_threshold: Similarity (0.5 to 0.95) from which two documents are near duplicates: the share
            that they have in common of all their runs of five words. null looks for exact duplicates only.
    """
    from lightning_gpt.console import say

    if jobs is not None and jobs < 1:
        raise CallError(f"jobs is {jobs}; it must be at least 1")
    if near_duplicate_threshold is not None:
        check_threshold(near_duplicate_threshold)
    data, folder = section.data, Path(output)
    limits = [_limits(source, data) for source in data.sources]
    require_distinct_names(data.sources)
    if folder.exists():
        raise CallError(f"output {output!r} exists; choose another folder, or delete it")
    config = {
        "tokenizer": data.vocab_size_to_train or data.tokenizer.fingerprint,
        "val_share": data.split.val,
        "test_share": data.split.test,
        "near_duplicate_threshold": near_duplicate_threshold,
        "remove_duplicates": remove_duplicates,
        "sources": [{**described, "limits": of} for described, of in zip(section.sources, limits, strict=True)],
    }
    work = unfinished(folder)
    with _begun(work, config) as finished:
        if not finished:
            folders = [_source_folder(work, position, each.name) for position, each in enumerate(data.sources)]
            writer = PartWriter(_tokenizer(work, data), data.split, near_duplicate_threshold is not None)
            _write_parts(list(zip(data.sources, folders, limits, strict=True)), writer, jobs or os.cpu_count() or 1)
            _finish(work, config, folders, writer)
        for needed_no_more in (*work.rglob("*.npz"), *work.rglob("*.tmp")):
            needed_no_more.unlink()
        work.rename(folder)
    say(f"{folder} is ready; {folder / 'card.md'} says what it holds")


def _limits(source: SourceBase, data: "TextData") -> Limits:
    """How many tokens of each split training and evaluation can ask for, where the source is not to be read to its end.

    That of validation and test is the most that evaluation takes of one source.
    """
    if source.max_tokens is None:
        return {}
    shares: dict[SplitName, float] = {"val": data.split.val, "test": data.split.test}
    return {"train": source.max_tokens, **{split: data.eval_tokens for split, share in shares.items() if share}}


@contextmanager
def _begun(work: Path, config: dict[str, Any]) -> Iterator[bool]:
    """Begin the folder, or go on with it; gives whether all but its name is done.

    Refuses a folder that was begun with another config, and one that another process is at work in.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise WorkError(f"{work} cannot be made: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (work / MANIFEST).exists():
            write_json(work / MANIFEST, {"format": FORMAT, "config": config})
        begun = json.loads((work / MANIFEST).read_text(encoding="utf-8"))
        others = list(_differences({"format": FORMAT, **begun["config"]}, {"format": FORMAT, **config}))
        if others:
            raise CallError(
                f"{work} was begun with other settings: {'; '.join(others[:3])}; delete it to begin anew, or choose "
                f"another output"
            )
        yield "split_digest" in begun
    except BlockingIOError:
        raise WorkError(f"another prepare is at work in {work}") from None
    finally:
        os.close(lock)


def _differences(was: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in was | now:
            yield from _differences(was.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for position, pair in enumerate(zip(was, now, strict=True)):
            yield from _differences(*pair, f"{key}[{position}]")
    elif was != now:
        yield f"{key} was {was!r} and is {now!r}"


def _source_folder(work: Path, position: int, name: str) -> Path:
    """Where a source's parts are; its name may hold what a folder's may not."""
    return work / f"{position}-{re.sub('[^a-zA-Z0-9._-]+', '-', name)}"


def _tokenizer(work: Path, data: "TextData") -> Tokenizer:
    """The tokenizer in the folder; where there is none yet, that of the data, trained where one is to be trained."""
    folder = work / "tokenizer"
    for file in folder.glob("*.tiktoken"):
        return Tokenizer.from_file(file)
    data.setup("prepare")
    write_file(folder / f"{data.tokenizer.name}.tiktoken", data.tokenizer.table.encode())
    return data.tokenizer


def _write_parts(sources: list[tuple[SourceBase, Path, Limits]], writer: PartWriter, jobs: int) -> None:
    """Write the parts that are not there yet of all sources, each with its folder and limits."""
    stop = threading.Event()
    # a flag rather than KeyboardInterrupt, which Python throws away where it meets it in a finalizer
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (writer,))
    try:
        with Progress() as progress:
            workers = _Workers(pool, jobs, progress)
            for source, folder, limits in sources:
                _write_source(source, folder, limits, workers, stop)
            workers.wait()
        if stop.is_set():
            raise Stopped("stopped; the same command goes on after the parts that are done")
    except BrokenProcessPool:
        raise WorkError(
            "a tokenising process has died (was it killed, or short of memory?): run the same command again, perhaps "
            "with fewer jobs, and it goes on"
        ) from None
    finally:
        signal.signal(signal.SIGINT, before)
        pool.shutdown(cancel_futures=True)


class _Workers:
    """The worker processes, and what they are at."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, progress: Progress) -> None:
        self._pool, self._jobs, self.progress = pool, jobs, progress
        self._running: set[Future[Part]] = set()

    def write(self, task: Task) -> Future[Part]:
        """Begin a part, once a worker is about to be free: no more texts are held than keep them busy."""
        while len(self._running) > self._jobs:
            self.wait(FIRST_COMPLETED)
        part = self._pool.submit(_write_part, task)
        self._running.add(part)
        return part

    def wait(self, until: str = ALL_COMPLETED) -> None:
        """Wait for one part that was begun, or for all."""
        finished, self._running = wait(self._running, return_when=until)
        self.progress.advance([part.result() for part in finished])


def _write_source(source: SourceBase, folder: Path, limits: Limits, workers: _Workers, stop: threading.Event) -> None:
    """Write the parts of a source that are not there yet, as far as it is needed."""
    done = needed(complete_parts(folder), limits)
    _delete_all_but(done, folder)
    workers.progress.begin(source.name, done)
    enough, begun = Enough(limits, done), deque[Future[Part]]()
    for task in () if enough else tasks(source, folder, done):
        while begun and begun[0].done():
            enough.add(begun.popleft().result())
        if enough or stop.is_set():
            break
        begun.append(workers.write(task))
    if limits:
        # parts were begun before it was known that those before them are enough
        workers.wait()
        written = complete_parts(folder)
        kept = needed(written, limits)
        _delete_all_but(kept, folder)
        workers.progress.dismiss(written[len(kept) :])


def _delete_all_but(parts: list[Part], folder: Path) -> None:
    """Delete what is half-written, and the parts beyond the first that is missing."""
    stems = {Path(part.file).stem for part in parts}
    for file in folder.glob("*"):
        if file.suffix == ".tmp" or file.stem not in stems:
            file.unlink()


_writer: PartWriter | None = None  # of a worker process


def _start_worker(writer: PartWriter) -> None:
    """In a new worker process: keep the writer, leave Ctrl-C to the main process, and end when that ends."""
    global _writer
    _writer = writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_part(task: Task) -> Part:
    assert _writer is not None
    return _writer.write(task)


def _finish(work: Path, config: dict[str, Any], folders: list[Path], writer: PartWriter) -> None:
    """Find the duplicates, take out those to remove, and write the manifest and the card."""
    from lightning_gpt.console import console

    names = [source["name"] for source in config["sources"]]
    written = [
        (name, folder / Path(part.file).stem, part)
        for name, folder in zip(names, folders, strict=True)
        for part in complete_parts(folder)
    ]
    if not written:
        raise CallError(f"the corpus is empty: no document with text in {', '.join(names)}")
    with console.status("looking for duplicates"):
        marks = [(name, stem.with_suffix(".npz")) for name, stem, _ in written]
        found = search(marks, config["near_duplicate_threshold"], config["remove_duplicates"])
        for (_, stem, part), removed in zip(written, found.removed, strict=True):
            if len(removed):
                writer.drop(stem, part, removed)
    table = writer.tokenizer.table.encode()
    manifest = {
        "format": FORMAT,
        "config": config,
        "tokenizer": {
            "name": writer.tokenizer.name,
            "vocab_size": writer.tokenizer.vocab_size,
            "fingerprint": writer.tokenizer.fingerprint,
            "token_type": writer.tokenizer.token_type,
            "file": f"tokenizer/{writer.tokenizer.name}.tiktoken",
            "size": len(table),
            "sha256": sha256(table).hexdigest(),
        },
        "split_digest": found.digest,
        "sources": [
            {"folder": folder.name, "parts": [part.to_json() for part in complete_parts(folder)]} for folder in folders
        ],
    }
    lines = (json.dumps(asdict(duplicate), ensure_ascii=False) + "\n" for duplicate in found.duplicates)
    write_file(work / "duplicates.jsonl", "".join(lines).encode())
    card = make_card(manifest, found.duplicates)
    write_json(work / "card.json", card)
    write_file(work / "card.md", card_text(card).encode())
    # last, because it says that all the rest is there
    write_json(work / MANIFEST, manifest)


def run(args: list[str]) -> None:
    """Parse ``args`` and prepare."""
    section, options = parse_data_call(prepare, "prepare", args)
    prepare(section, **options)
