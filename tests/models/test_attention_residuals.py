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
GROUPED = {"residual": {"kind": "attention_residuals", "group": 2}, "n_layer": 3}


def expected_stack(embedding: Array, state: Mapping[str, Array], rule: Mapping[str, Any]) -> list[Array]:
    """What each branch reads, and what the final norm does."""
    if rule is RULE:
        return streams.attention_residuals(embedding, *branches_of(state))
    return streams.grouped_attention_residuals(embedding, *branches_of(state), size=4)


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


@pytest.mark.parametrize("rule", [RULE, GROUPED], ids=["full", "grouped"])
def test_the_stack_and_its_gradient_equal_the_equations_of_the_paper(rule: dict[str, Any]) -> None:
    model = build(rule)

    def run(x: Tensor) -> Tensor:
        context = Context(shared=Shared())
        for block in model.blocks:
            x = block(x, context)
        return x

    def reference(h: Array, state: Mapping[str, Array]) -> Array:
        return expected_stack(h, state, rule)[-1]

    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x = torch.randn(2, 4, SIZES["dim"], generator=generator, dtype=torch.float64)
    assert_equals_reference(model, reference, x, run)


@pytest.mark.parametrize(("rule", "sources"), [(RULE, 7), (GROUPED, 3)], ids=["full", "grouped"])
def test_the_trace_has_what_is_read_after_each_half_and_the_weights_of_all_earlier_outputs(
    rule: dict[str, Any], sources: int
) -> None:
    model, ids = build(rule), random_ids(17, 1, 6)
    with torch.no_grad(), model.record() as trace:
        model(ids)
    state = {name: parameter.numpy(force=True) for name, parameter in model.named_parameters()}
    expected = expected_stack(trace["embedding"][0].numpy(force=True), state, rule)
    names = [f"blocks.{layer}.{half}" for layer in range(3) for half in ("after_attention", "after_ffn")]
    for number, name in enumerate(names, start=1):
        np.testing.assert_allclose(trace[name][0].numpy(force=True), expected[number], rtol=1e-9, atol=1e-10)
    for layer, half in ((0, "attention"), (2, "ffn")):
        weights = trace[f"blocks.{layer}.{half}_reader.weights"]
        assert weights.shape == (1, 6, 2 if layer == 0 else sources)
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


def test_reading_is_the_same_when_its_weights_are_recorded() -> None:
    model, ids = build(RULE), random_ids(17, 1, 6)
    with torch.no_grad():
        plain = model(ids)
        with model.record():
            recorded = model(ids)
    torch.testing.assert_close(plain, recorded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{"n_unique": 1}, {"layer_drop": {"kind": "constant", "rate": 0.2}}], ids=str)
def test_blocks_that_others_read_are_neither_shared_nor_left_out(more: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=f"{next(iter(more))} and residual attention_residuals cannot be combined"):
        config(RULE, **more)


def test_flops_grow_with_what_is_read() -> None:
    rules = ("pre", RULE["residual"], GROUPED["residual"])
    plain, made, grouped = (flops_per_token(GPT(config({"residual": rule}, n_layer=3)), 8) for rule in rules)
    assert made - plain == pytest.approx(4 * SIZES["dim"] * sum(range(2, 8)))
    assert grouped - plain == pytest.approx(4 * SIZES["dim"] * (2 * 2 + 2 * 2 + 2 * 3))


def test_a_pipeline_gets_whole_groups_and_the_sum_so_far() -> None:
    model, context = build({**GROUPED, "n_layer": 4}), Context(shared=Shared())
    x = torch.zeros(1, 2, SIZES["dim"], dtype=torch.float64)
    for layer, kept in enumerate(([0], [1], [1, 2], [1, 3])):
        x = model.blocks[layer](x, context)
        passed = [key for key in context.shared.carried if model.blocks[layer].passes_on(key)]  # type: ignore[operator]
        assert passed[0] == "initial stream"
        assert [key[1] for key in passed[1:]] == kept
