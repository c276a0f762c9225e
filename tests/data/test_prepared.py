"""A prepared corpus gives what its source gives, from any document, and a damaged one is refused by name."""

import json
import multiprocessing
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from lightning_gpt.data.prepared import PreparedCorpus, PreparedSource, open_prepared
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.base import Source
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from tests.commands.prepare_helpers import prepare_in_short_parts

SHARES = Split(val=0.2, test=0.1)


def live_sources(folder: Path) -> list[Source]:
    return [Files(str(folder / "a.jsonl"), name="a", min_characters=5), Files(str(folder / "b.jsonl"), name="the/b")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources and the folder ``corpus`` that was prepared from them, in parts of 16 documents."""
    folder = tmp_path_factory.mktemp("prepared")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdeäß🙂 ", k=draw.randint(1, 8))) for _ in range(100)]
    for name, count in (("a", 150), ("b", 40)):
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 80))) for _ in range(count)]
        # empty, too short, and at the very end of the source too
        texts[3] = texts[30] = texts[-1] = ""
        texts[31] = "abc"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    described = [
        {"class_path": "Files", "init_args": {"paths": str(folder / "a.jsonl"), "name": "a", "min_characters": 5}},
        {"class_path": "Files", "init_args": {"paths": str(folder / "b.jsonl"), "name": "the/b"}},
    ]
    data = {"sources": described, "tokenizer": 300, "val_share": SHARES.val, "test_share": SHARES.test}
    prepare_in_short_parts(folder, data)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> PreparedCorpus:
    return open_prepared(folder / "corpus")


def plain(documents: Iterator[tuple[int, np.ndarray]]) -> list[tuple[int, list[int]]]:
    return [(number, tokens.tolist()) for number, tokens in documents]


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("start", [0, 3, 4, 16, 31, 32, 149, 1000])
def test_numbers_and_ids_are_those_of_the_live_source(
    corpus: PreparedCorpus, folder: Path, part: SplitName, start: int
) -> None:
    for source, live in zip(corpus.sources, live_sources(folder), strict=True):
        expected = plain(Reader(live, SHARES, part, corpus.tokenizer).tokens(start))
        assert plain((n, ids) for n, split, ids in source.tokens(start) if split == part) == expected
        assert source.name == live.name


def test_tallies_are_those_of_the_live_source(corpus: PreparedCorpus, folder: Path) -> None:
    for source, live in zip(corpus.sources, live_sources(folder), strict=True):
        parts: tuple[SplitName, ...] = ("train", "val", "test")
        for part in parts:
            read = [tokens for _, tokens in Reader(live, SHARES, part, corpus.tokenizer).tokens()]
            tally = source.tally(part)
            assert (tally.documents, tally.tokens) == (len(read), sum(map(len, read)))


@pytest.mark.parametrize("start", [0, 2, 3, 4, 31, 60, 148])
def test_as_a_source_it_gives_the_texts_under_their_numbers(corpus: PreparedCorpus, folder: Path, start: int) -> None:
    source, live = corpus.sources[0], live_sources(folder)[0]
    texts = [document.text if live.accepts(document.text) else "" for document in live.documents(start)]
    read = [document.text for document in source.documents(start)]
    assert read == texts[: len(read)]
    assert not any(texts[len(read) :])
    for part in ("train", "val"):
        again = Reader(source, SHARES, part, corpus.tokenizer)
        assert plain(again.tokens(start)) == plain(Reader(live, SHARES, part, corpus.tokenizer).tokens(start))


def test_the_tokenizer_is_that_of_fit(corpus: PreparedCorpus, folder: Path) -> None:
    texts = (
        document.text
        for source in live_sources(folder)
        for document in source.documents()
        if source.accepts(document.text) and SHARES.of(document.text) == "train"
    )
    assert corpus.tokenizer.fingerprint == Tokenizer.train(texts, 300).fingerprint
    assert corpus.split == SHARES


def test_tokens_lie_in_the_mapped_file(corpus: PreparedCorpus) -> None:
    _, _, tokens = next(corpus.sources[0].tokens(20))
    assert tokens.dtype == np.uint16
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


def _numbers(source: PreparedSource) -> list[tuple[int, list[int]]]:
    return [(number, tokens.tolist()) for number, _, tokens in source.tokens(30)]


def test_it_works_in_another_process(corpus: PreparedCorpus) -> None:
    source = corpus.sources[0]
    assert _numbers(pickle.loads(pickle.dumps(source))) == _numbers(source)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_numbers, (source,)) == _numbers(source)


def test_the_datasets_library_opens_every_part(corpus: PreparedCorpus) -> None:
    source = corpus.sources[1]
    assert source.folder.name == "1-the-b"
    files = [datasets.Dataset.from_file(str(source.folder / part.file)) for part in source.parts]
    rows = list(datasets.concatenate_datasets(files))
    splits = files[0].features["split"]
    assert [(row["number"], splits.int2str(row["split"]), row["tokens"]) for row in rows] == [
        (number, split, tokens.tolist()) for number, split, tokens in source.tokens()
    ]


def test_parts_follow_each_other(corpus: PreparedCorpus) -> None:
    for source in corpus.sources:
        borders = [(part.first_document, part.end_document) for part in source.parts]
        assert borders[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(borders))
    assert len(corpus.sources[0].parts) == 9


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _flip_text(file: Path, old: str, new: str) -> None:
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))


def _rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _unfinish(folder: Path) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["split_digest"]
    file.write_text(json.dumps(manifest))


# what is done to the folder, and a pattern of the refusal
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed part": (
        lambda f: _flip(f / "0-a/part-00003.arrow"),
        r"0-a/part-00003.arrow is damaged: its SHA-256 does not match the manifest",
    ),
    "cut part": (
        lambda f: (f / "1-the-b/part-00000.arrow").write_bytes((f / "1-the-b/part-00000.arrow").read_bytes()[:-1]),
        r"1-the-b/part-00000.arrow is damaged: it has [\d,]+ bytes instead of [\d,]+",
    ),
    "missing part": (
        lambda f: (f / "0-a/part-00001.arrow").unlink(),
        r"0-a/part-00001.arrow cannot be read: No such file",
    ),
    "changed tokenizer": (lambda f: _flip(f / "tokenizer/bpe-300.tiktoken"), r"bpe-300.tiktoken is damaged"),
    "missing tokenizer": (lambda f: (f / "tokenizer/bpe-300.tiktoken").unlink(), r"bpe-300.tiktoken cannot be read"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"is not a prepared folder: manifest.json: No such file"),
    "manifest cut": (lambda f: (f / "manifest.json").write_text('{"format": 1,'), r"manifest.json is damaged"),
    "manifest of something else": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest.json is damaged"),
    "changed manifest": (
        lambda f: _flip_text(f / "manifest.json", '"end_document": ', '"end_document": 1'),
        r"manifest.json is damaged: its checksum is wrong",
    ),
    "unknown format": (lambda f: _rewrite(f / "manifest.json", format=7), r"has format 7; this version reads format 4"),
    "half-written": (_unfinish, r"is unfinished: run the same prepare command again"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(folder: Path, name: str, tmp_path: Path) -> None:
    damage, pattern = DAMAGES[name]
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    open_prepared(tmp_path / "corpus")
    damage(tmp_path / "corpus")
    with pytest.raises(CallError, match=pattern):
        open_prepared(tmp_path / "corpus")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"'.*x' does not exist: make it with lightning-gpt prepare --output .*x$"):
        open_prepared(tmp_path / "x")
    (tmp_path / "x.partial").mkdir()
    with pytest.raises(CallError, match=r"x' does not exist \('.*x.partial' is unfinished\)"):
        open_prepared(tmp_path / "x")


def test_another_tokenizer_or_split_is_refused(corpus: PreparedCorpus) -> None:
    fingerprint = corpus.tokenizer.fingerprint
    corpus.require(tokenizer_fingerprint=fingerprint, val_share=0.2, test_share=0.1)
    corpus.require()
    with pytest.raises(CallError, match=rf"tokenizer is {fingerprint} in the folder and 0123 in the .*; prepare"):
        corpus.require(tokenizer_fingerprint="0123", val_share=0.2)
    differences = "val_share is 0.2 in the folder and 0.3 in .*; test_share is 0.1 in the folder and 0.2 in"
    with pytest.raises(CallError, match=differences):
        corpus.require(tokenizer_fingerprint=fingerprint, val_share=0.3, test_share=0.2)
