"""Eight-bit weights: how far they are from the exact ones, and that they generate."""

import pytest
import torch

from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.decoding.int8 import Int8Linear, int8
from tests.models.helpers import random_ids, randomise


@pytest.mark.parametrize("width", [64, 40, 17, 3])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_rounded_layer_is_within_the_bound_of_its_rounding(width: int, rows: int, bias: bool) -> None:
    """Each weight is off by at most half a step, each step 1/127 of its row's largest; bfloat16 adds its 2⁻⁸.

    The kernel reads beyond the end of a matrix whose width is not a multiple of 16.
    """
    torch.manual_seed(0)
    exact = torch.nn.Linear(width, 32, bias=bias)
    rounded = Int8Linear(exact.weight.detach(), exact.bias.detach() if bias else None)
    x = torch.randn(rows, width)
    step = exact.weight.abs().amax(dim=1) / 127
    bound = 0.5 * step * x.abs().sum(dim=1, keepdim=True) + 2**-6 * (x.abs() @ exact.weight.abs().T + 1)
    difference = (rounded(x).float() - exact(x)).abs()
    assert (difference <= bound).all()
    assert difference.max() > 0


def test_rows_of_equal_weights_of_any_size_are_exact() -> None:
    weight = torch.tensor([[1e-3], [5.0], [0.0]]).expand(3, 16)
    out = Int8Linear(weight)(torch.ones(1, 16))
    torch.testing.assert_close(out.float(), torch.tensor([[16e-3, 80.0, 0.0]]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_rounded_model_predicts_nearly_the_same_and_leaves_the_exact_one_alone(tied: bool) -> None:
    config = GPTConfig(n_layer=2, n_head=2, dim=32, block_size=16, vocab_size=50, tie_embeddings=tied)
    model = randomise(GPT(config), std=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, ids = int8(model), random_ids(50, 4, 16)
    with torch.no_grad():
        exact, rounded = model.next_logits(ids).softmax(-1), small.next_logits(ids).softmax(-1)
    assert (exact - rounded).abs().sum(-1).max() < 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert small.generate(ids[:, :4], 6, temperature=0).shape == (4, 10)


def test_the_single_head_can_be_rounded_too() -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=16, vocab_size=40)))
    assert int8(model).generate(random_ids(40, 1, 3), 4).shape == (1, 7)
