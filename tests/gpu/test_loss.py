"""The fused loss on the device, by the kernel and without it."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models import head
from lightning_gpt.models.head import linear_cross_entropy, token_nll
from tests.gpu.near import BOUNDS, CUDA

TERMS = [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}]


def slopes(loss: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    return [slope.double().cpu() for slope in torch.autograd.grad(loss, (hidden, weight))]


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("vocab_size", [61, 4096, 50257])
@pytest.mark.parametrize("dtype", [*BOUNDS, torch.float64], ids=str)
def test_it_is_that_of_the_logits(dtype: torch.dtype, vocab_size: int, terms: dict[str, float], triton: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 48, generator=chance).to(dtype).double().requires_grad_()
    weight = (0.3 * torch.randn(vocab_size, 48, generator=chance)).to(dtype).double().requires_grad_()
    targets = torch.randint(vocab_size, (700,), generator=chance)
    targets[::7] = -100
    logits = hidden @ weight.T
    exact = F.cross_entropy(logits, targets, label_smoothing=terms.get("label_smoothing", 0.0))
    exact = exact + terms.get("z_loss", 0.0) * (logits.logsumexp(-1) ** 2)[targets >= 0].mean()
    there = [x.detach().to(CUDA, dtype).requires_grad_() for x in (hidden, weight)]
    with (
        mock.patch.object(head, "has_triton", return_value=triton),
        mock.patch.object(head, "chunk_size", return_value=256),
    ):
        found = linear_cross_entropy(*there, targets.to(CUDA), **terms)
        found_slopes = slopes(found, *there)
        if not terms:
            with torch.no_grad():
                each = token_nll(*there, targets.to(CUDA))
            assert abs(float(each.sum() / (targets >= 0).sum()) / float(exact) - 1) < BOUNDS.get(dtype, 1e-10)
    bound = {**BOUNDS, torch.float32: 1e-5}.get(dtype, 1e-10)
    assert abs(float(found) / float(exact) - 1) < bound
    for one, other in zip(found_slopes, slopes(exact, hidden, weight), strict=True):
        assert float((one - other).norm() / other.norm()) < bound


def test_a_label_outside_the_vocabulary_is_no_number() -> None:
    hidden, weight = torch.ones(3, 8, device=CUDA), torch.ones(5, 8, device=CUDA, requires_grad=True)
    assert torch.isnan(linear_cross_entropy(hidden, weight, torch.tensor([1, 5, 2], device=CUDA)))
