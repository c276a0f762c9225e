"""Latent attention: its formula, what it caches, and another implementation."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.latent import LatentAttention
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import KeyValues
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.positions.scheme import Positions, position_schemes
from lightning_gpt.models.record import record
from tests.models.helpers import random_ids, randomise
from tests.models.layers import BACKENDS, CLOSE, DIM, N_HEAD, State, normal
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build
from tests.reference import latent, parts

WIDTHS: list[dict[str, int]] = [
    {"kv_rank": 6},
    {"kv_rank": 5, "q_rank": 7, "head_dim": 6, "rope_dim": 2, "value_dim": 3},
    {"kv_rank": 3, "head_dim": 3, "rope_dim": 4, "value_dim": 11},
]


def precise_rotary() -> RotaryPositions:
    """Rotary positions with frequencies in double precision."""
    scheme = RotaryPositions()
    scheme.frequencies = lambda width, device: torch.tensor(  # type: ignore[method-assign]
        [10000.0 ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64
    )
    return scheme


def alibi_bias(time: int) -> Array:
    """Of four heads, whose slopes are ¼ and its powers."""
    return np.array([[[(j - i) / 4.0**h for j in range(time)] for i in range(time)] for h in range(1, N_HEAD + 1)])


def make(widths: dict[str, int], scheme: Positions, **context: Any) -> LatentAttention:
    """One layer, every weight random, in double precision."""
    given = {"dim": DIM, "n_head": N_HEAD, "bias": True, "dropout": 0.0, "backend": "sdpa", "qk_norm": "none"}
    layer = attentions.make({"kind": "latent", **widths}, **{**given, "positions": scheme, **context})
    assert isinstance(layer, LatentAttention)
    return randomise(layer).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", ["rotary", "none", "alibi"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_the_layer_and_its_gradient_equal_the_formula(
    widths: dict[str, int], position: str, bias: bool, backend: str
) -> None:
    scheme = precise_rotary() if position == "rotary" else position_schemes.make(position, n_head=N_HEAD)
    layer = make(widths, scheme, bias=bias, backend=backend)

    def reference(x: Array, state: State) -> Array:
        turn = parts.rotated if position == "rotary" else None
        added = alibi_bias(len(x)) if position == "alibi" else None
        return latent.layer(x, state, N_HEAD, layer.plain_dim, layer.value_dim, turn, added)

    assert_equals_reference(layer, reference, normal(2, 9, DIM), lambda x: layer(x, Context(scheme=scheme)))


@pytest.mark.parametrize("position", ["rotary", "t5", "none"])
def test_scoring_latents_is_the_formula_in_value_and_gradient(position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = randomise(position_schemes.make(position, n_head=N_HEAD)).double()
    x, found = normal(2, 11, DIM).requires_grad_(), []
    for by_latents in (False, True):
        monkeypatch.setattr(LatentAttention, "_scores_latents", lambda *_, chosen=by_latents: chosen)
        layer = make(WIDTHS[1], scheme)
        y = layer(x, Context(scheme=scheme))
        leaves = [x, *layer.parameters()]
        found.append([y, *torch.autograd.grad((y * normal(*y.shape, seed=2)).sum(), leaves)])
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_a_token_that_looks_back_scores_latents_unless_keys_are_recorded() -> None:
    model, ids = build({"attention": {"kind": "latent", "kv_rank": 6}, "position": "rotary"}), random_ids(17, 1, 12)
    names = [f"blocks.1.attention.{name}" for name in ("pattern", "head_output")]
    shown = []
    for more in ([], ["blocks.1.attention.k"]):
        cache = model.new_cache(12)
        with torch.no_grad():
            model.hidden(ids[:, :11], cache=cache)
            with model.record([*names, *more]) as trace:
                model.hidden(ids[:, 11:], cache=cache)
        assert ("blocks.1.attention.k" in trace) == bool(more)
        assert trace[names[0]].shape == (1, 4, 1, 12)
        assert trace[names[1]].shape == (1, 4, 1, 4)
        shown.append([trace[name] for name in names])
    torch.testing.assert_close(shown[0], shown[1], **CLOSE)


@pytest.mark.parametrize(("position", "width"), [("rotary", 6 + 2), ("learned", 6)])
def test_the_cache_holds_the_latent_and_the_rotated_key_of_each_token_and_no_more(position: str, width: int) -> None:
    model = build({"attention": {"kind": "latent", "kv_rank": 6}, "position": position})
    cache = model.new_cache(20)
    with torch.no_grad():
        model.hidden(random_ids(17, 3, 9), cache=cache)
    for state in cache.layers:
        assert isinstance(state, KeyValues)
        assert state.k is not None
        assert state.k.shape == (3, 1, 20, width)
        assert state.v.numel() == 0


def test_what_the_trace_shows_is_the_layers_formula() -> None:
    layer, x = make(WIDTHS[1], RotaryPositions()), normal(2, 9, DIM)
    with record(layer) as trace:
        layer(x, Context(scheme=RotaryPositions()))
    assert trace["latent"].shape == (2, 9, 5)
    assert trace["q"].shape == trace["k"].shape == (2, N_HEAD, 9, 6 + 2)
    assert trace["v"].shape == trace["head_output"].shape == (2, N_HEAD, 9, 3)
    torch.testing.assert_close(trace["pattern"].sum(-1), torch.ones(2, N_HEAD, 9, dtype=torch.float64))
    torch.testing.assert_close(trace["head_output"], trace["pattern"] @ trace["v"], **CLOSE)
    rotary = trace["k"][..., 6:]
    assert torch.equal(rotary, rotary[:, :1].expand_as(rotary))


def test_flops_are_two_per_weight_and_those_of_scores_and_mixed_values() -> None:
    layer = make(WIDTHS[1], RotaryPositions(), bias=False)
    weights = sum(matrix.weight.numel() for matrix in all_matrices(layer))
    assert all(matrix.is_hidden for matrix in all_matrices(layer))
    assert layer.flops(torch.arange(10)) == 2 * weights + 2 * N_HEAD * (8 + 3) * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "latent"}, "attention 'latent' needs the option 'kv_rank'"),
        ({"attention": {"kind": "latent", "kv_rank": 0}}, "attention kv_rank is 0; it must be a whole number"),
        ({"attention": {"kind": "latent", "kv_rank": 4, "q_rank": 0.5}}, "attention q_rank is 0.5"),
        (
            {"attention": {"kind": "latent", "kv_rank": 4, "rope_dim": 3}, "position": "rotary"},
            "act on pairs of dimensions, so rope_dim must be even; it is 3",
        ),
        ({"attention": {"kind": "latent", "kv_rank": 4}, "qk_norm": "rms"}, "use qk_norm none"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, **changes}))
    assert message in str(refused.value)


@pytest.mark.parametrize("q_rank", [None, 12])
def test_it_is_the_layer_of_transformers_deepseek_v2(q_rank: int | None) -> None:
    theirs = pytest.importorskip("transformers.models.deepseek_v2.modeling_deepseek_v2")
    config = pytest.importorskip("transformers").DeepseekV2Config(
        hidden_size=24, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=1, q_lora_rank=q_rank,
        kv_lora_rank=10, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=7, attention_bias=False,
        max_position_embeddings=64, attn_implementation="eager", intermediate_size=8, vocab_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    other, scheme = theirs.DeepseekV2Attention(config, 0).eval(), RotaryPositions()
    ours = attentions.make(
        {"kind": "latent", "kv_rank": 10, "q_rank": q_rank, "head_dim": 8, "rope_dim": 6, "value_dim": 7},
        dim=24, n_head=3, bias=False, dropout=0.0, backend="sdpa", qk_norm="none", positions=scheme,
    ).eval()  # fmt: skip
    halves = [0, 2, 4, 1, 3, 5]  # they rotate neighbours (2i, 2i + 1), this package the pairs (i, i + width/2)
    given = {name: drawn_like(weight) for name, weight in other.state_dict().items()}
    other.load_state_dict(given)
    q = given["q_proj.weight" if q_rank is None else "q_b_proj.weight"].unflatten(0, (3, 14))
    kv = given["kv_b_proj.weight"].unflatten(0, (3, 15))
    down = given["kv_a_proj_with_mqa.weight"]
    state = {
        "q_up.weight": torch.cat([q[:, :8], q[:, 8:][:, halves]], dim=1).flatten(0, 1),
        "kv_down.weight": torch.cat([down[:10], down[10:][halves]]),
        "kv_latent_norm.weight": given["kv_a_layernorm.weight"],
        "kv_up.weight": torch.cat([kv[:, :8].flatten(0, 1), kv[:, 8:].flatten(0, 1)]),
        "w_o.weight": given["o_proj.weight"],
    }
    if q_rank is not None:
        state |= {"q_down.weight": given["q_a_proj.weight"], "q_latent_norm.weight": given["q_a_layernorm.weight"]}
    ours.load_state_dict(state)
    x, time = normal(2, 9, 24).float(), 9
    rotation = theirs.DeepseekV2RotaryEmbedding(config)(x, torch.arange(time)[None])
    hidden = torch.full((time, time), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        expected = other(x, attention_mask=hidden, position_embeddings=rotation)[0]
        found = ours(x, Context(scheme=scheme))
    np.testing.assert_allclose(found.numpy(force=True), expected.numpy(force=True), rtol=1e-4, atol=1e-5)


def drawn_like(weight: torch.Tensor) -> torch.Tensor:
    """N(0, 0.3²)."""
    return torch.randn_like(weight) * 0.3
