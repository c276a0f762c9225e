"""Lanes: each reads whole documents, row after row, and all of them are the same however they are shared."""

import json
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.data.batches import EvalLanes, SizedTrainBatches
from lightning_gpt.data.counting import count
from lightning_gpt.data.lanes import LaneStream, side_by_side
from lightning_gpt.data.packing import PACKINGS, PADDING
from lightning_gpt.data.reader import Reader
from lightning_gpt.errors import WorkError
from lightning_gpt.models.head import IGNORED
from tests.data.helpers import BYTES, EVERYTHING, Listed, batches, tokens_of
from tests.models.helpers import property_test

END = BYTES.end_of_text
texts = st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=40), min_size=1, max_size=12, unique=True)


def lanes_of(
    corpora: Sequence[Sequence[str]], lanes: int, block_size: int = 5, window: int = 4, weights: Sequence[float] = ()
) -> LaneStream:
    readers = tuple(Reader(Listed(texts, f"source {n}"), EVERYTHING, "train", BYTES) for n, texts in enumerate(corpora))
    return LaneStream(readers, tuple(weights or [1.0] * len(readers)), block_size, window, 0, "lanes", lanes)


def documents_read(rows: np.ndarray, lanes: int) -> list[list[int]]:
    """The targets of each document that came to its end, in the order in which lanes took them."""
    found: list[tuple[tuple[int, int], list[int]]] = []
    for lane in range(lanes):
        for step, row in enumerate(rows[lane::lanes].tolist()):
            real = [token for token in row if token != PADDING]
            if real[0] == END:
                found.append(((step, lane), []))
            else:
                assert real[0] == found[-1][1][-1], "a row goes on where the lane's row before it stopped"
            found[-1][1].extend(real[1:])
    return [document for _, document in sorted(found) if document[-1] == END]


@property_test
@given(texts=texts, lanes=st.integers(1, 5), block_size=st.integers(1, 9), window=st.integers(1, 12))
def test_lanes_read_every_document_of_a_pass_once(texts: list[str], lanes: int, block_size: int, window: int) -> None:
    stream = lanes_of([texts], lanes, block_size, window)
    counted = count(stream.readers[0], block_size, PACKINGS["lanes"], window)
    rows = stream.open().take(lanes * 3 * counted.rows)
    read = documents_read(rows, lanes)
    whole = sorted(tokens_of([text]) for text in texts)
    for number in range(len(read) // len(texts) - lanes):  # the last ones taken may not be read to their ends
        one_pass = read[number * len(texts) : (number + 1) * len(texts)]
        assert sorted(one_pass) == whole
    assert counted.rows == sum(-(-len(tokens) // block_size) for tokens in whole)
    assert counted.padding == counted.rows * block_size - sum(map(len, whole))
    assert counted.tokens == sum(map(len, whole))
    assert counted.dropped == 0


def test_passes_and_windows_are_put_in_orders_of_their_own() -> None:
    documents = [f"{letter}" * 4 for letter in "abcdefghijklmnop"]
    rows = lanes_of([documents], 1, block_size=5, window=8).open().take(32)
    read = documents_read(rows, 1)
    assert read[:16] != read[16:]
    assert sorted(read[:8]) == sorted(tokens_of([text]) for text in documents[:8]), "a window is of the first documents"
    assert read[:8] != [tokens_of([text]) for text in documents[:8]]


@property_test
@given(
    corpora=st.lists(texts, min_size=1, max_size=3),
    lanes=st.integers(1, 5),
    window=st.integers(1, 12),
    stop=st.integers(0, 60),
)
def test_from_any_cursor_the_rows_are_those_of_the_run_left_alone(
    corpora: list[list[str]], lanes: int, window: int, stop: int
) -> None:
    stream = lanes_of(corpora, lanes, window=window)
    alone = stream.open().take(stop + 40)
    stopped = stream.open()
    if stop:
        stopped.take(stop)
    resumed = stream.open(json.loads(json.dumps(stopped.cursor())))
    assert resumed.take(40).tolist() == alone[stop:].tolist()
    stopped.take(40)
    assert resumed.cursor() == stopped.cursor()


def test_the_cursor_is_small_whatever_was_read() -> None:
    sequence = lanes_of([["abcdefgh" * 5000, "h" * 70000]] * 3, 256, window=64).open()
    sequence.take(2560)
    assert len(json.dumps(sequence.cursor())) < 100 * 256


@pytest.mark.parametrize(
    ("world", "workers", "accumulate"), [(2, 0, 1), (4, 0, 1), (1, 2, 1), (1, 0, 4), (2, 2, 2), (4, 0, 2)]
)
def test_global_batches_are_the_same_however_they_are_shared(world: int, workers: int, accumulate: int) -> None:
    stream = lanes_of([["abcdefgh" * 9, "hgf" * 30, "x" * 50, "ab"], ["cd" * 40, "e"]], 16)
    alone = batches(stream, rows=16, world=1, workers=0, steps=9, accumulate=1)
    assert len(alone) == 9
    assert batches(stream, rows=16, world=world, workers=workers, steps=9, accumulate=accumulate) == alone
    sequence = stream.open()
    sequence.take(16 * 3)
    rest = batches(
        stream, rows=16, world=world, workers=workers, steps=9, accumulate=accumulate, cursor=sequence.cursor()
    )
    assert rest == alone[3:]


def test_a_batch_says_which_rows_begin_a_document_and_padding_is_no_target() -> None:
    stream = lanes_of([["abcdefg", "hgfedcba"]], 2, block_size=5)
    first, second, third = SizedTrainBatches(stream, 2, 0, 1, steps_per_epoch=3, accumulate=1)
    assert [batch["starts"].tolist() for batch in (first, second, third)] == [[True] * 2, [False] * 2, [True] * 2]
    assert first["ids"][:, 0].tolist() == [END, END]
    assert sorted((second["targets"] != IGNORED).sum(dim=1).tolist()) == [3, 4]
    for row in range(2):
        document = [*first["targets"][row].tolist(), *second["targets"][row].tolist()]
        text = [token for token in document if token != IGNORED]
        assert text in ([*b"abcdefg", END], [*b"hgfedcba", END])
        assert first["ids"][row].tolist() == [END, *text[:4]]
        assert second["ids"][row, : len(text) - 5].tolist() == text[4:-1]
    assert "documents" not in first


def test_every_source_has_its_share_by_documents() -> None:
    corpora = [["a" * 24] * 20, ["b" * 49] * 20]
    sequence = lanes_of(corpora, 4, block_size=5, weights=[3.0, 1.0]).open()
    sequence.take(4000)
    assert sum(source.taken for source in sequence.sources) == 4000
    assert abs(sequence.sources[0].taken - 3000) <= 4 * 10  # what lanes hold of whole documents


def test_a_source_that_changed_under_a_lane_is_found_out() -> None:
    corpus = ["abcdefgh" * 9, "hgf" * 30, "x" * 50]
    sequence = lanes_of([corpus], 2, window=100).open()
    sequence.take(2)
    cursor = sequence.cursor()
    for number in (0, 1, 2):
        held = any(state[1] == number for state in cursor["lanes"])
        changed = [text[:-1] + "y" if n == number else text for n, text in enumerate(corpus)]
        if held:
            with pytest.raises(WorkError, match=rf"source 'source 0' has changed.* document {number} \(source 0"):
                lanes_of([changed], 2, window=100).open(cursor)
    cursor["lanes"][0][1] = 2
    shorter = lanes_of([corpus[:2]], 2, window=100)
    with pytest.raises(WorkError, match=r"document 2 \(its end\) is not the one that was being trained on"):
        shorter.open(cursor)


def test_a_limited_source_is_cut_in_a_lane_too() -> None:
    source = Listed(["a" * 8, "b" * 40])
    source.max_tokens = 20
    stream = LaneStream((Reader(source, EVERYTHING, "train", BYTES),), (1.0,), 5, 100, 0, "lanes", 1)
    sequence = stream.open()
    read = [sequence.take(1)]
    for _ in range(7):  # resumed at every row
        sequence = stream.open(sequence.cursor())
        read.append(sequence.take(1))
    targets = [token for token in chain(*np.concatenate(read)[:, 1:].tolist()) if token != PADDING]
    assert sorted(targets[:20]) == sorted(tokens_of(["a" * 8]) + [ord("b")] * 11)


@property_test
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    block_size=st.integers(1, 9),
    batch=st.integers(1, 3),
    world=st.integers(1, 3),
)
def test_evaluation_predicts_every_token_once_from_its_documents_beginning(
    lengths: list[int], block_size: int, batch: int, world: int
) -> None:
    ids = iter(range(1000, 60000))
    documents = [np.array([*(next(ids) for _ in range(length - 1)), END], dtype=np.uint16) for length in lengths]
    shares = [list(EvalLanes(documents, block_size, batch, rank, world, END)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "every process must take as many batches"
    read: list[list[int]] = []
    for share in shares:
        for row in range(batch):
            for each in share:
                inputs, targets = each["ids"][row].tolist(), each["targets"][row].tolist()
                if each["starts"][row]:
                    read.append([])
                    assert inputs[0] == END
                elif targets[0] != IGNORED:
                    assert inputs[0] == read[-1][-1]
                read[-1:] = [read[-1] + [t for t in targets if t != IGNORED]] if read else []
    assert sorted(read) == sorted(document.tolist() for document in documents)


def test_evaluation_gives_a_document_to_the_lane_that_is_free_first() -> None:
    documents = [np.array([1] * 9), np.array([2] * 2), np.array([3] * 2), np.array([4] * 2)]
    rows = side_by_side(documents, 2, 3, END)
    assert rows[:, :, 1].tolist() == [[1, 2], [1, 3], [1, 4]]
