"""``best.ckpt`` of a run that is resumed in a folder of its own is the best of the whole run."""

from pathlib import Path

import pytest
import torch

from lightning_gpt.training.callbacks import BestCheckpoint, LastCheckpoint
from tests.training.toy import Toy, fit


class Validated(Toy):
    """A toy with a validation after every second step, whose losses are ``measured``."""

    def __init__(self, measured: list[float]) -> None:
        super().__init__([1.0] * 20)
        self.measured = measured

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.measured[self.trainer.global_step // 2 - 1])


def run(folder: Path, measured: list[float], resume: Path | None = None) -> Path:
    """Train two steps for each loss; returns the folder of checkpoints."""
    best = BestCheckpoint()
    best.dirpath = str(folder / "checkpoints")
    flags = {"limit_val_batches": 1, "val_check_interval": 2, "max_steps": 2 * len(measured)}
    fit(Validated(measured), folder, best, LastCheckpoint(every_n_steps=1), resume=resume, **flags)
    return folder / "checkpoints"


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.parametrize(("later", "best"), [(3.0, 4), (1.0, 8)])
def test_the_best_of_before_is_taken_over_until_a_better_one(later: float, best: int, tmp_path: Path) -> None:
    first = run(tmp_path / "first", [5.0, 2.0, 4.0])
    second = run(tmp_path / "second", [5.0, 2.0, 4.0, later], resume=first / "last.ckpt")
    assert step_of(second / "best.ckpt") == best
    assert step_of(first / "best.ckpt") == 4, "the first run's own stays"


def test_what_is_of_a_later_step_or_gone_is_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "first", [5.0, 4.0, 2.0])
    earlier = first / "last.previous.ckpt"
    assert step_of(earlier) == 5
    second = run(tmp_path / "second", [5.0, 4.0, 3.0], resume=earlier)
    assert step_of(second / "best.ckpt") == 6
    assert f"{first / 'best.ckpt'} is gone or of a later step; best.ckpt begins anew" in capsys.readouterr().err
    (first / "best.ckpt").unlink()
    third = run(tmp_path / "third", [5.0, 4.0, 2.0, 9.0], resume=first / "last.ckpt")
    assert step_of(third / "best.ckpt") == 8


def test_a_run_that_goes_on_in_its_folder_keeps_its_own(tmp_path: Path) -> None:
    first = run(tmp_path, [5.0, 2.0, 4.0])
    run(tmp_path, [5.0, 2.0, 4.0, 3.0], resume=first / "last.ckpt")
    assert step_of(first / "best.ckpt") == 4
    assert sorted(path.name for path in first.iterdir()) == ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
