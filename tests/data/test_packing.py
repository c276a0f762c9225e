"""Packing: every token in a row once, whole documents where promised, and what is lost or padded is said."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.data.batches import SizedTrainBatches
from lightning_gpt.data.best_fit import best_fit as best_fit_rows
from lightning_gpt.data.counting import count
from lightning_gpt.data.packing import PACKINGS, PADDING, BestFit, Concatenate, Packing, Position
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.stream import Stream
from lightning_gpt.models.head import IGNORED
from tests.data.helpers import BYTES, EVERYTHING, Listed, tokens_of

END = BYTES.end_of_text
documents_of_tokens = st.lists(st.integers(1, 60), min_size=1, max_size=25)


def numbered(lengths: list[int]) -> list[tuple[int, np.ndarray]]:
    """Documents of these lengths whose tokens are all different, each closed by the end of text."""
    ids = iter(range(1000, 10**6))
    return [(n, np.array([*(next(ids) for _ in range(length - 1)), END])) for n, length in enumerate(lengths)]


@given(lengths=documents_of_tokens, row_tokens=st.integers(2, 20), most_rows=st.integers(1, 8))
def test_concatenation_unpacks_to_the_documents(lengths: list[int], row_tokens: int, most_rows: int) -> None:
    documents, position, unpacked = numbered(lengths), Position(), []
    dropped = 0
    while position is not None:
        packed = Concatenate().pack(documents[position.document :], position, row_tokens, most_rows)
        assert (packed.lengths == row_tokens).all()
        unpacked.append(packed.rows.reshape(-1))
        dropped += packed.dropped
        position = packed.after
    stream = np.concatenate([tokens for _, tokens in documents])
    assert np.concatenate(unpacked).tolist() == stream[: len(stream) - dropped].tolist()
    assert 0 <= dropped < row_tokens


@given(lengths=documents_of_tokens, row_tokens=st.integers(2, 20), most_rows=st.integers(1, 8))
def test_best_fit_unpacks_to_the_documents(lengths: list[int], row_tokens: int, most_rows: int) -> None:
    """A document that fits a row stands whole in one; a longer one is found again from its full rows and its rest."""
    documents, position, pieces = numbered(lengths), Position(), []
    while position is not None:
        packed = BestFit().pack(documents[position.document :], position, row_tokens, most_rows)
        assert packed.dropped == 0
        for row, length in zip(packed.rows, packed.lengths, strict=True):
            begin = 0
            for place in range(length):
                if row[place] == END or place == length - 1:
                    pieces.append(row[begin : place + 1].tolist())
                    begin = place + 1
        position = packed.after
    by_first = {piece[0]: piece for piece in pieces}
    for _, tokens in documents:
        chunks = [tokens[i : i + row_tokens].tolist() for i in range(0, len(tokens), row_tokens)]
        for chunk in chunks:
            if chunk != [END]:
                assert by_first.get(chunk[0]) == chunk
    assert Counter(token for piece in pieces for token in piece) == Counter(
        int(token) for _, tokens in documents for token in tokens
    )


def best_fit(lengths: list[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    rows = best_fit_rows(np.array(lengths, dtype=np.int64), capacity)
    return [rows.pieces(row) for row in range(rows.count)]


def plainly(lengths: list[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    """The same by definition: of the rows with the least sufficient room, the one that came to it last."""
    rows = [
        [(n, begin, capacity)] for n, each in enumerate(lengths) for begin in range(0, each - capacity + 1, capacity)
    ]
    rests = [(n, each - each % capacity, each % capacity) for n, each in enumerate(lengths) if each % capacity]
    rooms: list[tuple[int, int]] = []  # room and row, in the order in which rows came to their rooms
    for piece in sorted(rests, key=lambda piece: -piece[2]):
        fitting = [(room, -order) for order, (room, _) in enumerate(rooms) if room >= piece[2]]
        if fitting:
            room, row = rooms.pop(-min(fitting)[1])
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        rooms.append((room - piece[2], row))
    return rows


@given(lengths=st.lists(st.integers(0, 50), max_size=40), capacity=st.integers(1, 20))
def test_best_fit_is_what_its_definition_gives(lengths: list[int], capacity: int) -> None:
    assert best_fit(lengths, capacity) == plainly(lengths, capacity)


@given(lengths=st.lists(st.integers(0, 50), max_size=40), capacity=st.integers(1, 20))
def test_best_fit_covers_every_token_once_and_overfills_no_row(lengths: list[int], capacity: int) -> None:
    rows = best_fit(lengths, capacity)
    covered = Counter()
    for row in rows:
        assert 0 < sum(length for _, _, length in row) <= capacity
        for document, begin, length in row:
            covered.update((document, place) for place in range(begin, begin + length))
    assert covered == Counter((n, place) for n, length in enumerate(lengths) for place in range(length))


def test_best_fit_is_best_fit_decreasing() -> None:
    # 7 and 3 fill a row; 6 takes 4 although 3 would fit too; 2 goes where least room is left
    assert [[piece[0] for piece in row] for row in best_fit([3, 7, 6, 4, 2], 10)] == [[1, 0], [2, 3], [4]]


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@given(lengths=documents_of_tokens, stop=st.integers(0, 6))
def test_a_window_depends_on_its_position_alone(packing: Packing, lengths: list[int], stop: int) -> None:
    documents, position = numbered(lengths), Position()
    for _ in range(stop):
        packed = packing.pack(documents[position.document :], position, 7, 3)
        if packed.after is None:
            return
        position = packed.after
    again = [packing.pack(documents[position.document :], position, 7, 3) for _ in range(2)]
    assert again[0].rows.tolist() == again[1].rows.tolist()


def stream_of(texts: list[str], packing: str, block_size: int = 9, window: int = 6) -> Stream:
    reader = Reader(Listed(texts), EVERYTHING, "train", BYTES)
    return Stream((reader,), (1.0,), block_size, window, 0, packing)  # type: ignore[arg-type]


texts = st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=25), min_size=3, max_size=15)


@given(texts=texts, window=st.integers(1, 6))
def test_a_best_fit_pass_has_every_token_once_and_its_padding_is_counted(texts: list[str], window: int) -> None:
    reader = Reader(Listed(texts), EVERYTHING, "train", BYTES)
    counted = count(reader, 9, PACKINGS["best_fit"], window)
    sequence = stream_of(texts, "best_fit", window=window).open()
    for _ in range(2):
        rows = sequence.take(counted.rows)
        assert int((rows == PADDING).sum()) == counted.padding
        assert Counter(rows[rows != PADDING].tolist()) == Counter(tokens_of(texts))
    assert counted.dropped == 0
    assert counted.tokens == len(tokens_of(texts))
    assert counted.documents == len(texts)


@given(texts=texts, stop=st.integers(0, 30))
def test_best_fit_goes_on_from_any_cursor(texts: list[str], stop: int) -> None:
    stream = stream_of(texts, "best_fit")
    alone = stream.open().take(stop + 10)
    stopped = stream.open()
    if stop:
        stopped.take(stop)
    assert stream.open(stopped.cursor()).take(10).tolist() == alone[stop:].tolist()


def test_padding_is_no_target_and_documents_are_numbered() -> None:
    stream = stream_of(["abc", "de", "fghijklmnopqrstu"], "best_fit", block_size=9)
    rows = count(stream.readers[0], 9, PACKINGS["best_fit"]).rows
    dataset = SizedTrainBatches(stream, rows, 0, 1, steps_per_epoch=1, accumulate=1, separate=True)
    (batch,) = list(dataset)
    tokens = sum(len(tokens_of([text])) for text in stream.readers[0].source.texts)  # type: ignore[attr-defined]
    assert int((batch["targets"] != IGNORED).sum()) == tokens - rows, "the first token of a row is no target"
    for ids, documents in zip(batch["ids"], batch["documents"], strict=True):
        for place in range(1, len(ids)):
            assert documents[place] == documents[place - 1] + (ids[place - 1] == END)
        assert documents[0] == 0


def test_a_source_that_changed_under_the_cursor_is_found_out() -> None:
    from lightning_gpt.errors import WorkError

    stream = stream_of(["abcdefgh" * 30, "hgfedcba" * 30], "concatenate", window=40)
    sequence = stream.open()
    sequence.take(8)
    cursor = sequence.cursor()
    stream.open(cursor).take(1)
    changed = stream_of(["abcdefgh" * 30, "hgfedcbx" * 30], "concatenate", window=40)
    with pytest.raises(WorkError, match=r"source 'listed' has changed since the checkpoint.*document 0"):
        changed.open(cursor).take(9)


def test_a_source_that_is_used_up_stops_the_run() -> None:
    from lightning_gpt.errors import WorkError

    source = Listed(["abcdefgh" * 30])
    source.max_passes = 2
    stream = Stream((Reader(source, EVERYTHING, "train", BYTES),), (1.0,), 9, 6, 0)
    rows = count(stream.readers[0], 9).rows
    sequence = stream.open()
    sequence.take(2 * rows)
    with pytest.raises(WorkError, match="used up: all its rows were trained on 2 times, and max_passes is 2"):
        sequence.take(1)
