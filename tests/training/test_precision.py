"""Mixed precision: chosen by what the hardware does fast, and training to the same loss."""

import time
from typing import Any

import pytest
import torch
from lightning.fabric.connector import _PRECISION_INPUT_STR_ALIAS_CONVERSION

from lightning_gpt.training import precision
from tests.processes import must_run, scalars, tiny_config, tiny_corpus, write_config


@pytest.mark.parametrize(("gain", "expected"), [(4.4, "bf16-mixed"), (1.0, "32-true"), (0.4, "32-true")])
def test_cpu_precision_follows_the_measurement(gain: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_product_time", lambda dtype: gain if dtype == torch.float32 else 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen, reason = precision.fastest_precision("cpu")
    assert chosen == expected
    assert f"{gain:.1f}x" in reason


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_gpu_precision_follows_its_units(has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert precision.fastest_precision("auto")[0] == expected


def test_an_apple_gpu_stays_with_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert precision.fastest_precision("auto")[0] == "32-true"


def test_the_measurement_measures() -> None:
    threads = torch.get_num_threads()
    assert 0 < precision._product_time(torch.float32, size=64) < 1
    assert torch.get_num_threads() == threads


class _Waiting:
    """A matrix whose products wait for a core most of the time."""

    def to(self, dtype: torch.dtype) -> "_Waiting":
        return self

    def __matmul__(self, other: "_Waiting") -> "_Waiting":
        time.sleep(0.05)
        return self


def test_waiting_for_a_core_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *size: _Waiting())
    assert precision._product_time(torch.float32, rounds=2) < 0.025


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The last validation loss of the same short run in each precision."""
    folder = tmp_path_factory.mktemp("precision")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=120, val_check_interval=120)
    content["model"]["init_args"] |= {"dropout": 0.0, "optimization": {"lr": 3e-3}}
    config = write_config(folder / "tiny.yaml", content)
    found = {}
    for number, name in enumerate(("32-true", "bf16-mixed", "bf16-true", "16-mixed")):
        must_run("fit", "--config", str(config), "--trainer.precision", name, cwd=folder)
        found[name] = scalars(folder / f"runs/tiny/version_{number}")["val/loss", 120]
    return found


def test_bf16_mixed_trains_to_the_loss_of_fp32(losses: dict[str, float]) -> None:
    assert losses["32-true"] < 5.2, "the run must learn something: ln 300 is 5.70"
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)


@pytest.mark.parametrize("name", ["bf16-true", "16-mixed"])
def test_the_other_precisions_train_too(name: str, losses: dict[str, float]) -> None:
    assert losses[name] == pytest.approx(losses["32-true"], rel=0.1)


@pytest.mark.parametrize(
    ("short", "name"), [(32, "32-true"), ("64", "64-true"), (16, "16-mixed"), ("bf16", "bf16-mixed")]
)
def test_short_names_of_precisions_are_those_of_lightning(short: Any, name: str) -> None:
    assert precision.full_name(short) == precision.full_name(name) == name
    assert _PRECISION_INPUT_STR_ALIAS_CONVERSION[str(short)] == name
