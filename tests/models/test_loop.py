"""Blocks that run in a loop: the formula of a whole stack, other numbers of loops, and what does not go with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.context import Context, Shared
from lightning_gpt.models.from_trained.growth import deepen
from lightning_gpt.models.from_trained.loops import with_loops
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.stages import require_stages
from lightning_gpt.planning.flops import flops_per_token
from tests.models.helpers import random_ids
from tests.models.lone_blocks import layer_norm
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build, config
from tests.reference import formulas, parts

LOOP: dict[str, Any] = {"kind": "recurrent_depth", "prelude": 1, "core": 2, "coda": 1}
LAYERS = [0, 1, 2, 1, 2, 1, 2, 3]
"""The own block of each of 8 layers: three loops."""


def stack(x: Array, state: Mapping[str, Array], n_loop: int = 3) -> Array:
    """``e = P(x)``, ``s_i = R(A[s_{i−1}; e] + t_i)``, ``C(s_r)``: Geiping et al. 2025 (2502.05171), section 3.1."""

    def block(h: Array, layer: int) -> Array:
        own = formulas.below(state, f"blocks.{layer}")
        mix, feed = formulas.below(own, "attention"), formulas.below(own, "ffn")
        first, second = layer_norm(own, "attention_norm"), layer_norm(own, "ffn_norm")
        h = parts.pre(h, lambda y: formulas.multi_head_attention(y, mix, SIZES["n_head"]), first)
        return parts.pre(h, lambda y: formulas.feed_forward(y, feed), second)

    e = block(x, 0)
    s, steps = np.zeros_like(e), state["injection.steps"]
    for i in range(n_loop):
        both = np.concatenate([s, e], axis=1)
        adapted = both @ state["injection.adapter.weight"].T if "injection.adapter.weight" in state else s + e
        s = block(block(adapted + steps[min(i, len(steps) - 1)], 1), 2)
    return block(s, 7)  # named by the first layer that runs it


def run_of(model: GPT) -> Any:
    def run(x: Tensor) -> Tensor:
        context = Context(shared=Shared())
        for layer in range(model.config.n_layer):
            x = model.layer(layer, x, context)
        return x

    return run


@pytest.mark.parametrize("injection", ["adapter", "add"])
def test_the_stack_and_its_gradient_equal_the_equations_of_the_paper(injection: str) -> None:
    model = build({"loop": {**LOOP, "injection": injection}, "n_layer": 8})
    own = [*model.blocks[:3], model.blocks[7]]
    assert all(model.blocks[layer] is own[number] for layer, number in enumerate(LAYERS))
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x = torch.randn(2, 4, SIZES["dim"], generator=generator, dtype=torch.float64)
    names = {name for name, _ in model.named_parameters()}
    assert "blocks.3.attention_norm.weight" not in names  # layer 3 is block 1, and block 3 is layer 7
    assert_equals_reference(model, stack, x, run_of(model))


@pytest.mark.parametrize("n_loop", [1, 2, 3, 5])
def test_a_trained_model_runs_another_number_of_loops_with_the_last_embedding_of_a_step(n_loop: int) -> None:
    model, ids = build({"loop": LOOP, "n_layer": 8}), random_ids(17, 2, 6)
    other = with_loops(model, n_loop)
    assert other.config.n_layer == 2 + 2 * n_loop
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in model.parameters())
    with torch.no_grad(), other.record() as trace:
        logits = other(ids)
    state = {name: parameter.numpy(force=True) for name, parameter in model.named_parameters()}
    for row in range(2):
        expected = stack(trace["embedding"][row].numpy(force=True), state, n_loop)
        last = trace[f"blocks.{other.config.n_layer - 1}.after_ffn"][row].numpy(force=True)
        np.testing.assert_allclose(last, expected, rtol=1e-9, atol=1e-10)
    assert torch.allclose(logits, model(ids)) is (n_loop == 3)
    assert torch.equal(with_loops(other, 3)(ids), model(ids))
    assert other.generate(ids, 4, temperature=0).shape == (2, 10)


def test_the_trace_has_each_loop_under_its_layers_and_what_it_begins_with() -> None:
    model = build({"loop": LOOP, "n_layer": 8})
    with torch.no_grad(), model.record() as trace:
        model(random_ids(17, 1, 5))
    assert {f"blocks.{layer}.attention.pattern" for layer in range(8)} <= set(trace)
    assert {"injection.state_0", "injection.state_1", "injection.state_2"} <= set(trace)
    entering = trace["injection.state_2"], trace["blocks.5.after_attention"]
    torch.testing.assert_close(entering[1] - entering[0], trace["blocks.5.attention.output"])


def test_flops_count_every_loop() -> None:
    d = SIZES["dim"]
    plain, looped = (flops_per_token(GPT(config({"loop": loop}, n_layer=8)), 8) for loop in (None, LOOP))
    assert looped - plain == pytest.approx(3 * 2 * 2 * d * d)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 5}, "n_layer is 5; a loop of 2 blocks with 1 before and 1 after it makes n_layer 4, 6, 8"),
        ({"n_unique": 2}, "loop and n_unique cannot be combined"),
        ({"layer_drop": {"kind": "constant", "rate": 0.1}}, "loop and layer_drop cannot be combined"),
        ({"token_routing": "mixture_of_depths"}, "loop and token_routing cannot be combined"),
        ({"attention": ["full", "linear"]}, "attention is a pattern of 2, and with loop all layers have one kind"),
        ({"residual": "attention_residuals"}, "loop and residual attention_residuals cannot be combined"),
        ({"residual": "hyper_connections"}, "loop and residual hyper_connections cannot be combined"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_loop_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, "n_layer": 8, "loop": LOOP, **changes}))
    assert said in str(refused.value)


def test_memory_pipelines_growing_and_models_without_a_loop_are_refused() -> None:
    looped = config({"loop": LOOP}, n_layer=6)
    with pytest.raises(CallError, match="memory and loop cannot be combined"):
        gpt_with({"kind": "tokens", "n_memory": 2}, looped)
    with pytest.raises(CallError, match="with loop layers share blocks"):
        require_stages(GPT(looped), Layout(data=1, pipeline=2))
    with pytest.raises(CallError, match="with loop an added layer would be one of the shared blocks"):
        deepen(GPT(looped), 8)
    with pytest.raises(CallError, match="the model has no loop"):
        with_loops(build({}), 2)


@pytest.mark.parametrize("residual", ["deepnorm", "depth_scaled"])
def test_rules_that_know_the_depth_have_no_other_number_of_loops(residual: str) -> None:
    with pytest.raises(CallError, match=f"residual {residual} has the number of layers in its formula"):
        with_loops(build({"n_layer": 8, "loop": LOOP, "residual": residual}), 6)


def test_without_a_prelude_the_first_stream_is_the_embeddings() -> None:
    """Not what the first loop makes of them: with a share of 1, every block reads the embeddings alone."""
    loop = {"kind": "recurrent_depth", "prelude": 0, "core": 2, "coda": 0}
    initial = {"kind": "initial", "share": 1.0}
    model, ids = build({"n_layer": 4, "loop": loop, "residual": initial}), random_ids(17, 1, 9)
    with torch.no_grad(), model.record(["embedding", "blocks.*.attention_norm"]) as trace:
        model(ids)
    for layer, block in enumerate(model.each_block()):
        read = trace[f"blocks.{layer}.attention_norm"]
        torch.testing.assert_close(read, block.attention_norm(trace["embedding"]).detach())
