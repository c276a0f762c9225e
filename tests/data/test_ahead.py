"""The next window of rows is made while the present one is used, and nothing of it shows before its time."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest

from lightning_gpt.data.ahead import Ahead
from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.packing import PackingName
from lightning_gpt.data.sources.base import Document, Source
from lightning_gpt.errors import CallError, WorkError
from tests.data.helpers import BYTES
from tests.processes import environment

WINDOW, ROW = 24, 9
DOCUMENT = "x" * (ROW - 2) + " "
"""With its end a row, or two of a lane."""


class Watched(Source):
    """Documents of a row each, of which number ``number`` sets ``reached``, then waits for ``gate``, and may fail."""

    countable = False

    def __init__(self, number: int, fails: bool = False, total: int = 20 * WINDOW) -> None:
        super().__init__("watched", weight=1.0)
        self.total = total
        self.number = number
        self.fails = fails
        context = get_context("fork")
        self.reached, self.gate = context.Event(), context.Event()
        self.gate.set()
        self.read: list[str] = []
        """The thread that read each document."""

    def documents(self, start: int = 0) -> Iterator[Document]:
        for number in range(start, self.total):
            if number == self.number:
                self.reached.set()
                self.gate.wait(60)
                if self.fails:
                    raise WorkError("the disk is gone")
            self.read.append(threading.current_thread().name)
            yield Document(DOCUMENT, f"watched, {number}")


def data_of(source: Source, folder: Path, packing: PackingName = "concatenate", workers: int = 0) -> TextData:
    """Two rows per step; windows of 24 rows, which 24 documents fill, or 12 in lanes."""
    return TextData(
        [source],
        tokenizer=str(BYTES.save(folder)),
        block_size=ROW - 1,
        batch_size=2,
        shuffle_window=WINDOW,
        packing=packing,
        split_by="documents",
        val_share=0.0,
        test_share=0.0,
        num_workers=workers,
        seed=0,
    )


def half_a_window(batches: Iterator[Batch]) -> None:
    for _ in range(WINDOW // 4):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit", "lanes"])
def test_the_next_window_is_read_before_one_of_its_rows_is_asked_for(
    packing: PackingName, workers: int, tmp_path: Path
) -> None:
    documents = WINDOW // 2 if packing == "lanes" else WINDOW
    source = Watched(2 * documents - 1)  # the last of the second window
    batches = iter(data_of(source, tmp_path, packing, workers).train_dataloader())
    half_a_window(batches)
    assert source.reached.wait(60)
    if workers == 0:
        assert source.read == ["MainThread"] * documents + ["ahead"] * (len(source.read) - documents)


def test_nothing_is_read_ahead_for_a_run_that_ends_in_the_first_half(tmp_path: Path) -> None:
    source = Watched(WINDOW)
    batches = iter(data_of(source, tmp_path).train_dataloader())
    for _ in range(WINDOW // 4 - 1):
        next(batches)
    assert source.read == ["MainThread"] * WINDOW


def test_a_source_that_fails_ahead_ends_the_training_only_where_its_rows_are_needed(tmp_path: Path) -> None:
    source = Watched(WINDOW + 3, fails=True)
    batches = iter(data_of(source, tmp_path).train_dataloader())
    half_a_window(batches)
    assert source.reached.wait(60)
    half_a_window(batches)
    with pytest.raises(WorkError, match="the disk is gone"):
        next(batches)


def test_max_passes_is_not_passed_ahead(tmp_path: Path) -> None:
    source = Watched(WINDOW, total=WINDOW)
    source.max_passes = 1
    batches = iter(data_of(source, tmp_path).train_dataloader())
    half_a_window(batches)
    half_a_window(batches)
    with pytest.raises(WorkError, match="all its rows were trained on 1 times, and max_passes is 1"):
        next(batches)
    assert source.read == ["MainThread"] * WINDOW


def test_a_window_that_nobody_will_take_is_not_finished(tmp_path: Path) -> None:
    source = Watched(WINDOW + 3)
    source.gate.clear()
    batches = iter(data_of(source, tmp_path).train_dataloader())
    half_a_window(batches)
    assert source.reached.wait(60)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "ahead")
    del batches
    gc.collect()
    source.gate.set()
    thread.join(60)
    assert not thread.is_alive()
    assert len(source.read) == WINDOW + 4, "the document that it was in is the last"


def test_a_process_ends_without_finishing_what_it_makes_ahead() -> None:
    program = (
        "import itertools\n"
        "from lightning_gpt.data.ahead import Ahead, end_if_in_vain\n"
        "ahead = Ahead(lambda: [end_if_in_vain() for _ in itertools.count()])"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=120)


def test_no_process_is_forked_while_something_is_made() -> None:
    """It would not have the thread, and wait for ever."""
    go = threading.Event()
    ahead = Ahead(lambda: go.wait(60))
    threading.Timer(0.05, go.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if ahead.take() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_limit_of_less_than_a_row_is_refused(tmp_path: Path) -> None:
    source = Watched(WINDOW)
    source.weight, source.max_tokens = None, ROW - 1
    with pytest.raises(
        CallError, match=r"source 'watched': max_tokens is 8, less than one block: block_size 8 needs 9"
    ):
        data_of(source, tmp_path).train_dataloader()


def test_a_second_training_begins_with_the_first_rows(tmp_path: Path) -> None:
    data = data_of(Watched(10 * WINDOW), tmp_path)
    first = []
    for _ in range(2):
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        first.append(batch["ids"].tolist())
        data.trained_on(batch["mark"])
        assert data.cursor is not None
    data.setup("fit")
    assert data.cursor is None
    assert first[0] == first[1]


def test_a_training_that_goes_on_with_its_trainer_reads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = 0
    monkeypatch.setattr(L.Trainer, "global_step", property(lambda _: step))
    data = data_of(Watched(10 * WINDOW), tmp_path)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    data.trained_on(batch["mark"])
    before = data.cursor
    step = 1
    data.setup("fit")
    assert data.cursor == before
    step = 0
    data.setup("fit")
    assert data.cursor is None
