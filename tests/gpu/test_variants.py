"""Every variant on the device, in each precision, against float64 on the CPU."""

from typing import Any

import pytest
import torch

from lightning_gpt.models import GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.training.compiling import CompiledBlocks
from tests.gpu.near import BOUNDS, CUDA, errors, loss_and_gradient
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, SIZES

PRECISIONS = list(BOUNDS)
KINDS = [config for config in CONFIGS if "memory" not in config][::4]
"""A quarter of the variants, for what takes seconds each."""


def model_of(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    fields = {**SIZES, "dim": 32, **config}
    memory = fields.pop("memory", None)
    model = gpt_with(memory, GPTConfig(**fields))
    return randomise(model, std=0.1).eval()


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_loss_and_gradients_are_as_near_as_the_precision_allows(config: dict[str, Any], dtype: torch.dtype) -> None:
    loss, gradient = errors(model_of(config), random_ids(17, 2, 24), dtype)
    assert loss < BOUNDS[dtype]
    # a rounded score may send a token to another expert, or past another block
    if dtype == torch.float32 or not {"moe", "mixture_of_depths"} & set(str(config).split("'")):
        assert gradient < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_single_head_too(dtype: torch.dtype) -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=32, block_size=24, vocab_size=17)), std=0.1)
    assert max(errors(model, random_ids(17, 2, 24), dtype)) < BOUNDS[dtype]


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_compiled_blocks_give_the_same(config: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model, ids = model_of(config).to(CUDA), random_ids(17, 2, 24).to(CUDA)
    loss, expected = loss_and_gradient(model, ids)
    with CompiledBlocks(model).training():
        found_loss, found = loss_and_gradient(model, ids)
    assert abs(found_loss / loss - 1) < 1e-5
    assert float((found - expected).norm() / expected.norm()) < 1e-4
