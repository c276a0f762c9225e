"""The sequence of training rows: nothing lost, nothing doubled, exactly repeatable from any cursor."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gpt.data.batches import EvalBatches, SizedTrainBatches
from lightning_gpt.data.counting import count
from lightning_gpt.data.divide import texts_of
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.split import Split
from lightning_gpt.data.stream import RowSequence, Stream, evaluation_documents
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.models.head import IGNORED
from tests.data.helpers import BYTES, EVERYTHING, Listed, batches, tokens_of


def stream_of(
    corpora: Sequence[Sequence[str]],
    block_size: int,
    window: int,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> Stream:
    readers = tuple(Reader(Listed(texts, f"source {n}"), EVERYTHING, "train", BYTES) for n, texts in enumerate(corpora))
    rows = [float(count(reader, block_size).rows) for reader in readers]
    return Stream(readers, tuple(weights or rows), block_size, window, seed)


texts = st.lists(st.text(alphabet="abcdefgh ", max_size=40), min_size=1, max_size=12)
corpora = st.lists(texts, min_size=1, max_size=3)


def pass_rows(corpora: Sequence[Sequence[str]], row_tokens: int) -> list[int]:
    return [len(tokens_of(corpus)) // row_tokens for corpus in corpora]


@given(corpora=corpora, block_size=st.integers(1, 9), window=st.integers(1, 20), seed=st.integers(0, 5))
def test_a_pass_holds_every_token_once(corpora: list[list[str]], block_size: int, window: int, seed: int) -> None:
    """Each run of as many rows as the sources hold is each source's rows once, in some order, for every pass."""
    rows = pass_rows(corpora, block_size + 1)
    if 0 in rows:
        return
    sequence = stream_of(corpora, block_size, window, seed).open()
    expected: Counter[tuple[int, ...]] = Counter()
    for corpus, count_ in zip(corpora, rows, strict=True):
        stream = tokens_of(corpus)
        expected.update(tuple(stream[i * (block_size + 1) : (i + 1) * (block_size + 1)]) for i in range(count_))
    for _ in range(3):
        assert Counter(map(tuple, sequence.take(sum(rows)).tolist())) == expected


def test_unpacked_rows_of_an_unshuffled_pass_are_the_documents() -> None:
    documents = ["the first", "a second one", "third"]
    tokens = tokens_of(documents)
    sequence = stream_of([documents], block_size=len(tokens) - 1, window=1).open()
    row = sequence.take(1)[0].tolist()
    assert BYTES.decode(row).split("<|endoftext|>")[:-1] == documents


def test_two_passes_and_two_seeds_differ_in_order() -> None:
    corpus = [["abcdefgh" * 40]]
    sequence = stream_of(corpus, 3, window=1000).open()
    first, second = sequence.take(80).tolist(), sequence.take(80).tolist()
    assert first != second
    assert stream_of(corpus, 3, window=1000, seed=1).open().take(80).tolist() != first
    assert stream_of(corpus, 3, window=1000).open().take(80).tolist() == first


@settings(max_examples=60)
@given(
    corpora=corpora,
    block_size=st.integers(1, 6),
    window=st.integers(1, 12),
    stop=st.integers(0, 60),
    weighted=st.booleans(),
)
def test_from_any_cursor_the_rows_are_those_of_the_run_left_alone(
    corpora: list[list[str]], block_size: int, window: int, stop: int, weighted: bool
) -> None:
    if 0 in pass_rows(corpora, block_size + 1):
        return
    stream = stream_of(corpora, block_size, window, weights=[3.0, 2.0, 1.0][: len(corpora)] if weighted else None)
    alone = stream.open().take(stop + 40) if stop + 40 else None
    assert alone is not None
    stopped = stream.open()
    if stop:
        stopped.take(stop)
    cursor = json.loads(json.dumps(stopped.cursor()))
    resumed = stream.open(cursor)
    assert resumed.take(40).tolist() == alone[stop:].tolist()
    assert resumed.cursor()["rows"] == stop + 40


def test_cursor_is_small_whatever_was_read() -> None:
    sequence = stream_of([["abcdefgh" * 5000]] * 3, 7, window=64).open()
    sequence.take(9000)
    assert len(json.dumps(sequence.cursor())) < 1000


@given(weights=st.lists(st.integers(1, 50), min_size=2, max_size=3), rows=st.integers(1, 200))
def test_every_source_has_its_share_at_every_moment(weights: list[int], rows: int) -> None:
    sequence = stream_of([["abcdefgh" * 50]] * len(weights), 3, 16, weights=[float(w) for w in weights]).open()
    sequence.take(rows)
    for source, weight in zip(sequence.sources, weights, strict=True):
        assert abs(source.taken - rows * weight / sum(weights)) <= len(weights)
    assert sum(source.taken for source in sequence.sources) == rows


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=3), counts=st.lists(st.integers(1, 30), max_size=5))
def test_many_rows_at_once_are_those_taken_one_by_one(weights: list[int], counts: list[int]) -> None:
    stream = stream_of([["abcdefgh" * 9], ["hgfedcba" * 7], ["x" * 50]][: len(weights)], 3, 8, weights=weights)
    at_once, one_by_one = stream.open(), stream.open()
    for rows in counts:
        assert at_once.take(rows).tolist() == [one_by_one.take(1)[0].tolist() for _ in range(rows)]
        assert at_once.cursor() == one_by_one.cursor()


@pytest.mark.parametrize(
    ("world", "workers", "accumulate"),
    [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (1, 1, 1), (1, 2, 1), (2, 4, 1), (1, 0, 4), (2, 2, 2), (4, 0, 2)],
)
def test_global_batches_are_the_same_however_they_are_shared(world: int, workers: int, accumulate: int) -> None:
    corpora = [["abcdefgh" * 60, "x" * 77], ["hgfedcba" * 33]]
    stream = stream_of(corpora, 4, window=32)
    alone = batches(stream, rows=16, world=1, workers=0, steps=9, accumulate=1)
    shared = batches(stream, rows=16, world=world, workers=workers, steps=9, accumulate=accumulate)
    assert len(alone) == 9
    assert [sorted(batch) for batch in shared] == [sorted(batch) for batch in alone]
    if accumulate == 1:
        assert shared == alone


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (4, 2)])
def test_resumed_with_other_processes_and_workers(world: int, workers: int) -> None:
    stream = stream_of([["abcdefgh" * 60]], 4, window=32)
    alone = batches(stream, rows=8, world=1, workers=0, steps=10, accumulate=1)
    sequence = stream.open()
    sequence.take(8 * 3)
    rest = batches(stream, rows=8, world=world, workers=workers, steps=10, accumulate=1, cursor=sequence.cursor())
    assert rest == alone[3:]


def test_a_resumed_epoch_ends_where_the_whole_one_does() -> None:
    stream = stream_of([["abcdefgh" * 60]], 4, window=32)
    dataset = SizedTrainBatches(stream, 4, 0, 1, steps_per_epoch=10, accumulate=1)
    assert len(dataset) == len(list(dataset)) == 10
    sequence = stream.open()
    sequence.take(4 * 13)  # into the second epoch
    dataset.mark = sequence.mark()
    assert len(list(dataset)) == 7
    assert len(dataset) == 10, "Lightning asks for the length of a whole epoch"


def test_the_next_epoch_goes_on_after_the_last_batch_trained_on() -> None:
    stream = stream_of([["abcdefgh" * 60]], 4, window=32)
    dataset = SizedTrainBatches(stream, 4, 0, 1, steps_per_epoch=5, accumulate=1)
    rows = []
    for _ in range(3):
        for batch in dataset:
            rows.extend(batch["ids"].tolist())
            mark = batch["mark"]
        dataset.mark = mark
    assert rows == stream.open().take(60)[:, :-1].tolist()


def test_a_source_below_one_block_is_refused() -> None:
    readers = (Reader(Listed(["ab"]), EVERYTHING, "train", BYTES),)
    with pytest.raises(WorkError, match="less than one block"):
        Stream(readers, (1.0,), 8, 4, 0).open().take(1)


def test_two_sources_of_one_name_are_refused() -> None:
    reader = Reader(Listed(["ab"]), EVERYTHING, "train", BYTES)
    with pytest.raises(CallError, match="two sources are named 'listed'"):
        Stream((reader, reader), (1.0, 1.0), 8, 4, 0)


@given(documents=st.lists(st.text(max_size=12), max_size=30), val=st.floats(0, 0.5), test=st.floats(0, 0.49))
def test_no_text_is_in_two_splits_and_none_is_lost(documents: list[str], val: float, test: float) -> None:
    source, split = Listed(documents), Split(val, test)
    parts = [[text for _, text in texts_of(source, split, part)] for part in ("train", "val", "test")]
    assert Counter(chain.from_iterable(parts)) == Counter(text for text in documents if text)
    assert not set(parts[0]) & set(parts[1])
    assert not set(parts[0]) & set(parts[2])
    assert not set(parts[1]) & set(parts[2])


def test_split_is_a_stable_property_of_the_text() -> None:
    """Fixed for good: another hash would move documents between the splits of everyone's runs."""
    split = Split(0.3, 0.3)
    expected = ["train", "test", "test", "val", "val", "train", "val", "val"]
    assert [split.of(f"document {n}") for n in range(8)] == expected


def test_shares_are_met_over_many_documents() -> None:
    parts = Counter(Split(0.1, 0.2).of(f"text {n}") for n in range(20_000))
    assert parts["val"] == pytest.approx(2000, abs=150)
    assert parts["test"] == pytest.approx(4000, abs=200)


@given(tokens=st.integers(2, 200), block_size=st.integers(1, 9), batch=st.integers(1, 4), world=st.integers(1, 3))
def test_evaluation_predicts_every_token_after_the_first_once(
    tokens: int, block_size: int, batch: int, world: int
) -> None:
    ids = np.arange(1000, 1000 + tokens)
    shares = [list(EvalBatches(ids, block_size, batch, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "every process must take as many batches"
    pairs = [
        (int(i), int(t))
        for share in shares
        for each in share
        for i, t in zip(each["ids"].flatten(), each["targets"].flatten(), strict=True)
        if t != IGNORED
    ]
    assert sorted(pairs) == [(n, n + 1) for n in range(1000, 999 + tokens)]


def test_evaluation_limit_is_shared_and_passed_on() -> None:
    readers = [
        Reader(Listed([text], name), EVERYTHING, "train", BYTES) for name, text in (("s", "ab"), ("l", "c" * 99))
    ]
    documents = evaluation_documents(readers, 20)
    assert [len(tokens) for tokens in documents] == [3, 17]
    assert documents[0].tolist() == tokens_of(["ab"])


def test_row_sequence_types() -> None:
    sequence = stream_of([["abcdefgh" * 9]], 3, 8).open()
    assert isinstance(sequence, RowSequence)
    rows = sequence.take(2)
    assert rows.shape == (2, 4)
    assert rows.dtype == np.int64


@given(limit=st.integers(10, 400), window=st.integers(1, 9), block_size=st.integers(1, 7))
def test_a_limited_source_is_its_first_tokens_pass_after_pass(limit: int, window: int, block_size: int) -> None:
    documents = ["abcdefgh" * 9, "x" * 50, "hgfedcba" * 30]
    rows = min(limit, len(tokens_of(documents))) // (block_size + 1)
    source = Listed(documents)
    source.max_tokens = limit
    reader = Reader(source, EVERYTHING, "train", BYTES)
    assert count(reader, block_size).rows == rows
    if rows == 0:
        return
    stream = tokens_of(documents)[: rows * (block_size + 1)]
    expected = sorted(stream[i * (block_size + 1) : (i + 1) * (block_size + 1)] for i in range(rows))
    sequence = Stream((reader,), (1.0,), block_size, window, 0).open()
    for _ in range(2):
        assert sorted(sequence.take(rows).tolist()) == expected
