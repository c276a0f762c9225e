"""Dividing a corpus into splits: by documents, by position where there are too few, or by files of their own."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.packing import PACKINGS, PackingName
from lightning_gpt.data.prepare import parts
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.base import Document, Source
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.stream import Stream
from lightning_gpt.errors import CallError
from tests.commands.prepare_helpers import contents, prepare_here, words
from tests.data.helpers import BYTES, Listed, batches
from tests.processes import write_config

ALL: tuple[SplitName, ...] = ("train", "val", "test")
TEXTS = st.text(alphabet="ab \n\r🙂é", max_size=300)
SHARES = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3, 0.45])


@given(text=TEXTS, val=SHARES, test=SHARES)
def test_by_position_each_character_is_in_exactly_one_split(text: str, val: float, test: float) -> None:
    split = Split(val, test, by_position=True)
    pieces = list(split.pieces(text, None))
    assert "".join(piece for _, piece in pieces) == text
    names = [name for name, _ in pieces]
    assert names == [name for name in ALL if name in names]
    assert ("val" in names, "test" in names) <= (val > 0, test > 0)
    assert list(split.pieces(text, None)) == pieces
    for name, piece in pieces:
        share = split.shares[name]
        assert abs(len(piece) - share * len(text)) <= len(text) * min(s for s in split.shares.values() if s) / 2 + 2


def test_a_document_is_cut_between_paragraphs_lines_or_words() -> None:
    split = Split(0.25, 0.25, by_position=True)
    for mark in ("\n\n", "\n", " "):
        text = mark.join(f"word{n:03}" for n in range(100))
        pieces = [piece for _, piece in split.pieces(text, None)]
        assert len(pieces) == 3
        assert all(piece.endswith(mark) for piece in pieces[:2])


def book(seed: int, paragraphs: int = 120) -> str:
    draw = random.Random(seed)
    return "\n\n".join(words(draw.randint(5, 30), draw) for _ in range(paragraphs))


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(book(n))
    BYTES.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_of(*sources: Source, **changes: Any) -> TextData:
    of_data = {"tokenizer": "bytes.tiktoken", "block_size": 32, "batch_size": 4, "shuffle_window": 20}
    return TextData(list(sources), **{**of_data, **changes})


def texts(data: TextData) -> dict[SplitName, list[str]]:
    return {part: list(data.texts(part)) for part in ALL}


def test_few_documents_are_split_by_position(books: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = data_of(Files(["0.txt", "1.txt"]))
    data.setup("fit")
    assert (
        "files: 2 documents, too few to split by documents, so each is split by position (split_by): 90% training, "
        "then 5% validation, then 5% test" in capfd.readouterr().err
    )
    found = texts(data)
    assert ["".join(parts) for parts in zip(*found.values(), strict=True)] == [book(0), book(1)]
    whole = sum(len(text) for text in (book(0), book(1)))
    assert sum(map(len, found["val"])) == pytest.approx(0.05 * whole, rel=0.5)
    assert data.evaluation("val").all_targets.max() > 0


def test_each_source_is_split_by_itself_and_the_choice_can_be_made(capfd: pytest.CaptureFixture[str]) -> None:
    many = Listed([f"document {n} " * 20 for n in range(200)], "many")
    few = Listed([book(0)], "few")
    assert [split.by_position for split in TextData([many, few]).splits] == [False, True]
    assert [split.by_position for split in TextData([many, few], split_by="position").splits] == [True, True]
    assert [split.by_position for split in TextData([many, few], split_by="documents").splits] == [False, False]
    assert capfd.readouterr().err.count("split by position") == 1
    # nine documents are too few for a tenth, whatever their hashes; a document more and each split has one
    own = sorted((f"text {n}" for n in range(500)), key=lambda text: ALL.index(Split(0.1, 0.1).of(text)))
    texts = [own[0], own[-1], next(text for text in own if Split(0.1, 0.1).of(text) == "val"), *own[1:7]]
    nine, ten = (TextData([Listed(each)], val_share=0.1, test_share=0.1) for each in (texts, [*texts, own[7]]))
    assert [data.splits[0].by_position for data in (nine, ten)] == [True, False]
    no_test = TextData([Listed(own[:100])], val_share=0.1, test_share=0.1)
    assert no_test.splits[0].by_position
    hardly = TextData([Listed(own)], val_share=1e-310, test_share=0.1)
    assert hardly.splits[0].by_position


class Endless(Source):
    """A stream that must not be read to decide anything."""

    countable = False

    def documents(self, start: int = 0) -> Iterator[Document]:
        raise AssertionError


def test_what_cannot_be_counted_is_split_by_documents_unread() -> None:
    assert not TextData([Endless()]).splits[0].by_position
    assert TextData([Endless()], split_by="position").splits[0].by_position


@pytest.mark.parametrize(("world", "workers", "accumulate"), [(1, 0, 2), (2, 1, 1), (4, 2, 1)])
def test_processes_workers_and_a_cursor_change_nothing(world: int, workers: int, accumulate: int) -> None:
    source = Listed([book(n) for n in range(3)])
    stream = Stream((Reader(source, Split(0.2, 0.2, by_position=True), "train", BYTES),), (1.0,), 16, 50, 3)
    alone = batches(stream, rows=8, world=1, workers=0, steps=12, accumulate=1)
    assert batches(stream, rows=8, world=world, workers=workers, steps=12, accumulate=accumulate) == alone
    sequence = stream.open()
    sequence.take(40)
    rest = batches(stream, rows=8, world=1, workers=0, steps=12, accumulate=1, cursor=sequence.cursor())
    assert rest == alone[5:]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_prepared_folder_gives_the_same_batches(
    books: Path, packing: PackingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_DOCUMENTS", 2)
    options = {"paths": ["0.txt", "1.txt", "2.txt"], "val_paths": "0.txt"}
    described = [{"class_path": "Files", "init_args": options}]
    write_config(Path("config.yaml"), {"data": {"tokenizer": "bytes.tiktoken", "sources": described}})
    prepare_here("--config", "config.yaml", "--output", "ready")
    live, ready = (
        data_of(Files(**options), packing=packing),
        data_of(Files(**options), packing=packing, prepared="ready"),
    )
    for data in (live, ready):
        data.setup("fit")
    sequences = [data.stream().open() for data in (live, ready)]
    for _ in range(6):
        rows = [sequence.take(100) for sequence in sequences]
        assert np.array_equal(*rows)
        assert sequences[0].cursor() == sequences[1].cursor()
    assert live.stream().identity() == ready.stream().identity()
    assert live.counts()[0].tokens == ready.counts()[0].tokens  # type: ignore[index]
    for part in ("val", "test"):
        pair = [data.evaluation(part).all_targets for data in (live, ready)]  # type: ignore[arg-type]
        assert pair[0].equal(pair[1])
    decoded = [document.text for document in ready.sources[0].documents()]
    assert decoded == [document.text for document in live.sources[0].documents()]
    with pytest.raises(CallError, match=r"split_by is auto in the folder and documents in the config"):
        data_of(Files(**options), prepared="ready", split_by="documents")


def test_duplicates_between_named_files_and_others_leave_training_alone_only_in_training(books: Path) -> None:
    """The copy in training is removed, wherever it stands; the validation parts of cut documents stay."""
    Path("copy.txt").write_text(book(2))
    write_config(
        Path("config.yaml"),
        {
            "data": {
                "tokenizer": "bytes.tiktoken",
                "sources": [
                    {
                        "class_path": "Files",
                        "init_args": {"paths": ["0.txt", "copy.txt"], "name": "a", "test_paths": "1.txt"},
                    },
                    {"class_path": "Files", "init_args": {"paths": "0.txt", "val_paths": "2.txt", "name": "b"}},
                ],
                "val_share": 0.0,
                "test_share": 0.0,
            }
        },
    )
    prepare_here("--config", "config.yaml", "--output", "ready", "--remove_duplicates", "true")
    sources = [
        Files(["0.txt", "copy.txt"], name="a", test_paths="1.txt"),
        Files("0.txt", name="b", val_paths="2.txt"),
    ]
    ready = data_of(*sources, prepared="ready", val_share=0.0, test_share=0.0)
    tallies = [{part: source.tally(part).documents for part in ALL} for source in ready.sources]  # type: ignore[attr-defined]
    assert tallies == [{"train": 1, "val": 0, "test": 1}, {"train": 0, "val": 1, "test": 0}]


def test_the_training_part_alone_of_a_cut_document_is_removed(books: Path) -> None:
    Path("again.txt").write_text(book(0))
    paths = ["0.txt", "1.txt", "2.txt", "again.txt"]
    write_config(
        Path("config.yaml"),
        {"data": {"tokenizer": "bytes.tiktoken", "sources": [{"class_path": "Files", "init_args": {"paths": paths}}]}},
    )
    for output in ("once", "again"):
        prepare_here("--config", "config.yaml", "--output", output, "--remove_duplicates", "true")
    assert contents(Path("once")) == contents(Path("again"))
    ready = data_of(Files(paths), prepared="once")
    tallies = {part: ready.sources[0].tally(part).documents for part in ALL}  # type: ignore[attr-defined]
    assert tallies == {"train": 3, "val": 4, "test": 4}


def test_files_may_be_named_for_validation_and_test(books: Path) -> None:
    Path("deep").mkdir()
    Path("deep/3.txt").write_text(book(3))
    named = data_of(Files(".", val_paths="deep", test_paths=["2.txt"]))
    assert texts(named) == {"train": [book(0), book(1)], "val": [book(3)], "test": [book(2)]}
    only_val = data_of(Files(["0.txt", "1.txt"], val_paths="2.txt"))
    found = texts(only_val)
    assert found["val"] == [book(2)]
    assert [a + b for a, b in zip(found["train"], found["test"], strict=True)] == [book(0), book(1)]


# the arguments of Files, what else, and the refusal
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a file for two splits": (
        {"val_paths": "1.txt", "test_paths": "?.txt"},
        {},
        r"'1.txt' is in val_paths and in test_p",
    ),
    "nothing left": ({"val_paths": "0.txt"}, {}, r"no file left for training: all are in val_paths or test_paths"),
    "no such file": ({"val_paths": "nope.txt"}, {}, r"data file 'nope.txt' does not exist"),
    "empty path": (
        {"val_paths": ""},
        {},
        r"source 'files' has an empty path in val_paths; write . for the working folder",
    ),
    "empty path of training": ({"paths": ""}, {}, r"source 'files' has an empty path in paths; write . for"),
    "empty path in a list": ({"paths": ["0.txt", ""]}, {}, r"source 'files' has an empty path in paths; write . for"),
    "no paths": ({"val_paths": []}, {}, r"source 'files' was given no val_paths; give at least one"),
    "an empty validation file": (
        {"val_paths": "empty.txt"},
        {},
        r"files of val_paths of source 'files' have no document",
    ),
    "an empty file": (
        {"paths": "empty.txt"},
        {},
        r"source 'files' has no training document: none of the 0 documents read has text",
    ),
    "all rejected": (
        {"min_characters": 10**6},
        {},
        r"none of the 1 documents read has text and passes its filters \(min_characters 1000000, keep None\)",
    ),
    "too short for validation": ({"paths": "tiny.txt"}, {}, r"val split is empty: val_share is 0.05, .* none of 1 doc"),
    "no share": (
        {},
        {"val_share": 0},
        r"val split is empty: val_share is 0, .* none of 1 documents; raise the share, name",
    ),
    "one document as a whole": ({}, {"split_by": "documents"}, r"val split is empty: .* or set split_by to position"),
    "too little for a step": (
        {"paths": "little.txt"},
        {},
        r"has 181 training tokens, .* block_size 256 needs 257, and an optimizer step of 4 rows 1,028; add text",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_refused_before_it_is_tokenised(
    name: str, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty.txt").write_text(" \n ")
    Path("tiny.txt").write_text("a")
    Path("little.txt").write_text("x" * 200)
    arguments, settings, pattern = REFUSED[name]
    if name != "too little for a step":
        monkeypatch.setattr("lightning_gpt.data.tokenizer.Tokenizer.encode_document", None)

    def start() -> None:
        data = data_of(Files(**{"paths": "0.txt", **arguments}), **{"block_size": 256, **settings})
        data.setup("validate")
        data.setup("fit")

    with pytest.raises(CallError, match=pattern) as refusal:
        start()
    assert len(str(refusal.value)) < 300
