"""The order of the rows is fixed for good, and a prepared corpus has it without reading what others read."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reading import RANKS, cost_of_a_rank, tokens_read
from benchmarks.reading import stream_of as reading_stream
from lightning_gpt.data import indexed
from lightning_gpt.data.best_fit import best_fit
from lightning_gpt.data.counting import count
from lightning_gpt.data.dhondt import next_sources, rows_of_each
from lightning_gpt.data.lanes import LaneStream
from lightning_gpt.data.packing import PACKINGS, PackingName
from lightning_gpt.data.prepared import PreparedCorpus, open_prepared
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.split import Split
from lightning_gpt.data.stream import Stream
from lightning_gpt.errors import CallError, WorkError
from tests.commands.prepare_helpers import prepare_in_short_parts, words, write_texts
from tests.data.helpers import batches
from tests.data.order import CASES, digest, stream_of
from tests.models.helpers import property_test

SHARES = Split(val=0.1, test=0.1)
NAMES = ("a", "b", "c")

DIGESTS = {
    "concatenate, 1 sources, all tokens": "6072a791f4de8fe1",
    "concatenate, 1 sources, 300 tokens": "b51ec2fea4d46a9a",
    "concatenate, 3 sources, all tokens": "98377776c1cebdfa",
    "concatenate, 3 sources, 300 tokens": "4f929f8239028469",
    "best_fit, 1 sources, all tokens": "f3cad66747230c66",
    "best_fit, 1 sources, 300 tokens": "0b98170b0319dfeb",
    "best_fit, 3 sources, all tokens": "fa734fff92f4bb68",
    "best_fit, 3 sources, 300 tokens": "02414a6b487cfcd0",
    "lanes, 1 sources, all tokens": "40b996d84c320da0",
    "lanes, 1 sources, 300 tokens": "12b22ad087310a0e",
    "lanes, 3 sources, all tokens": "be90e03155ca0a4f",
    "lanes, 3 sources, 300 tokens": "80f92baa1cdf789a",
}
"""Computed with a program that read every row one after the other."""


@pytest.mark.parametrize("name", CASES)
def test_the_order_is_what_it_always_was(name: str) -> None:
    assert digest(stream_of(*CASES[name])) == DIGESTS[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources and the folder ``corpus`` prepared from them, in parts of 16 documents."""
    folder, draw = tmp_path_factory.mktemp("order"), random.Random(1)
    for name, documents in zip(NAMES, (90, 40, 23), strict=True):
        texts = [words(draw.randint(1, 60), draw) for _ in range(documents)]
        texts[5] = texts[20] = texts[-1] = ""
        write_texts(folder / f"{name}.jsonl", texts)
    described = [
        {"class_path": "Files", "init_args": {"paths": str(folder / f"{name}.jsonl"), "name": name}} for name in NAMES
    ]
    shares = {"val_share": SHARES.val, "test_share": SHARES.test, "split_by": "documents"}
    rows = {"packing": "best_fit", "block_size": 9, "shuffle_window": 40}
    prepare_in_short_parts(folder, {"sources": described, "tokenizer": 300, **shares, **rows})
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> PreparedCorpus:
    return open_prepared(folder / "corpus")


Case = tuple[PackingName, tuple[float, ...], int | None, int]
STREAMS: list[Case] = [
    (packing, weights, limit, window)
    for packing in ("concatenate", "best_fit", "lanes")
    for weights in ((1.0,), (5.0, 2.0, 1.5))
    for limit in (None, 600)
    for window in (7, 40)
]


def streams(folder: Path, corpus: PreparedCorpus, case: Case, block_size: int = 9) -> tuple[Stream, Stream]:
    """The stream of the sources and that of the folder."""
    packing, weights, limit, window = case
    both = []
    files = [Files(str(folder / f"{name}.jsonl"), name=name) for name in NAMES]
    for sources in (files, open_prepared(corpus.folder).sources):
        used: list[SourceBase] = list(sources[: len(weights)])
        for source in used:
            source.max_tokens = limit
        readers = tuple(Reader(source, SHARES, "train", corpus.tokenizer) for source in used)
        settings = (readers, weights, block_size, window, 2, packing)
        both.append(LaneStream(*settings, 24) if packing == "lanes" else Stream(*settings))
    return both[0], both[1]


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_prepared_corpus_has_the_rows_and_the_cursors_of_its_sources(
    folder: Path, corpus: PreparedCorpus, case: Case
) -> None:
    """For several passes; and a run goes on from each cursor on the other."""
    live, ready = streams(folder, corpus, case)
    for reader, other in zip(live.readers, ready.readers, strict=True):
        ours, theirs = (count(each, 9, PACKINGS[case[0]], case[3]) for each in (other, reader))
        assert {**vars(ours), "token_counts": 0} == {**vars(theirs), "token_counts": 0}
        assert ours.token_counts.tolist() == theirs.token_counts.tolist()
    expected, found = live.open(), ready.open()
    for rows in (24, 72, 24, 240, 960, 2400):
        assert np.array_equal(found.take(rows), expected.take(rows))
        assert found.cursor() == expected.cursor()
        cursor = json.loads(json.dumps(found.cursor()))
        following = [stream.open(cursor).take(48) for stream in (live, ready)]
        assert np.array_equal(*following)


@pytest.mark.parametrize("case", [case for case in STREAMS if case[3] == 40], ids=str)
def test_the_ranks_together_read_each_row_once_and_no_other(folder: Path, corpus: PreparedCorpus, case: Case) -> None:
    live, ready = streams(folder, corpus, case)
    totals = []
    for ranks in (1, 2, 3, 8):
        expected, shares, own, total = live.open(), [ready.open() for _ in range(ranks)], 24 // ranks, 0
        for _ in range(12):
            with tokens_read() as read:
                rows = [share.take_share(24, own * rank, own * (rank + 1)) for rank, share in enumerate(shares)]
            assert np.array_equal(np.concatenate(rows), expected.take(24))
            assert all(share.cursor() == expected.cursor() for share in shares)
            total += sum(read)
        totals.append(total)
    if case[2] is None:  # otherwise every rank reads the document that the limit cuts
        assert len(set(totals)) == 1
        if case[0] == "concatenate":
            assert totals[0] == 12 * 24 * 10


@pytest.mark.parametrize("packing", ["concatenate", "best_fit", "lanes"])
def test_what_a_rank_reads_does_not_grow_with_their_number(corpus: PreparedCorpus, packing: PackingName) -> None:
    for ranks in RANKS:
        stream = reading_stream(corpus.folder, packing, block_size=9, shuffle_window=200)
        cost = cost_of_a_rank(stream, ranks, ranks // 2, batch_size=2, steps=6)
        assert cost.rows == 12
        longest = max(int(reader.source.training.lengths(0, 999).max()) for reader in stream.readers)  # type: ignore[attr-defined]
        # a lane reads whole documents, and may begin one with each row
        most = {"concatenate": 10 * cost.rows, "best_fit": 10 * cost.rows, "lanes": longest * cost.rows}[packing]
        assert 0 < cost.tokens <= most, f"{ranks} ranks"
        if packing == "concatenate":
            assert cost.tokens == most


def test_rows_of_best_fit_are_looked_up_where_prepare_has_stored_them(
    folder: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other windows or rows they are found again, and so is what a limit cuts."""
    found = []
    monkeypatch.setattr(indexed, "best_fit", lambda *given: found.append(given) or best_fit(*given))
    for limit, window, block_size in ((None, 40, 9), (600, 40, 9), (None, 7, 9), (None, 40, 8)):
        live, ready = streams(folder, corpus, ("best_fit", (1.0,), limit, window), block_size)
        assert np.array_equal(ready.open().take(80), live.open().take(80))
        assert bool(found) == ((limit, window, block_size) != (None, 40, 9))
        found.clear()


def test_a_rank_with_loader_workers_reads_its_rows(folder: Path, corpus: PreparedCorpus) -> None:
    _, ready = streams(folder, corpus, ("concatenate", (5.0, 2.0, 1.5), None, 40))
    alone = batches(ready, rows=16, world=1, workers=0, steps=5, accumulate=1)
    assert batches(ready, rows=16, world=2, workers=2, steps=5, accumulate=1) == alone


@property_test
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    skipped=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
)
def test_the_rows_of_each_source_are_known_without_going_through_them(weights: list[float], skipped: list[int]) -> None:
    taken = [0] * len(weights)
    for count_ in skipped:
        one_by_one = np.bincount(next_sources(taken, weights, count_), minlength=len(weights)).tolist()
        assert rows_of_each(taken, weights, count_) == one_by_one
        taken = [had + more for had, more in zip(taken, one_by_one, strict=True)]


def test_a_start_that_the_rule_never_leads_to_is_continued_row_by_row() -> None:
    taken, weights = [50, 0], [1.0, 9.0]
    one_by_one = np.bincount(next_sources(taken, weights, 60), minlength=2).tolist()
    assert rows_of_each(taken, weights, 60) == one_by_one


def test_a_folder_made_of_other_text_is_found_out(folder: Path, corpus: PreparedCorpus) -> None:
    """By the digest in the cursor, though nothing of it is read but the index."""
    for packing in ("concatenate", "lanes"):
        live, ready = streams(folder, corpus, (packing, (1.0,), None, 40))  # type: ignore[arg-type]
        sequence = live.open()
        sequence.take(30)
        cursor = json.loads(json.dumps(sequence.cursor()).replace('digest": "', 'digest": "0'))
        if packing == "lanes":
            cursor = sequence.cursor()
            cursor["lanes"][0][4] = "0" * 16
        for stream in (live, ready):
            with pytest.raises(WorkError, match="source 'a' has changed since the checkpoint was saved"):
                stream.open(cursor).take(1)


def test_only_the_first_process_of_a_machine_reads_the_files_whole(
    corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    index = tmp_path / "corpus/0-a/train.index.npy"
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    with pytest.raises(CallError, match=r"train.index.npy is damaged: its SHA-256 does not match the manifest"):
        open_prepared(tmp_path / "corpus")
    monkeypatch.setenv("LOCAL_RANK", "1")
    open_prepared(tmp_path / "corpus")
    index.write_bytes(content[:-1])
    with pytest.raises(CallError, match=r"train.index.npy is damaged: it has [\d,]+ bytes instead of"):
        open_prepared(tmp_path / "corpus")
