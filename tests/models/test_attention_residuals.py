"""Attention residuals: the formula of a whole stack, how it starts, and what does not go with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.models.context import Context, Shared
from lightning_gpt.planning.flops import flops_per_token
from tests.models.helpers import random_ids
from tests.models.lone_blocks import layer_norm
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build, config
from tests.reference import formulas, streams
from tests.reference.parts import Branch

RULE = {"residual": "attention_residuals", "n_layer": 3}


def branches_of(state: Mapping[str, Array]) -> tuple[list[Branch], list[Array]]:
    """Each branch with its norm, and the query of what comes after it."""
    branches: list[Branch] = []
    queries = []
    for layer in range(3):
        own = formulas.below(state, f"blocks.{layer}")

        def mix(h: Array, own: Any = own) -> Array:
            normed = layer_norm(own, "attention_norm")(h)
            return formulas.multi_head_attention(normed, formulas.below(own, "attention"), SIZES["n_head"])

        def feed(h: Array, own: Any = own) -> Array:
            return formulas.feed_forward(layer_norm(own, "ffn_norm")(h), formulas.below(own, "ffn"))

        branches += [mix, feed]
        queries += [own["attention_reader.query"], own["ffn_reader.query"]]
    return branches, queries


def test_the_stack_and_its_gradient_equal_the_equations_of_the_paper() -> None:
    model = build(RULE)

    def run(x: Tensor) -> Tensor:
        context = Context(shared=Shared())
        for block in model.blocks:
            x = block(x, context)
        return x

    def reference(h: Array, state: Mapping[str, Array]) -> Array:
        return streams.attention_residuals(h, *branches_of(state))[-1]

    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x = torch.randn(2, 4, SIZES["dim"], generator=generator, dtype=torch.float64)
    assert_equals_reference(model, reference, x, run)


def test_the_trace_has_what_is_read_after_each_half_and_the_weights_of_all_earlier_outputs() -> None:
    model, ids = build(RULE), random_ids(17, 1, 6)
    with torch.no_grad(), model.record() as trace:
        model(ids)
    state = {name: parameter.numpy(force=True) for name, parameter in model.named_parameters()}
    expected = streams.attention_residuals(trace["embedding"][0].numpy(force=True), *branches_of(state))
    names = [f"blocks.{layer}.{half}" for layer in range(3) for half in ("after_attention", "after_ffn")]
    for number, name in enumerate(names, start=1):
        np.testing.assert_allclose(trace[name][0].numpy(force=True), expected[number], rtol=1e-9, atol=1e-10)
    for layer, half in ((0, "attention"), (2, "ffn")):
        weights = trace[f"blocks.{layer}.{half}_reader.weights"]
        assert weights.shape == (1, 6, 2 if layer == 0 else 7)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 6), check_dtype=False)


def test_every_branch_starts_by_reading_the_mean_of_all_before_it() -> None:
    model, ids = GPT(config(RULE)).eval(), random_ids(17, 1, 6)
    with torch.no_grad(), model.record() as trace:
        model(ids)
    outputs = [trace["embedding"]]
    for layer in range(3):
        outputs.append(trace[f"blocks.{layer}.attention.output"])
        torch.testing.assert_close(trace[f"blocks.{layer}.after_attention"], torch.stack(outputs).mean(dim=0))
        outputs.append(trace[f"blocks.{layer}.ffn.output"])
        torch.testing.assert_close(trace[f"blocks.{layer}.after_ffn"], torch.stack(outputs).mean(dim=0))


@pytest.mark.parametrize("more", [{"n_unique": 1}, {"layer_drop": {"kind": "constant", "rate": 0.2}}], ids=str)
def test_blocks_that_others_read_are_neither_shared_nor_left_out(more: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=f"{next(iter(more))} and residual attention_residuals cannot be combined"):
        config(RULE, **more)


def test_flops_grow_with_what_is_read() -> None:
    plain, made = (flops_per_token(GPT(config({"residual": rule}, n_layer=3)), 8) for rule in ("pre", RULE["residual"]))
    assert made - plain == pytest.approx(4 * SIZES["dim"] * sum(range(2, 8)))
