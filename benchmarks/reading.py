"""What one of many data ranks reads, simulated in one process: tokens and processor time, per row of its own.

    python -m benchmarks.reading                     a prepared corpus of 64 MB, ranks of 8 rows, 1 to 1,024 of them
    python -m benchmarks.reading --prepared FOLDER   a prepared folder

Prints one line per packing, number of ranks and way of reading; nothing passes or fails.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.data import write_corpus
from lightning_gpt.data.batches import TrainBatches
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.document_index import DocumentIndex
from lightning_gpt.data.lanes import LaneStream
from lightning_gpt.data.packing import PackingName
from lightning_gpt.data.prepare.corpus import prepare_corpus
from lightning_gpt.data.prepare.parts import PartFile
from lightning_gpt.data.prepared import open_prepared
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.stream import Stream

RANKS = (1, 8, 64, 1024)
PACKING_NAMES: tuple[PackingName, ...] = ("concatenate", "best_fit", "lanes")


@dataclass(frozen=True)
class Reading:
    """What a rank paid for its rows of some steps."""

    rows: int
    """Rows of its own."""
    tokens: int
    """Tokens that it read."""
    seconds: float
    """Processor time."""

    def described(self) -> str:
        """Per row of its own."""
        return f"{self.tokens / self.rows:8.1f} tokens, {1e6 * self.seconds / self.rows:8.1f} µs per row of its own"


@contextmanager
def tokens_read() -> Iterator[list[int]]:
    """Collects the number of tokens of every document, or part of one, that is read of a prepared corpus."""
    read: list[int] = []
    tokens = DocumentIndex.tokens

    def counted(self: DocumentIndex, document: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        found = tokens(self, document, begin, end)
        read.append(len(found))
        return found

    DocumentIndex.tokens = counted  # type: ignore[method-assign]
    try:
        yield read
    finally:
        DocumentIndex.tokens = tokens  # type: ignore[method-assign]


def cost_of_a_rank(stream: Stream, ranks: int, rank: int, batch_size: int, steps: int) -> Reading:
    """The cost of the batches of one rank.

    Args:
        stream: Determines the rows; those of a prepared corpus.
        ranks: How many ranks share them.
        rank: Which of them it is.
        batch_size: Rows per rank and step.
        steps: Batches to read.
    """
    if isinstance(stream, LaneStream):
        stream = replace(stream, lanes=batch_size * ranks)
    with tokens_read() as read:
        batches = iter(TrainBatches(stream, batch_size, rank, ranks, None, 1))
        start = time.process_time()
        for _ in range(steps):
            next(batches)
        seconds = time.process_time() - start
    return Reading(batch_size * steps, sum(read), seconds)


def stream_of(folder: Path, packing: PackingName, block_size: int = 1024, shuffle_window: int = 16384) -> Stream:
    """The training rows of a prepared folder, its sources in equal shares."""
    corpus = open_prepared(folder)
    readers = tuple(Reader(source, corpus.split, "train", corpus.tokenizer) for source in corpus.sources)
    settings = (readers, (1.0,) * len(readers), block_size, shuffle_window, 0, packing)
    return LaneStream(*settings) if packing == "lanes" else Stream(*settings)


class Silent(nullcontext[None]):
    """Shows nothing of the progress of ``prepare``."""

    def begin(self, name: str, done: Sequence[PartFile]) -> None:
        """Nothing."""

    def advance(self, parts: Sequence[PartFile]) -> None:
        """Nothing."""

    def dismiss(self, parts: Sequence[PartFile]) -> None:
        """Nothing."""


def main() -> None:
    """Parse the flags and run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, help="a prepared folder")
    parser.add_argument("--megabytes", type=float, default=64, help="size of the corpus that is made otherwise, in MB")
    parser.add_argument("--batch_size", type=int, default=8, help="rows per rank and step")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.prepared or Path(scratch, "prepared")
        if options.prepared is None:
            write_corpus(Path(scratch, "corpus.jsonl"), options.megabytes)
            data = TextData([Files(str(Path(scratch, "corpus.jsonl")))], block_size=1024, packing="best_fit")
            prepare_corpus(
                folder, data, jobs=None, remove_duplicates=False, near_duplicate_threshold=None, progress=Silent()
            )
        cost_of_a_rank(stream_of(folder, "concatenate"), 1, 0, options.batch_size, 1)  # loads what reading needs
        for packing in PACKING_NAMES:
            for ranks in RANKS:
                cost = cost_of_a_rank(stream_of(folder, packing), ranks, ranks // 2, options.batch_size, options.steps)
                print(f"{packing:<12} {ranks:>5} ranks: {cost.described()}", flush=True)


if __name__ == "__main__":
    main()
