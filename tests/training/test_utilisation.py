"""MFU: a share of the right peak, and of the FLOPs that the formula counts."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.training import peak
from tests.processes import must_run, tiny_config, tiny_corpus, write_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("32", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("64-true", torch.float64),
    ],
)
def test_the_peak_is_of_the_precision_of_the_products(precision: str, dtype: torch.dtype) -> None:
    assert peak.precision_dtype(precision) == dtype


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("Tesla T4", 65),
    ],
)
def test_published_peaks_are_found_by_the_name_a_gpu_gives_itself(name: str, tera: float) -> None:
    assert peak.published_peak(name) == tera * 1e12


def test_an_unknown_gpu_has_no_published_peak() -> None:
    assert peak.published_peak("NVIDIA Unheard-Of 3") is None


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had not measured a peak."""
    monkeypatch.setattr(peak, "_measured", cache(peak._measured.__wrapped__))


@pytest.mark.usefixtures("unmeasured")
def test_a_cpu_is_measured_without_taking_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    monkeypatch.setattr(peak, "_SIZE", 64)
    assert peak.peak_flops(CPU, torch.float32) > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("unmeasured")
def test_the_peak_is_operations_by_the_time_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured once per dtype."""
    measured = []

    def seconds(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
        measured.append((dtype, size))
        return 0.5 if size == 1024 else 0.001

    monkeypatch.setattr(peak, "product_seconds", seconds)
    for dtype in (torch.float32, torch.float32, torch.float64):
        assert peak.peak_flops(CPU, dtype) == 2 * 1024**3 / 0.5
    assert measured == [(dtype, size) for dtype in (torch.float32, torch.float64) for size in (256, 1024)]


@pytest.mark.usefixtures("unmeasured")
def test_slow_products_are_measured_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
        assert size < 1024
        return 0.25

    monkeypatch.setattr(peak, "product_seconds", seconds)
    assert peak.peak_flops(CPU, torch.float16) == 2 * 256**3 / 0.25


def test_fit_logs_the_share_of_the_peak(tmp_path: Path) -> None:
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=6, val_check_interval=6)
    must_run("fit", "--config", str(write_config(tmp_path / "tiny.yaml", content)), cwd=tmp_path)
    events = EventAccumulator(str(tmp_path / "runs/tiny/version_0"))
    events.Reload()
    utilisation = [event.value for event in events.Scalars("train/mfu")]
    speed = [event.value for event in events.Scalars("train/tokens_per_second")]
    assert len(utilisation) == len(speed) == 6
    config = content["model"]["init_args"]
    with torch.device("meta"):
        model = GPT(GPTConfig(**{**config, "dropout": 0.1}, vocab_size=300))
    peaks = [
        training_flops_per_token(model, config["block_size"]) * s / u for s, u in zip(speed, utilisation, strict=True)
    ]
    assert peaks == pytest.approx([peaks[0]] * 6, rel=1e-4), "one peak, measured once"
    assert peaks[0] > 1e8
