"""Documents kept apart by ``flex_attention``: the path of a GPU, entered here with the CPU counted as one.

What is tested is everything around the kernel: when it is taken, with which mask, in which precision. Without gradients
torch's own uncompiled reference computes it. That has no backward pass on a CPU, so for gradients the block mask's own
rule is made a mask for the fused kernel.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention import formula, mask
from tests.models.helpers import random_ids, randomise


def reference(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, scale: float | None) -> Tensor:
    """What the kernel computes."""
    if not torch.is_grad_enabled():
        return flex_attention(q, k, v, block_mask=block_mask, scale=scale)
    batch, row, column = torch.meshgrid(*map(torch.arange, (len(q), q.shape[-2], k.shape[-2])), indexing="ij")
    seen = block_mask.mask_mod(batch, torch.zeros(()), row, column)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=scale)


@pytest.fixture
def kernel() -> Iterator[mock.Mock]:
    """The kernel's calls, while the CPU counts as a device that has it."""
    spy = mock.Mock(side_effect=reference)
    with (
        mock.patch.object(mask, "FLEX_DEVICES", (torch.get_default_device().type,)),
        mock.patch.object(formula, "compiled_flex_attention", return_value=spy),
    ):
        yield spy


def documents(time: int) -> Tensor:
    """Two rows: of three documents, and of one."""
    cuts = torch.tensor([time // 3, time // 2])
    first = torch.searchsorted(cuts, torch.arange(time), right=True)
    return torch.stack([first, torch.zeros_like(first)])


def gradients(model: GPT, ids: Tensor, apart: Tensor) -> list[Tensor]:
    model.zero_grad()
    model.loss(ids, ids.roll(-1, 1), apart).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("time", [100, 200, 256])
@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": "layer"}, {"attention": "value_embedding"}], ids=str)
def test_logits_and_gradients_are_those_of_a_mask(
    kernel: mock.Mock, time: int, head_dim: int, changes: dict[str, Any]
) -> None:
    config = GPTConfig(
        n_layer=2, n_head=2, dim=2 * head_dim, block_size=256, vocab_size=61, position="rotary", **changes
    )
    model, ids, apart = randomise(GPT(config), std=0.05).double(), random_ids(61, 2, time), documents(time)
    with torch.no_grad():
        found = model(ids, apart)
    slopes = gradients(model, ids, apart)
    assert kernel.call_count == 4
    with mock.patch.object(mask, "FLEX_DEVICES", ()):
        with torch.no_grad():
            torch.testing.assert_close(found, model(ids, apart), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slopes, gradients(model, ids, apart), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": "layer"}, {"attention": "value_embedding"}], ids=str)
def test_queries_keys_and_values_have_one_precision_under_autocast(kernel: mock.Mock, changes: dict[str, Any]) -> None:
    """Norms and tables give fp32 beside half-precision products, and autocast leaves this kernel alone."""
    config = GPTConfig(n_layer=1, n_head=2, dim=64, block_size=32, vocab_size=61, position="rotary", **changes)
    model, ids = GPT(config), random_ids(61, 2, 32)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        model.loss(ids, ids.roll(-1, 1), documents(32)).backward()
    assert {tensor.dtype for tensor in kernel.call_args.args} == {torch.bfloat16}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_head": 8},  # heads of width 8, narrower than the kernel takes
        {"position": "alibi"},
        {"attention": {"kind": "window", "window": 5}},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_what_the_kernel_cannot_do_goes_another_way(kernel: mock.Mock, changes: dict[str, Any]) -> None:
    config = GPTConfig(**{"n_layer": 1, "n_head": 2, "dim": 64, "block_size": 32, "vocab_size": 61, **changes})
    ids = random_ids(61, 2, 32)
    GPT(config).loss(ids, ids.roll(-1, 1), documents(32)).backward()
    assert not kernel.called


def test_one_head_without_a_dimension_of_heads_goes_another_way(kernel: mock.Mock) -> None:
    model, ids = SingleHeadModel(SingleHeadConfig(dim=32, block_size=32, vocab_size=61)), random_ids(61, 2, 32)
    model.loss(ids, ids.roll(-1, 1), documents(32)).backward()
    assert not kernel.called


def test_a_cache_goes_another_way(kernel: mock.Mock) -> None:
    model, ids = GPT(GPTConfig(n_layer=1, n_head=2, dim=64, block_size=32, vocab_size=61)).eval(), random_ids(61, 1, 8)
    model.generate(ids, 4, temperature=0)
    assert not kernel.called
