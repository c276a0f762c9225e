"""``Trainer(overfit_batches=N)`` trains on the same N batches in every epoch."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_gpt.data.batches import SizedTrainBatches
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.errors import CallError
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.optim import Optimization
from tests.processes import tiny_corpus


class Seen(Callback):
    """Keeps the ids of every training and validation batch."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.trained.append(batch["ids"])

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.validated.append(batch["ids"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("overfit") / "corpus.jsonl")


def text(corpus: Path, **options: Any) -> TextData:
    sizes: dict[str, Any] = {"block_size": 16, "batch_size": 4, "val_share": 0.1, "tokenizer": 300}
    return TextData([Files(str(corpus))], **{**sizes, **options})


def fit(corpus: Path, resume: Path | None = None, data: dict[str, Any] | None = None, **trainer: Any) -> L.Trainer:
    L.seed_everything(1)
    rate = Optimization(schedule="constant", warmup=0.0)
    module = GPTModule(rate, n_layer=1, n_head=2, dim=16, block_size=16, vocab_size=300, dropout=0.1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1}
    made = L.Trainer(callbacks=[Seen()], **{**quiet, "overfit_batches": 2, **trainer})
    made.fit(module, text(corpus, **(data or {})), ckpt_path=resume)
    return made


def seen(trainer: L.Trainer) -> Seen:
    found = trainer.callbacks[0]  # type: ignore[attr-defined]
    assert isinstance(found, Seen)
    return found


def numbers(batches: list[Tensor]) -> list[int]:
    """Of each batch, the number of the first batch that is equal to it."""
    return [next(n for n, other in enumerate(batches) if torch.equal(batch, other)) for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_trains_on_the_same_batches(corpus: Path, workers: int) -> None:
    """Those are the first ones of an ordinary run; the validation takes its own first ones."""
    trainer = fit(corpus, max_epochs=3, data={"num_workers": workers})
    ordinary = fit(corpus, max_steps=2, overfit_batches=0)
    assert trainer.global_step == 6
    assert numbers(seen(trainer).trained) == [0, 1, 0, 1, 0, 1]
    assert all(map(torch.equal, seen(trainer).trained, seen(ordinary).trained))
    assert numbers(seen(trainer).validated) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("trainer", "data", "batches"),
    [
        ({"accumulate_grad_batches": 2, "overfit_batches": 4, "max_epochs": 2}, {}, [0, 1, 2, 3, 0, 1, 2, 3]),
        ({"overfit_batches": 0.4, "max_steps": 6}, {"batch_size": 80}, [0, 1, 2, 3, 4, 0]),
        ({"max_steps": 5}, {"packing": "lanes"}, [0, 1, 0, 1, 0]),
    ],
)
def test_accumulated_by_share_and_in_lanes(corpus: Path, trainer: Any, data: Any, batches: list[int]) -> None:
    assert numbers(seen(fit(corpus, **trainer, data=data)).trained) == batches


@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_run_ends_with_the_weights_of_the_run_left_alone(corpus: Path, tmp_path: Path, steps: int) -> None:
    half = fit(corpus, max_steps=steps)
    half.save_checkpoint(tmp_path / "half.ckpt")
    options = {"max_steps": 7, "limit_val_batches": 0}
    resumed, alone = fit(corpus, tmp_path / "half.ckpt", **options), fit(corpus, **options)
    assert numbers([*seen(half).trained, *seen(resumed).trained]) == [0, 1, 0, 1, 0, 1, 0]
    ours, theirs = (each.lightning_module.state_dict() for each in (resumed, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_rows_than_the_checkpoint_has_seen_are_refused(corpus: Path, tmp_path: Path) -> None:
    half = fit(corpus, max_steps=3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    for batches, now in ((3, "12"), (0, "None")):
        with pytest.raises(CallError, match=rf"cannot resume: overfit_batches \(in rows\) changed from 8 to {now}"):
            fit(corpus, tmp_path / "half.ckpt", max_steps=5, overfit_batches=batches)


def test_two_processes_take_the_rows_of_one(corpus: Path) -> None:
    data = text(corpus)
    data.setup("fit")

    def ids(batch_size: int, rank: int, processes: int) -> list[Tensor]:
        batches = SizedTrainBatches(data.stream(), batch_size, rank, processes, 5, 1, repeated_rows=16)
        return [batch["ids"] for batch in batches]

    whole, halves = ids(8, 0, 1), zip(ids(4, 0, 2), ids(4, 1, 2), strict=True)
    assert numbers(whole) == [0, 1, 0, 1, 0]
    assert all(torch.equal(batch, torch.cat(pair)) for batch, pair in zip(whole, halves, strict=True))


@pytest.mark.parametrize(
    ("asked", "accumulate", "said"),
    [
        (3, 2, "overfit_batches 3 is 3 batches; it must be at least 1 and a multiple of accumulate_grad_batches, 2"),
        (0.0001, 1, r"overfit_batches 0\.0001 is 0 batches; it must be at least 1"),
    ],
)
def test_what_is_not_whole_steps_is_refused(corpus: Path, asked: float, accumulate: int, said: str) -> None:
    with pytest.raises(CallError, match=said):
        fit(corpus, max_steps=2, overfit_batches=asked, accumulate_grad_batches=accumulate)


def test_a_share_of_an_unknown_length_is_refused(corpus: Path) -> None:
    class Endless(Files):
        countable = False

    data = text(corpus)
    data.sources = [Endless(str(corpus))]
    module = GPTModule(n_layer=1, n_head=2, dim=16, block_size=16, vocab_size=300)
    with pytest.raises(CallError, match=r"overfit_batches is 0\.5, a share of an epoch, but the data has no known"):
        L.Trainer(overfit_batches=0.5, max_steps=2, logger=False, accelerator="cpu").fit(module, data)


def test_part_of_each_epoch_goes_on_where_the_epoch_before_ended(corpus: Path) -> None:
    """``limit_train_batches`` batches in each epoch, also where the corpus ends within one."""
    options: dict[str, Any] = {"overfit_batches": 0, "limit_train_batches": 0.6, "limit_val_batches": 0}
    trainer = fit(corpus, **options, max_epochs=3, data={"batch_size": 40})
    per_epoch = trainer.num_training_batches
    assert trainer.global_step == 3 * per_epoch
    assert len(set(numbers(seen(trainer).trained))) == trainer.global_step
