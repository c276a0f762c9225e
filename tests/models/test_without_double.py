"""Models on a device without float64, such as Apple's MPS: they compute what they compute on the CPU."""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch

from lightning_gpt.analysis.circuits import ov_circuit
from lightning_gpt.analysis.patterns import attention_patterns
from lightning_gpt.analysis.similarity import effective_rank
from lightning_gpt.analysis.sinks import sink_rate, sink_scores
from lightning_gpt.analysis.spectral import second_singular_value, spectral_gap
from lightning_gpt.commands.device import named_device
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.windows import ScoredWindow, window_nll
from lightning_gpt.models import GPT, GPTConfig, double
from lightning_gpt.models.decoding.samplers import Sampler, draw_each, sample_text
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.training.metrics import BitsPerByte
from tests.models.far import AWAY, Far, far_device, sent
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, SIZES

pytestmark = pytest.mark.cpu("a device is simulated")

CASES: list[dict[str, Any]] = [
    {"position": "rotary"},
    {"position": {"kind": "llama3", "factor": 4.0, "original": 16}},
    {"position": {"kind": "yarn", "factor": 4.0, "original": 16}},
    {"position": "sinusoidal"},
    {"position": "alibi", "ffn": "moe"},
]


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(double, "WITHOUT_DOUBLE", {AWAY.type})


def models(**changes: Any) -> tuple[GPT, GPT]:
    """A model on the CPU and the same on the device."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "dim": 16, "block_size": 32, "vocab_size": 23}
    near = randomise(GPT(GPTConfig(**{**sizes, **changes})), std=0.1).eval()
    away = deepcopy(near)
    sent(away)
    return near, away


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_pass_and_a_drawn_text_are_those_of_the_cpu(changes: dict[str, Any]) -> None:
    near, away = models(**changes)
    ids, sampling = random_ids(23, 2, 20), Sampling(temperature=0.7)
    with torch.no_grad():
        expected, text = near.loss(ids, ids.roll(-1, 1)), list(sample_text(near, ids[0], 8, sampling))
    with far_device():
        found = away.loss(Far(ids), Far(ids.roll(-1, 1)))
        assert isinstance(found, Far)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
        assert list(sample_text(away, Far(ids[0]), 8, sampling)) == text


@pytest.mark.usefixtures("lacking")
def test_sums_over_a_text_are_those_of_the_cpu() -> None:
    near, away = models()
    windows = [ScoredWindow(random_ids(23, 1, 20)[0], 19, 19)]
    with torch.no_grad():
        expected = window_nll(near, windows, torch.device("cpu"))
    bits, ours = BitsPerByte(), BitsPerByte()
    nll, counted = torch.rand(3, 5), torch.ones(3, 5, dtype=torch.long)
    with far_device():
        assert window_nll(away, windows, AWAY) == pytest.approx(expected, rel=1e-6)
        bits._apply(lambda tensor: Far(tensor) if not isinstance(tensor, Far) else tensor)
        for _ in range(2):
            bits.update(Far(nll), Far(counted))
        found = float(bits.compute())
    for _ in range(2):
        ours.update(nll, counted)
    assert ours.total_nll.dtype == torch.float64
    assert found == pytest.approx(float(ours.compute()), rel=1e-6)


@pytest.mark.usefixtures("lacking")
def test_what_instruments_compute_in_float64_is_that_of_the_cpu() -> None:
    near, away = models()
    ids = random_ids(23, 1, 20)

    def figures(model: GPT, ids: torch.Tensor) -> list[float]:
        circuit, pattern = ov_circuit(model, 0, 1, embedded=True), attention_patterns(model, ids)[0]
        assert pattern is not None
        spectra = spectral_gap(pattern.mT), second_singular_value(pattern), effective_rank(pattern)
        values = [float(each.sum()) for each in (circuit.singular_values(), *spectra)]
        return [circuit.copying_score(), sink_rate(sink_scores(model, ids), threshold=0.05), *values]

    with torch.no_grad():
        expected = figures(near, ids)
    with far_device():
        assert figures(away, Far(ids)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("double_is_missing", [True, False])
def test_the_simulated_device_refuses_float64(monkeypatch: pytest.MonkeyPatch, double_is_missing: bool) -> None:
    refused: AbstractContextManager[Any] = nullcontext()
    if double_is_missing:
        monkeypatch.setattr(double, "WITHOUT_DOUBLE", {AWAY.type})
    else:
        refused = pytest.raises(TypeError, match="no float64")
    logits, sampler = Far(torch.zeros(1, 23)), Sampler(Sampling(), torch.tensor([1]), 23)
    with far_device(), refused:
        draw_each(logits, [sampler])


def test_mps_is_a_device_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(CallError, match="device is 'mps'; allowed on this machine: cpu"):
        named_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert named_device("mps").type == "mps"
    with pytest.raises(CallError, match=r"allowed on this machine: .*mps"):
        named_device("mps:3")


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_variant_stays_on_its_device(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fields = deepcopy({**SIZES, **config})
    memory = fields.pop("memory", None)
    near = randomise(gpt_with(memory, GPTConfig(**fields)), std=0.1).eval()
    away = deepcopy(near)
    sent(away)
    ids = random_ids(SIZES["vocab_size"], 2, 24)
    with torch.no_grad():
        expected = float(near.loss(ids, ids))
    with far_device():
        found = away.loss(Far(ids), Far(ids))
    assert isinstance(found, Far)
    assert float(found) == pytest.approx(expected, rel=1e-4)
