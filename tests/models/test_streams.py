"""Residual rules with several copies of the stream: their formulas, their starts, and what instruments make of them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.analysis.interventions import patched_logits
from lightning_gpt.analysis.logit_lens import lens_logits, stream_names, streams_of
from lightning_gpt.analysis.streams import residual_streams
from lightning_gpt.models import GPT
from lightning_gpt.models.block import blocks
from lightning_gpt.models.constrained_connections import _Sinkhorn
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.norms import LayerNorm
from lightning_gpt.models.registry import Given
from lightning_gpt.planning.flops import flops_per_token
from tests.models import checks
from tests.models.helpers import random_ids, randomise
from tests.models.lone_blocks import State, attention, layer_norm
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SEGMENTS, SIZES, TOKENS, build, config, name_of
from tests.reference import formulas, streams

DIM, LAYER = 6, 1
RULES: dict[str, Given] = {
    "dynamic": {"kind": "hyper_connections", "n_stream": 3},
    "static": {"kind": "hyper_connections", "n_stream": 2, "dynamic": False},
    "constrained": {"kind": "constrained_hyper_connections", "n_stream": 3, "steps": 4},
    "constrained, one copy": {"kind": "constrained_hyper_connections", "n_stream": 1},
}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def half(rule: str, h: Array, state: State, name: str) -> Array:
    """What a half of a block makes of copies that stand side by side, ``(time, n d)``."""
    choice: Any = RULES[rule]
    n, own = choice["n_stream"], formulas.below(state, f"{name}_connection")
    norm = layer_norm(state, f"{name}_norm")

    def branch(x: Array) -> Array:
        if name == "ffn":
            return formulas.feed_forward(norm(x), formulas.below(state, "ffn"))
        return formulas.multi_head_attention(norm(x), formulas.below(state, "attention"), 2)

    copies = h.reshape(len(h), n, DIM)
    if rule in ("static", "dynamic"):
        dynamic = None
        if rule == "dynamic":
            weight = own["weight"]
            dynamic = {"w_m": weight[0], "w_r": weight[1:-1].T, "w_beta": weight[-1]}
            dynamic |= {"s_alpha": own["scales"][0], "s_beta": own["scales"][1]}
        static = own["static_read"], own["static_residual"].reshape(n, n), own["static_write"]
        made = streams.hyper_connection(copies, branch, layer_norm(own, "norm"), *static, dynamic)
    else:
        places = {"pre": slice(0, n), "post": slice(n, 2 * n), "res": slice(2 * n, None)}
        phi = {each: own["weight"][place].T for each, place in places.items()}
        bias = {each: own["bias"][place] for each, place in places.items()}
        alpha = dict(zip(places, map(float, own["scales"]), strict=True))
        made = streams.constrained_connection(copies, branch, phi, bias, alpha, choice.get("steps", 20))
    return made.reshape(h.shape)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ffn", ["gelu", None])
def test_a_block_and_its_gradient_equal_the_equations_of_the_paper(rule: str, ffn: Given) -> None:
    choice: Any = RULES[rule]
    made = blocks.make(
        choice,
        attention=attention(),
        ffn=ffns.make_if_chosen(ffn, dim=DIM, bias=True),
        norm=partial(LayerNorm, DIM),
        dim=DIM,
        dropout=0.0,
        n_layer=3,
        layer=LAYER,
    )
    randomise(made).double()
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x = torch.randn(2, 4, choice["n_stream"] * DIM, generator=generator, dtype=torch.float64)

    def reference(h: Array, state: State) -> Array:
        h = half(rule, h, state, "attention")
        return h if ffn is None else half(rule, h, state, "ffn")

    assert_equals_reference(made, reference, x)


def test_the_gradient_of_sinkhorn_is_that_of_its_divisions_one_by_one() -> None:
    """To 1e-10, as assert_equals_reference has only central differences to compare with."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    logits = 3 * torch.randn(2, 5, 4, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 5, 4, 4, generator=generator, dtype=torch.float64)
    plain, own = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    matrix = plain.exp()
    for _ in range(20):
        matrix = matrix / matrix.sum(dim=-2, keepdim=True)
        matrix = matrix / matrix.sum(dim=-1, keepdim=True)
    made = _Sinkhorn.apply(own, 20)
    torch.testing.assert_close(made, matrix, **CLOSE)
    (matrix * weights).sum().backward()
    (made * weights).sum().backward()
    torch.testing.assert_close(own.grad, plain.grad, **CLOSE)
    np.testing.assert_allclose(
        made[1, 2].numpy(force=True), streams.sinkhorn_knopp(logits[1, 2].numpy(force=True), 20), rtol=0, atol=1e-12
    )


def test_constrained_copies_are_mixed_by_doubly_stochastic_matrices_and_never_cancelled() -> None:
    model = build({"residual": "constrained_hyper_connections"})
    with torch.no_grad(), model.record("*_connection.*") as trace:
        model(random_ids(17, 2, 9))
    assert len(trace) == 2 * 2 * 3
    for name, tensor in trace.items():
        assert (tensor >= 0).all(), name
        if name.endswith("residual"):
            torch.testing.assert_close(tensor.sum(dim=-1), torch.ones(2, 9, 4), **CLOSE, check_dtype=False)
            torch.testing.assert_close(tensor.sum(dim=-2), torch.ones(2, 9, 4), rtol=0, atol=0.02, check_dtype=False)


@pytest.mark.parametrize("rule", ["hyper_connections", "constrained_hyper_connections"])
def test_a_model_starts_as_pre_norm_in_each_copy(rule: str) -> None:
    """Constrained ones but for what the small factors α add."""
    torch.manual_seed(0)
    plain = GPT(config({"residual": "pre"})).double().eval()
    model = GPT(config({"residual": rule})).double().eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    if rule == "constrained_hyper_connections":
        for name, parameter in model.named_parameters():
            if name.endswith("scales"):
                torch.nn.init.zeros_(parameter)
    ids = random_ids(17, 2, 9)
    torch.testing.assert_close(residual_streams(model, ids), 4 * residual_streams(plain, ids), **CLOSE)


@pytest.mark.parametrize("rule", ["hyper_connections", "constrained_hyper_connections"])
def test_each_branch_starts_by_reading_its_own_copy_or_the_mean(rule: str) -> None:
    model = GPT(config({"residual": rule}, n_layer=3)).double()
    with torch.no_grad(), model.record("*connection.read") as trace:
        model(random_ids(17, 1, 5))
    for site, read in enumerate(trace.values()):
        expected = torch.eye(4)[site % 4] if rule == "hyper_connections" else torch.full((4,), 0.25)
        torch.testing.assert_close(read[0, 0], expected.double(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("rule", list(RULES.values()), ids=RULES.keys())
def test_instruments_read_the_sum_of_the_copies_and_patch_all_of_them(rule: Given) -> None:
    model = build({"residual": rule})
    first, second = random_ids(17, 1, 6), random_ids(17, 1, 6, seed=2)
    with torch.no_grad(), model.record() as trace:
        logits = model(first)
    copies, shown = trace["blocks.1.after_ffn"], residual_streams(model, first)
    n = copies.shape[-1] // SIZES["dim"]
    assert n == rule["n_stream"]  # type: ignore[index, call-overload]
    torch.testing.assert_close(shown[-1], copies.unflatten(-1, (n, -1)).sum(dim=-2), **CLOSE)
    torch.testing.assert_close(shown[0], n * trace["embedding"], **CLOSE)
    torch.testing.assert_close(torch.stack(streams_of(model, trace)), shown, **CLOSE)
    torch.testing.assert_close(lens_logits(model, shown[-1]), logits, **CLOSE)
    for name in stream_names(model):
        torch.testing.assert_close(patched_logits(model, first, second, name), logits, **CLOSE)


def test_flops_are_those_of_pre_norm_and_the_products_with_the_copies() -> None:
    plain, d = flops_per_token(GPT(config({})), 8), SIZES["dim"]
    mixing = 2 * d * 4 * 6
    for rule, own in (
        ({"kind": "hyper_connections", "dynamic": False}, 0),
        ("hyper_connections", 2 * 4 * 6 * d),
        ("constrained_hyper_connections", 2 * 4 * d * 24),
    ):
        made = flops_per_token(GPT(config({"residual": rule})), 8)
        assert made - plain == pytest.approx(2 * 2 * (mixing + own))


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": RULES["constrained"], "memory": SEGMENTS, "position": "alibi"},
        {"residual": RULES["dynamic"], "memory": TOKENS},
    ],
    ids=name_of,
)
def test_memory_of_segments_keeps_all_copies_and_memory_tokens_have_as_many(changes: dict[str, Any]) -> None:
    checks.reading_in_pieces_gives_the_logits_of_one_reading(changes, [7, 1, 4, 8])
    model, ids = build(changes).train(), random_ids(17, 2, 8)
    state = model.memory.new_state(2, model.unembedding)
    with model.memory.carried(state):
        model.loss(ids, ids.roll(-1, 1)).backward()
    width = SIZES["dim"] * (3 if changes["memory"] is SEGMENTS else 1)
    assert state.memory.shape[-1] == width
    assert bool(state.memory.any())
