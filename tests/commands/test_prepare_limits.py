"""A source with ``max_tokens`` is prepared as far as training and evaluation go, and the batches stay those of fit."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_gpt.commands import prepare as command
from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.packing import PACKINGS, PackingName
from lightning_gpt.data.prepare import parts, workers
from lightning_gpt.data.prepare.parts import PartFile, PartWriter
from lightning_gpt.data.prepared import open_prepared
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from tests.commands.prepare_helpers import Killed, contents, prepare_here, words, write_texts
from tests.processes import write_config

OF_DATA: dict[str, Any] = {"val_share": 0.2, "test_share": 0.2, "eval_tokens": 900}
MAX_TOKENS = 4000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Source ``a``, of 200 documents, is limited and repeats itself; source ``b`` is not limited."""
    draw = random.Random(3)
    a = [words(draw.randint(20, 60), draw) for _ in range(200)]
    a[7], a[21], a[22] = a[1], a[2], a[3] + " more"
    write_texts(tmp_path / "a.jsonl", a)
    write_texts(tmp_path / "b.jsonl", [words(draw.randint(20, 60), draw) for _ in range(30)])
    Tokenizer("bytes", {bytes([byte]): byte for byte in range(256)}).save(tmp_path)
    write_limited(tmp_path, MAX_TOKENS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "PART_DOCUMENTS", 16)
    return tmp_path


def write_limited(folder: Path, max_tokens: int) -> None:
    limited = {"class_path": "Files", "init_args": {"paths": "a.jsonl", "name": "a", "max_tokens": max_tokens}}
    whole = {"class_path": "Files", "init_args": {"paths": "b.jsonl", "name": "b"}}
    data = {"tokenizer": "bytes.tiktoken", "sources": [limited, whole], **OF_DATA}
    write_config(folder / "config.yaml", {"data": data})


def prepare_to(output: str, *options: str) -> dict[str, str]:
    prepare_here("--config", "config.yaml", "--output", output, *options)
    return contents(Path(output))


def data_of(max_tokens: int | None, prepared: str | None = None, **changes: Any) -> TextData:
    sources = [Files("a.jsonl", name="a", max_tokens=max_tokens), Files("b.jsonl", name="b")]
    of_data = {"tokenizer": "bytes.tiktoken", "block_size": 32, "shuffle_window": 20, **OF_DATA, **changes}
    return TextData(sources, prepared, **of_data)


def same(batch: Batch, other: Batch) -> bool:
    return all(torch.equal(batch[name], other[name]) for name in ("ids", "targets"))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_batches_are_those_of_the_source(folder: Path, packing: PackingName) -> None:
    prepare_to("x")
    live, prepared = data_of(MAX_TOKENS, packing=packing), data_of(MAX_TOKENS, "x", packing=packing)
    sequences = [data.stream().open() for data in (live, prepared)]
    for _ in range(4):
        rows, rows_prepared = (sequence.take(150) for sequence in sequences)
        assert rows.tolist() == rows_prepared.tolist()
        assert sequences[0].cursor() == sequences[1].cursor()
    assert live.stream().identity() == prepared.stream().identity()
    for part in ("val", "test"):
        batches = zip(live.evaluation(part), prepared.evaluation(part), strict=True)  # type: ignore[arg-type]
        assert all(same(*pair) for pair in batches)


def test_a_limited_source_is_read_no_further_than_it_takes(folder: Path) -> None:
    prepare_to("x")
    a, b = open_prepared("x").sources
    assert b.parts[-1].end_document == 30
    assert a.parts[-1].end_document < 200
    limits = {"train": MAX_TOKENS, "val": 900, "test": 900}
    assert a.limits == limits
    assert b.limits == {}
    assert all(a.tally(split).tokens >= limit for split, limit in limits.items())  # type: ignore[arg-type]
    without_last = [sum(part.splits[split].tokens for part in a.parts[:-1]) for split in ("train", "val", "test")]
    assert any(tokens < limit for tokens, limit in zip(without_last, limits.values(), strict=True))
    assert (
        "read until it had yielded 4,000 train tokens, 900 val tokens, 900 test tokens" in Path("x/card.md").read_text()
    )


class Together(ThreadPoolExecutor):
    """Stands for the pool of processes: parts beyond the last that is needed are begun before that is known."""

    def __init__(self, jobs: int, context: object, start: object, initial: tuple[PartWriter]) -> None:
        workers._writer = initial[0]
        super().__init__(jobs)


def test_parts_that_were_begun_in_vain_leave_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = prepare_to("one-by-one")
    capfd.readouterr()
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Together)
    command.run(["--config", "config.yaml", "--output", "together", "--jobs", "5"])
    assert contents(folder / "together") == expected
    sources = json.loads((folder / "together/card.json").read_text())["sources"]
    documents = sum(split["documents"] for source in sources for split in source["splits"].values())
    assert capfd.readouterr().err.startswith(f"{documents:,} documents, ")


def test_killed_while_duplicates_are_removed_it_reads_no_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left then is less than the limit; that must not be taken for a source that was not read far enough."""
    prepare_to("probe")
    limit = open_prepared("probe").sources[0].tally("train").tokens
    write_limited(folder, limit)
    options = ("--remove_duplicates", "true")
    expected = prepare_to("undisturbed", *options)
    assert open_prepared("undisturbed").sources[0].tally("train").tokens < limit
    drop = PartWriter.drop

    def mortal(*args: Any) -> PartFile:
        drop(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "drop", mortal)
        with pytest.raises(Killed):
            prepare_to("killed", *options)
    assert prepare_to("killed", *options) == expected


def test_begun_with_another_limit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("lightning_gpt.data.prepare.corpus._finish", killed)
        with pytest.raises(Killed):
            prepare_to("x")
    write_limited(folder, 5000)
    with pytest.raises(CallError, match=r"sources\[0\].limits.train changed from 4000 to 5000"):
        prepare_to("x")


def test_more_than_was_prepared_is_refused_and_less_is_not(folder: Path) -> None:
    prepare_to("x")
    data_of(3000, "x", eval_tokens=500)
    with pytest.raises(CallError, match=r"made with max_tokens 4000 for source 'a', but the .* has max_tokens 4001"):
        data_of(4001, "x")
    with pytest.raises(CallError, match=r"made with max_tokens 4000 for source 'a', but the .* has max_tokens null"):
        data_of(None, "x")
    with pytest.raises(CallError, match=r"made with eval_tokens 900 for source 'a', but the .* has eval_tokens 901"):
        data_of(MAX_TOKENS, "x", eval_tokens=901)


def test_a_source_that_ended_before_its_limit_is_whole(folder: Path) -> None:
    write_limited(folder, 10**9)
    prepare_to("x")
    assert open_prepared("x").sources[0].limits == {}
    data_of(None, "x", eval_tokens=10**6)


def test_sources_of_a_folder_are_none_that_a_config_names() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TextData, "data")
    text = parser.format_help()
    assert "Files" in text
    assert "PreparedSource" not in text
