"""The mean of the weights: the formula, what validation sees, and what a checkpoint holds."""

from pathlib import Path

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.training.callbacks import Averaging, LastCheckpoint
from tests.training.toy import Toy, fit

LOSSES = [1.0, -2.0, 3.0, 0.5, -1.0, 2.0, 4.0, -3.0]


def weights_and_means(decay: float) -> tuple[list[float], list[float]]:
    """After each step of :data:`LOSSES`, by hand."""
    weights, means, weight, mean = [], [], 0.0, 0.0
    for n, loss in enumerate(LOSSES):
        weight -= 0.1 * loss
        share = min(decay, (1 + n) / (10 + n))
        mean = weight if n == 0 else share * mean + (1 - share) * weight
        weights.append(weight)
        means.append(mean)
    return weights, means


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_validation_measures_the_mean_and_training_goes_on_from_the_weights(decay: float, tmp_path: Path) -> None:
    toy = Toy(LOSSES)
    fit(toy, tmp_path, Averaging(decay), limit_val_batches=1, val_check_interval=1)
    weights, means = weights_and_means(decay)
    assert toy.validated == pytest.approx(means, abs=1e-6)
    assert toy.seen == pytest.approx([0.0, *weights[:-1]], abs=1e-6)


def test_a_checkpoint_holds_both_also_the_last_one(tmp_path: Path) -> None:
    fit(Toy(LOSSES), tmp_path, Averaging(0.5), LastCheckpoint(every_n_steps=100))
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    weights, means = weights_and_means(0.5)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(means[-1], abs=1e-6)
    assert float(saved["current_model_state"]["weight"]) == pytest.approx(weights[-1], abs=1e-6)


def test_without_a_decay_nothing_is_averaged(tmp_path: Path) -> None:
    toy = Toy(LOSSES)
    fit(toy, tmp_path, Averaging(), LastCheckpoint(every_n_steps=100), limit_val_batches=1, val_check_interval=1)
    assert toy.validated == pytest.approx(weights_and_means(0.5)[0], abs=1e-6)
    assert "current_model_state" not in torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)


def test_a_mean_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"averaging.decay and trainer.precision bf16-true .* use bf16-mixed"):
        fit(Toy(LOSSES), tmp_path, Averaging(0.9), precision="bf16-true")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_wrong_decays_are_refused(decay: float) -> None:
    with pytest.raises(CallError, match=r"averaging.decay is .* above 0 and below 1"):
        Averaging(decay)
