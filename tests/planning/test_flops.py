"""FLOPs by formula, beside torch's own count of what was run."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.planning.flops import flops_per_token, training_flops_per_token

BATCH, TIME = 2, 16
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 32, "block_size": TIME, "vocab_size": 101}


def counted(model: LanguageModel, backward: bool) -> float:
    """What torch's counter sees of the matrix products, a token."""
    ids = torch.randint(101, (BATCH, TIME))
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        if backward:
            loss.backward()
    return counter.get_total_flops() / ids.numel()


MODELS = {
    "gpt": lambda **more: GPT(GPTConfig(**SIZES, attention_backend="manual", **more)),
    "untied": lambda: GPT(GPTConfig(**SIZES, attention_backend="manual", tie_embeddings=False)),
    "single head": lambda: SingleHeadModel(
        SingleHeadConfig(dim=32, block_size=TIME, vocab_size=101, attention_backend="manual")
    ),
    "grouped": lambda: GPT(
        GPTConfig(**SIZES, attention_backend="manual", attention={"kind": "grouped", "n_kv_head": 1}, ffn="swiglu")
    ),
    "mixture of experts": lambda: GPT(
        GPTConfig(**SIZES, attention_backend="manual", ffn={"kind": "moe", "n_expert": 4, "top_k": 2, "hidden": 24})
    ),
    "gated shared experts": lambda: GPT(
        GPTConfig(
            **SIZES,
            attention_backend="manual",
            ffn={"kind": "moe", "n_expert": 4, "hidden": 24, "n_shared": 2, "shared_gate": True},
            logit_divisor=2.0,
        )
    ),
    "differential": lambda: GPT(GPTConfig(**SIZES, attention_backend="manual", attention="differential")),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_is_what_torch_counts(name: str) -> None:
    model = MODELS[name]()
    assert flops_per_token(model, TIME) == counted(model, backward=False)
    assert training_flops_per_token(model, TIME) == counted(model, backward=True)


def test_the_closed_form_of_a_gpt() -> None:
    d, depth, vocabulary = SIZES["dim"], SIZES["n_layer"], SIZES["vocab_size"]
    expected = 2 * (12 * d * d * depth + vocabulary * d) + 4 * d * TIME * depth
    assert flops_per_token(GPT(GPTConfig(**SIZES)), TIME) == expected


def test_the_formula_is_more_than_torch_counts_of_the_fused_kernel() -> None:
    """By all of them, two forward and four back: its operator on CPU is not in the counter's list."""
    model = GPT(GPTConfig(**SIZES))
    product = 2 * SIZES["dim"] * TIME * SIZES["n_layer"]
    assert counted(model, backward=True) - training_flops_per_token(model, TIME) == -6 * product


def test_experts_that_are_not_chosen_do_not_count() -> None:
    def flops(top_k: int) -> float:
        ffn = {"kind": "moe", "n_expert": 4, "top_k": top_k, "hidden": 64}
        return flops_per_token(GPT(GPTConfig(**SIZES, ffn=ffn)), TIME)

    expert = 2 * SIZES["dim"] * 64  # weights
    assert flops(2) - flops(1) == 2 * expert * SIZES["n_layer"]


def test_the_router_of_a_mixture_counts() -> None:
    def flops(n_expert: int) -> float:
        ffn = {"kind": "moe", "n_expert": n_expert, "top_k": 1, "hidden": 64}
        return flops_per_token(GPT(GPTConfig(**SIZES, ffn=ffn)), TIME)

    assert flops(9) - flops(4) == 2 * (9 - 4) * SIZES["dim"] * SIZES["n_layer"]


def test_a_window_costs_the_same_at_any_length() -> None:
    model = GPT(GPTConfig(**SIZES, position="rotary", attention={"kind": "window", "window": 8}))
    assert flops_per_token(model, 4096) == pytest.approx(flops_per_token(model, 2048), rel=1e-3)


def test_linear_attention_costs_the_same_at_any_length() -> None:
    model = GPT(GPTConfig(**SIZES, position="rotary", attention="linear"))
    assert flops_per_token(model, 4096) == flops_per_token(model, 64)


def test_no_weight_is_read() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(**SIZES))
    assert flops_per_token(model, TIME) == flops_per_token(GPT(GPTConfig(**SIZES)), TIME)
