"""Positions are computed in fp32 or better, whatever the weights are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.models.positions.scheme import Positions, position_schemes
from tests.models.helpers import random_ids, randomise

DIM, N_HEAD = 64, 2
FAR = torch.tensor([255, 256, 257, 258, 259, 260, 99_999, 100_000])


def scheme(choice: Any) -> Positions:
    return position_schemes.make(choice, dim=DIM, n_head=N_HEAD, block_size=8).to(torch.bfloat16)


@pytest.mark.parametrize(
    "choice",
    [
        "rotary",
        {"kind": "rotary", "factor": 4.0},
        {"kind": "rotary", "factor": 4.0, "extension": "ntk"},
    ],
)
def test_angles_of_rotary_positions_are_exact_under_half_precision_weights(choice: Any) -> None:
    width = DIM // N_HEAD
    x = torch.zeros(1, N_HEAD, len(FAR), width, dtype=torch.bfloat16)
    kind = choice if isinstance(choice, dict) else {"kind": choice}
    base, factor = 10000.0, kind.get("factor", 1.0)
    if kind.get("extension") == "ntk":
        base, factor = base * factor ** (width / (width - 2)), 1.0
    exact = FAR.double()[:, None] * base ** (-torch.arange(0, width, 2).double() / width) / factor
    cos, sin = scheme(choice).rotation(width, FAR, torch.promote_types(x.dtype, torch.float32))
    # an error of 1e-3 of the angle at the highest frequency is 1e-7 of it times 100,000 positions
    assert ((cos.double() - exact.cos()).abs() <= 1e-3 + 1e-6 * exact).all()
    assert ((sin.double() - exact.sin()).abs() <= 1e-3 + 1e-6 * exact).all()


def test_neighbouring_positions_stay_apart_under_half_precision_weights() -> None:
    """In bf16 the positions 255 to 260 are 255, 256, 256, 258, 260 and 260."""
    cos, sin = scheme("rotary").rotation(DIM // N_HEAD, FAR[:6], torch.float32)
    turned = torch.stack([cos, sin], dim=-1)
    assert ((turned[1:] - turned[:-1]).abs().amax(dim=(-2, -1)) > 0.5).all()
    waves = scheme("sinusoidal").embedding(6, FAR[:6]).float() / 0.02
    exact = position_schemes.make("sinusoidal", dim=DIM, n_head=N_HEAD, block_size=8).embedding(6, FAR[:6]) / 0.02
    torch.testing.assert_close(waves, exact, rtol=0, atol=2e-2)  # what rounding the wave itself to bf16 costs


def test_distances_of_alibi_are_exact_before_they_are_rounded() -> None:
    bias = scheme("alibi").bias(FAR, FAR, torch.float32)
    exact = position_schemes.make("alibi", dim=DIM, n_head=N_HEAD, block_size=8).bias(FAR, FAR, torch.float64)
    torch.testing.assert_close(bias.double(), exact, rtol=1e-6, atol=0)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("way", ["bf16", "int8"])
def test_logits_far_into_a_text_are_as_near_as_half_precision_allows(position: str, way: str) -> None:
    """With angles made in bf16 the error grew along the text, to four times as much here."""
    config = GPTConfig(n_layer=2, n_head=2, dim=64, block_size=1024, vocab_size=97, position=position)
    model = randomise(GPT(config), std=0.1).eval()
    ids = random_ids(97, 1, 1024)
    with torch.no_grad():
        exact = model.double()(ids)
        model.float()
        rounded = int8(model) if way == "int8" else GPT(config).eval()
        if way == "bf16":
            rounded.load_state_dict(model.state_dict())
            rounded.to(torch.bfloat16)
        near, far = ((rounded(ids)[:, part], exact[:, part]) for part in (slice(0, 128), slice(896, 1024)))
    assert relative_error(*far) < 1.5 * relative_error(*near) < 0.1
