"""Every residual rule against its formula, in value and gradient, and how each starts."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.ffn.dense import FeedForward, ffns
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.norms import LayerNorm
from lightning_gpt.models.registry import Given
from tests.models.helpers import randomise
from tests.models.lone_blocks import State, attention, layer_norm
from tests.models.slopes import Array, assert_equals_reference
from tests.reference import formulas, parts

N_LAYER, LAYER = 3, 1


def block(rule: Given, ffn: Given = "gelu") -> Block:
    return blocks.make(
        rule,
        attention=attention(),
        ffn=ffns.make_if_chosen(ffn, dim=6, bias=True),
        norm=partial(LayerNorm, 6),
        dim=6,
        dropout=0.0,
        n_layer=N_LAYER,
        layer=LAYER,
    )


def by_rule(rule: str, n_layer: int, h: Array, state: State, name: str, branch: parts.Branch) -> Array:
    """What one half of the block makes of the stream; ``name`` is ``attention`` or ``ffn``."""
    if rule == "rezero":
        return parts.scaled(h, branch, lambda h: h, float(state[f"{name}_scale"]))
    norm = layer_norm(state, f"{name}_norm")
    if rule == "layerscale":
        return parts.scaled(h, branch, norm, state[f"{name}_scale"])
    if rule == "sandwich":
        return parts.sandwich(h, branch, norm, layer_norm(state, f"{name}_out_norm"))
    if rule == "deepnorm":
        return parts.deepnorm(h, branch, norm, n_layer)
    if rule == "scaled_norms":  # a block made alone is the second layer; a model of one layer has the first
        return parts.pre(h, branch, lambda h: norm(h) / math.sqrt(1 if n_layer == 1 else LAYER + 1))
    if rule == "multiplied":
        return parts.scaled(h, branch, norm, 0.22)
    if rule == "depth_scaled":
        return parts.scaled(h, branch, norm, 2 / n_layer)
    if rule == "normed_branches":
        return parts.normed_branch(h, branch, norm)
    rules: dict[str, Callable[..., Array]] = {"pre": parts.pre, "post": parts.post, "none": parts.no_residual}
    return rules[rule](h, branch, norm)


def reference(rule: str, n_layer: int, h: Array, state: State) -> Array:
    def mix(x: Array) -> Array:
        return formulas.multi_head_attention(x, formulas.below(state, "attention"), 2)

    def feed(x: Array) -> Array:
        return formulas.feed_forward(x, formulas.below(state, "ffn"))

    if rule == "parallel":
        return parts.pre(h, lambda x: mix(x) + feed(x), layer_norm(state, "attention_norm"))
    if rule == "parallel with two norms":
        first, second = layer_norm(state, "attention_norm"), layer_norm(state, "ffn_norm")
        return h + mix(first(h)) + feed(second(h))
    h = by_rule(rule, n_layer, h, state, "attention", mix)
    return by_rule(rule, n_layer, h, state, "ffn", feed)


FORMULAS = [
    *("pre", "post", "none", "deepnorm", "sandwich", "normed_branches", "layerscale", "rezero", "parallel"),
    *("scaled_norms", "depth_scaled", "multiplied"),
]
TWO_NORMS = "parallel with two norms"
CHOICES: dict[str, Given] = {TWO_NORMS: {"kind": "parallel", "n_norm": 2}}


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("rule", [*FORMULAS, TWO_NORMS])
def test_a_block_and_its_gradient_equal_the_formula_of_its_rule(rule: str, offset: float) -> None:
    made = randomise(block(CHOICES.get(rule, rule))).double()
    x = (
        torch.randn(2, 4, 6, generator=torch.Generator(torch.get_default_device()).manual_seed(1), dtype=torch.float64)
        + offset
    )
    assert_equals_reference(made, partial(reference, rule, N_LAYER), x)


@pytest.mark.parametrize("rule", FORMULAS)
def test_a_block_of_attention_alone_and_its_gradient_equal_the_first_half_of_its_rule(rule: str) -> None:
    made = randomise(block(rule, ffn=None)).double()
    x = torch.randn(2, 4, 6, generator=torch.Generator(torch.get_default_device()).manual_seed(1), dtype=torch.float64)

    def half(h: Array, state: State) -> Array:
        def mix(x: Array) -> Array:
            return formulas.multi_head_attention(x, formulas.below(state, "attention"), 2)

        return by_rule("pre" if rule == "parallel" else rule, N_LAYER, h, state, "attention", mix)

    assert not any(name.startswith("ffn") for name, _ in made.named_parameters())
    assert_equals_reference(made, half, x)


@pytest.mark.parametrize("n_layer", [1, 2, 8, 100])
def test_alpha_of_deepnorm_is_the_fourth_root_of_twice_the_depth(n_layer: int) -> None:
    made = blocks.make(
        "deepnorm",
        attention=attention(),
        ffn=FeedForward(6, bias=True),
        norm=partial(LayerNorm, 6),
        dropout=0.0,
        n_layer=n_layer,
    )
    assert made.stream_factor**4 == pytest.approx(2 * n_layer)


@pytest.mark.parametrize("kind", ["full", {"kind": "grouped", "n_kv_head": 2}, "multi_query", "differential"])
@pytest.mark.parametrize("n_layer", [1, 6])
def test_deepnorm_starts_with_the_variances_of_the_paper(n_layer: int, kind: Given) -> None:
    """Xavier's ``g² · 2 / (fan_in + fan_out)``, g = β for values, the output and the FFN, 1 for queries and keys."""
    torch.manual_seed(0)
    dim, n_head = 128, 4
    sizes: dict[str, Any] = {"block_size": 4, "vocab_size": 5, "dim": dim, "n_head": n_head, "n_layer": n_layer}
    model = GPT(GPTConfig(**sizes, residual="deepnorm", attention=kind))
    beta = (8 * n_layer) ** -0.25
    made = model.blocks[0]
    n_kv = made.attention.n_kv_head * (dim // n_head)
    query, key, value = made.attention.qkv.weight.split([dim, n_kv, n_kv])
    expected = {
        "query": (query, 1.0),
        "key": (key, 1.0),
        "value": (value, beta),
        "output": (made.attention.w_o.weight, beta),
        "up": (made.ffn.up.weight, beta),
        "down": (made.ffn.down.weight, beta),
    }
    for name, (weight, gain) in expected.items():
        standard = gain * math.sqrt(2 / sum(weight.shape))
        assert float(weight.std()) == pytest.approx(standard, rel=0.05), name
    assert all(float(bias.abs().sum()) == 0 for bias in (made.attention.qkv.bias, made.ffn.up.bias))


@pytest.mark.parametrize("ffn", ["swiglu", {"kind": "moe", "n_expert": 4, "expert": "swiglu"}], ids=str)
def test_deepnorm_starts_each_matrix_of_a_gated_network_by_itself(ffn: Given) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"block_size": 4, "vocab_size": 5, "dim": 192, "n_head": 4, "n_layer": 4}
    model = GPT(GPTConfig(**sizes, residual="deepnorm", ffn=ffn))
    hidden = [matrix for matrix in all_matrices(model.blocks[0].ffn) if matrix.is_hidden]
    pieces = [piece for matrix in hidden for _, piece in matrix.each_piece()]
    assert len(pieces) in (3, 12)
    for piece in pieces:
        assert float(piece.std()) == pytest.approx((8 * 4) ** -0.25 * math.sqrt(2 / sum(piece.shape)), rel=0.05)


@pytest.mark.parametrize("rule", ["pre", "sandwich", "parallel"])
def test_what_is_added_to_the_stream_starts_smaller_the_deeper_the_model(rule: str) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_head=2, dim=64, block_size=4, vocab_size=5, residual=rule))
    for made in model.blocks:
        for projection in (made.attention.w_o, made.ffn.down):
            assert float(projection.weight.std()) == pytest.approx(0.02 / 4, rel=0.05)
        assert float(made.ffn.up.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_rezero_starts_as_the_identity_and_both_numbers_have_a_gradient() -> None:
    made = block("rezero")
    x = torch.randn(1, 4, 6, generator=torch.Generator(torch.get_default_device()).manual_seed(1))
    assert torch.equal(made(x), x)
    made(x).square().sum().backward()
    for scale in (made.attention_scale, made.ffn_scale):
        assert isinstance(scale, nn.Parameter)
        assert scale.grad is not None
        assert float(scale.grad) != 0


@pytest.mark.parametrize(("choice", "start"), [("layerscale", 0.1), ({"kind": "layerscale", "initial": 1e-4}, 1e-4)])
def test_layerscale_starts_where_it_is_told(choice: Given, start: float) -> None:
    made = block(choice)
    for scale in (made.attention_scale, made.ffn_scale):
        assert isinstance(scale, Tensor)
        torch.testing.assert_close(scale, torch.full((6,), start))


@pytest.mark.parametrize("rule", blocks.names)
def test_the_model_norms_once_what_comes_out_of_its_last_block(rule: str) -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, dim=6, block_size=4, vocab_size=5, residual=rule))
    assert isinstance(model.final_norm, nn.Identity) == (rule in ("post", "deepnorm", "spherical"))


@pytest.mark.parametrize("rule", FORMULAS)
def test_the_trace_has_the_stream_after_each_half(rule: str) -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, dim=6, block_size=4, vocab_size=5, residual=rule)).double()
    randomise(model)
    ids = torch.tensor([[1, 2, 3]])
    with model.record() as trace:
        model(ids)
    state = {name: parameter.numpy(force=True) for name, parameter in model.blocks[0].named_parameters()}
    stream = trace["embedding"][0].numpy(force=True)
    expected = reference(rule, 1, stream, state)
    torch.testing.assert_close(trace["blocks.0.after_ffn"][0].detach(), torch.as_tensor(expected))
    assert {"blocks.0.attention_norm", "blocks.0.ffn_norm", "blocks.0.after_attention"} <= set(trace)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("pre", 0.02 / math.sqrt(16)),
        ("scaled_norms", 0.02),
        ({"kind": "scaled_norms", "scaled_start": True}, 0.02 / math.sqrt(16)),
        ("depth_scaled", 0.02 / math.sqrt(4)),
        ({"kind": "depth_scaled", "base": 4}, 0.02 / math.sqrt(8)),
    ],
    ids=str,
)
def test_output_projections_start_as_the_rule_says_in_8_layers(rule: Given, expected: float) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_head=2, dim=64, block_size=4, vocab_size=5, residual=rule))
    for block_ in (model.blocks[0], model.blocks[7]):
        for weight in (block_.attention.w_o.weight, block_.ffn.down.weight):
            assert float(weight.std()) == pytest.approx(expected, rel=0.05)


def test_factors_of_depth_are_those_of_each_layer_and_of_the_model() -> None:
    sizes: dict[str, Any] = {"n_head": 2, "dim": 8, "block_size": 4, "vocab_size": 5}
    scaled = GPT(GPTConfig(n_layer=4, **sizes, residual="scaled_norms"))
    assert [block_.norm_factor**-2 for block_ in scaled.blocks] == pytest.approx([1, 2, 3, 4])
    for n_layer, base, factor in ((2, 2, 1.0), (8, 2, 0.25), (8, 4, 0.5)):
        model = GPT(GPTConfig(n_layer=n_layer, **sizes, residual={"kind": "depth_scaled", "base": base}))
        assert {block_.branch_factor for block_ in model.blocks} == {factor}
