"""The shipped shapes, up to LLM scale, built without memory: parameters as counted by hand and as published."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.planning.flops import active_parameters
from tests.models.variants import CONFIGS, fresh, name_of

FOLDER = Path(__file__).parents[2] / "configs/model"
GPT2 = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}
LLAMA = {
    # name: layers, width, heads, heads of keys and values, hidden width
    "llama_small": (8, 512, 8, 2, 1368),
    "llm_32l": (32, 4096, 32, 32, 11008),
    "llm_64l": (64, 8192, 64, 8, 22016),
    "llm_96l": (96, 8192, 64, 8, 22016),
}


def shape(name: str, **changes: Any) -> GPT:
    """The model of a file in ``configs/model`` on the meta device."""
    given = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"]["init_args"]
    with torch.device("meta"):
        model = GPT(GPTConfig(**{**given, **changes}))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    return model


def count(model: GPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def llama_by_hand(layers: int, dim: int, heads: int, kv_heads: int, hidden: int, vocab_size: int) -> int:
    attention = 2 * dim * dim + 2 * dim * kv_heads * dim // heads
    return 2 * vocab_size * dim + layers * (attention + 3 * dim * hidden + 2 * dim) + dim


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_has_the_published_parameters(name: str) -> None:
    model = shape(name)
    layers, dim = model.config.n_layer, model.config.dim
    assert dim // model.config.n_head == 64
    by_hand = 50257 * dim + 1024 * dim + layers * (12 * dim * dim + 13 * dim) + 2 * dim
    assert count(model) == by_hand == GPT2[name]


@pytest.mark.parametrize("name", LLAMA)
def test_llama_shapes_have_the_parameters_counted_by_hand(name: str) -> None:
    model = shape(name)
    assert count(model) == llama_by_hand(*LLAMA[name], 50257)
    assert (model.config.n_layer, model.config.dim, model.config.n_head) == LLAMA[name][:3]


def test_the_shape_of_llama_2_7b_has_its_published_parameters() -> None:
    assert count(shape("llm_32l", vocab_size=32000)) == 6_738_415_616


def test_the_modern_small_gpt_has_the_parameters_counted_by_hand() -> None:
    dim, head_dim = 256, 64
    block = 12 * dim * dim + 2 * dim + 2 * head_dim
    assert count(shape("modern_small")) == 50257 * dim + 8 * block + dim


def test_the_small_mixture_is_as_large_as_its_dense_model_to_a_token() -> None:
    dim, hidden = 256, 512
    expert = 2 * dim * hidden + hidden + dim
    sparse, dense = shape("moe_small"), shape("gpt_4l")
    assert count(sparse) == active_parameters(sparse) + 4 * 6 * expert
    assert active_parameters(sparse) == count(dense) + 4 * (8 * dim + dim)  # the router, and one more output bias


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
def test_every_variant_is_built_without_memory(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = fresh(changes)
    real = fresh(changes)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in real.state_dict().items()
    }
