"""Every kind of attention against its formula; masks against their definitions; fast paths against the plain one."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.chunks import CHUNK
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.decoding.sampling import Decoder
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.positions.scheme import NoPositions, position_schemes
from lightning_gpt.models.record import record
from lightning_gpt.models.registry import Given
from tests.models.helpers import property_test, random_ids, randomise
from tests.models.layers import BACKENDS, CLOSE, DIM, HEADS, LAYER, N_HEAD, State, make, normal, of_documents
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build
from tests.reference import attention_kinds as plain
from tests.reference import parts

# --- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [None, 8])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_kind_and_its_gradient_equal_the_formula(name: str, backend: str, head_dim: int | None) -> None:
    choice, head = HEADS[name]
    options = {"kind": choice} if isinstance(choice, str) else choice
    layer = make({**options, "head_dim": head_dim}, backend=backend)
    assert layer.head_dim == head_dim or head_dim is None

    def reference(x: Array, state: State) -> Array:
        return plain.layer(x, state, N_HEAD, head(state), n_kv_head=layer.n_kv_head)

    assert_equals_reference(layer, reference, normal(2, 13, DIM))


def test_every_registered_kind_has_a_formula() -> None:
    # without fused queries, keys and values alone: test_latent.py, test_delta_net.py, test_gated.py; test_spherical.py
    own_layers = {"latent", "delta_net", "gated", "spherical"}
    heads = {choice if isinstance(choice, str) else choice["kind"] for choice, _ in HEADS.values()}
    assert heads | own_layers == set(attentions.names)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("grouped", "multi_query", "joint_norm")])
def test_a_kind_with_groups_of_heads_and_normed_queries_equals_the_formula(name: str) -> None:
    choice, head = HEADS[name]
    options = {"kind": choice} if isinstance(choice, str) else choice
    layer = make({**options, "n_kv_head": 2}, qk_norm="rms")

    def norm(state: State, which: str) -> plain.Turn:
        def halves(x: Array) -> Array:
            cut = np.split(x, 2, axis=1) if name == "differential" else [x]
            return np.concatenate([parts.rms_norm(part, state[f"{which}.weight"]) for part in cut], axis=1)

        return halves

    def reference(x: Array, state: State) -> Array:
        norms = {"norm_q": norm(state, "q_norm"), "norm_k": norm(state, "k_norm")}
        return plain.layer(x, state, N_HEAD, head(state), n_kv_head=2, **norms)

    assert_equals_reference(layer, reference, normal(1, 11, DIM))


@pytest.mark.parametrize("layer_number", [0, 5])
def test_lambda_of_differential_attention_grows_with_depth_as_in_the_paper(layer_number: int) -> None:
    layer = make("differential", layer=layer_number)
    state = {name: parameter.numpy(force=True) for name, parameter in layer.named_parameters()}
    assert float(layer.factor) == pytest.approx(plain.differential_factor(state, layer_number)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["linear", "differential"])
def test_rotary_positions_in_kinds_that_turn_in_their_own_way(name: str, backend: str) -> None:
    """Differential attention turns each half; linear attention turns φ, in the numerator alone."""
    layer, scheme = make(name, "rotary", backend=backend), RotaryPositions()
    scheme.frequencies = lambda width, device: 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)

    def halves(x: Array) -> Array:
        return np.concatenate([parts.rotated(half) for half in np.split(x, 2, axis=1)], axis=1)

    def reference(x: Array, state: State) -> Array:
        if name == "linear":
            return plain.layer(x, state, N_HEAD, plain.linear_head(parts.rotated))
        return plain.layer(x, state, N_HEAD, plain.differential_head(state, LAYER), turn=halves)

    assert_equals_reference(layer, reference, normal(1, 9, DIM), lambda x: layer(x, Context(scheme=scheme)))


# --- masks -----------------------------------------------------------------------------------------------------

sees = st.one_of(
    st.builds(
        lambda w: ({"kind": "window", "window": w}, plain.sees_window(w)),
        st.integers(1, 12),
    ),
    st.builds(
        lambda w, n: ({"kind": "global_window", "window": w, "n_global": n}, plain.sees_global_window(w, n)),
        st.integers(1, 9),
        st.integers(1, 6),
    ),
    st.integers(1, 9).flatmap(
        lambda stride: st.builds(
            lambda c: ({"kind": "strided", "stride": stride, "n_summary": c}, plain.sees_fixed(stride, c)),
            st.integers(1, stride),
        )
    ),
)
lengths = st.lists(st.integers(1, 15), min_size=1, max_size=5)
"""Lengths of the documents of a row, or of one."""


@property_test
@given(kind=sees, lengths=lengths, apart=st.booleans())
def test_the_mask_is_the_definition(kind: tuple[Given, plain.Sees], lengths: list[int], apart: bool) -> None:
    choice, definition = kind
    layer, time = make(choice), sum(lengths)
    row = [number for number, length in enumerate(lengths) for _ in range(length)]
    with record(layer, ["mask", "pattern"]) as trace:
        layer(normal(1, time, DIM), of_documents(torch.tensor([row])) if apart else Context())
    expected = plain.mask(time, definition, row if apart else None)
    np.testing.assert_array_equal(trace["mask"].numpy(force=True).reshape(time, time), expected)
    pattern = trace["pattern"].detach()
    assert pattern.shape == (1, N_HEAD, time, time)
    assert torch.equal(pattern[0, 0] > 0, torch.as_tensor(expected))


@property_test
@given(
    kind=sees,
    rows=st.lists(lengths, min_size=1, max_size=3),
    apart=st.booleans(),
    position=st.sampled_from(["none", "alibi", "t5", "rotary"]),
    seed=st.integers(0, 1000),
)
def test_by_blocks_a_local_kind_is_what_it_is_by_the_formula(
    kind: tuple[Given, plain.Sees], rows: list[list[int]], apart: bool, position: str, seed: int
) -> None:
    """In value and gradient, whatever the length, the documents, and what is added to the scores."""
    time = max(map(sum, rows))
    filled = [[*row, time - sum(row)] for row in rows]
    documents = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in filled])
    scheme = randomise(position_schemes.make(position, dim=DIM, n_head=N_HEAD, block_size=8)).double()
    made = []
    for backend in BACKENDS:
        layer = make(kind[0], position, backend=backend)
        x = normal(len(rows), time, DIM, seed=seed).requires_grad_()
        y = layer(x, of_documents(documents, scheme) if apart else Context(scheme=scheme))
        leaves = [x, *layer.parameters(), *scheme.parameters()]
        made.append([y, *torch.autograd.grad((y * normal(*y.shape, seed=seed + 1)).sum(), leaves)])
    torch.testing.assert_close(made[0], made[1], **CLOSE)


@pytest.mark.parametrize(
    "attention",
    [
        {"kind": "window", "window": 8},
        {"kind": "global_window", "window": 8, "n_global": 2},
        {"kind": "strided", "stride": 8},
        {"kind": "sink_window", "window": 8},
    ],
    ids=lambda attention: attention["kind"],
)
@pytest.mark.parametrize(
    ("apart", "cached"), [(False, False), (True, False), (False, True)], ids=["rows", "documents", "prompt"]
)
def test_no_matrix_of_all_tokens_is_made(
    attention: Given, apart: bool, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's local layers go by blocks, also where it keeps documents apart or reads a prompt into a cache."""
    model = GPT(GPTConfig(**{**SIZES, "block_size": 64}, attention=attention))
    ids, documents = random_ids(17, 1, 64), torch.tensor([[0] * 20 + [1] * 44]) if apart else None
    masks = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        masks.append(options["attn_mask"].shape)
        return kernel(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    if cached:
        Decoder(model, ids, None, 1)
    else:
        model(ids, documents)
    assert len(masks) == SIZES["n_layer"]
    assert all(shape[-1] < 64 and shape[-2] <= 8 for shape in masks), masks


# --- linear attention by chunks --------------------------------------------------------------------------------


@property_test
@given(
    rows=st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=4), min_size=1, max_size=2),
    apart=st.booleans(),
    position=st.sampled_from(["none", "rotary"]),
    seed=st.integers(0, 1000),
)
def test_by_chunks_linear_attention_is_what_it_is_by_the_matrix(
    rows: list[list[int]], apart: bool, position: str, seed: int
) -> None:
    time = max(map(sum, rows))
    filled = [[*row, time - sum(row)] for row in rows]
    documents = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in filled])
    scheme = position_schemes.make(position, dim=DIM, n_head=N_HEAD, block_size=8).double()
    made = []
    for backend in BACKENDS:
        layer = make("linear", position, backend=backend)
        x = normal(len(rows), time, DIM, seed=seed).requires_grad_()
        y = layer(x, of_documents(documents, scheme) if apart else Context(scheme=scheme))
        made.append([y, *torch.autograd.grad((y * normal(*y.shape, seed=seed + 1)).sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(made[0], made[1], **CLOSE)


def test_linear_attention_over_many_chunks_equals_the_recurrence() -> None:
    layer, time = make("linear"), 3 * CHUNK + 5
    x = normal(1, time, DIM)
    state = {name: parameter.numpy(force=True) for name, parameter in layer.named_parameters()}
    expected = plain.layer(x[0].numpy(force=True), state, N_HEAD, plain.linear_head())
    np.testing.assert_allclose(layer(x)[0].numpy(force=True), expected, **CLOSE)


def test_features_that_vanish_give_zeros_and_no_nan() -> None:
    layer = make("linear").float()
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.bias.fill_(-500.0)
    x = torch.ones(1, 100, DIM, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


# --- what the trace shows --------------------------------------------------------------------------------------


def test_rows_sum_to_what_each_kind_says() -> None:
    x = normal(2, 9, DIM)
    for name, (choice, _) in HEADS.items():
        layer = make(choice)
        with record(layer) as trace:
            layer(x)
        sums = trace["pattern"].sum(dim=-1).detach()
        if name == "differential":
            expected = (1 - layer.factor).expand_as(sums).detach()
            assert trace["second_scores"].shape == trace["scores"].shape == (2, N_HEAD, 9, 9)
        elif name in ("sink", "sink_window"):
            seen = trace["scores"].masked_fill(~trace["mask"], -torch.inf).logsumexp(dim=-1)
            expected = (seen - layer.null_logit[:, None]).sigmoid().detach()
        elif name == "shaped":
            total = layer.identity_share + layer.softmax_share - layer.uniform_share
            expected = total[:, None].expand_as(sums).detach()
        else:
            expected = torch.ones_like(sums)
        torch.testing.assert_close(sums, expected)
        assert trace["pattern"].shape == (2, N_HEAD, 9, 9)
        values = trace["v"].repeat_interleave(N_HEAD // trace["v"].shape[1], dim=1)
        torch.testing.assert_close(trace["head_output"], trace["pattern"] @ values)


@pytest.mark.parametrize("name", HEADS)
def test_an_edit_of_the_pattern_is_what_is_used(name: str) -> None:
    layer = make(HEADS[name][0])
    with record(layer, ["head_output"], edits={"pattern": torch.zeros(1, N_HEAD, 5, 5, dtype=torch.float64)}) as trace:
        layer(normal(1, 5, DIM))
    assert (trace["head_output"] == 0).all()


# --- what cannot work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "linear", "position": "alibi"}, "attention linear has no scores for AlibiPositions to add to"),
        ({"attention": "linear", "position": "t5"}, "use position learned, sinusoidal, rotary or none"),
        (
            {"attention": "differential", "dim": 12},
            "halves its heads, and a head is 3 wide; use an even width",
        ),
        (
            {"attention": "differential", "dim": 24, "position": "rotary"},
            "rotary positions act on pairs of dimensions, so half a head's width must be even; it is 3",
        ),
        (
            {"attention": {"kind": "differential", "rotary_base": 100.0}, "dim": 24},
            "rotary positions act on pairs of dimensions, so half a head's width must be even; it is 3",
        ),
        (
            {"attention": {"kind": "differential", "head_dim": 24}, "position": {"kind": "rotary", "share": 0.25}},
            "share 0.25 of half a head's width 12 is 3 dimensions",
        ),
        (
            {"attention": {"kind": "window", "window": 0}},
            "attention window is 0; it must be a whole number from 1 to 16,777,216",
        ),
        ({"attention": {"kind": "window", "window": "wide"}}, "attention window is 'wide'; it must be a whole number"),
        (
            {"attention": {"kind": "global_window", "window": 4, "n_global": 0}},
            "attention n_global is 0; it must be a whole",
        ),
        (
            {"attention": {"kind": "strided", "stride": 4, "n_summary": 5}},
            "attention n_summary is 5; it must be at most stride, which is 4",
        ),
        ({"attention": {"kind": "sink", "n_kv_head": 3}}, "n_kv_head is 3; it must divide n_head, which is 4"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_when_the_model_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, **changes}))
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", ["window", "global_window", "strided"])
def test_a_kind_says_which_option_it_cannot_do_without(kind: str) -> None:
    with pytest.raises(CallError, match=f"attention '{kind}' needs the option"):
        GPTConfig(**{**SIZES, "attention": kind})


@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "t5"])
@pytest.mark.parametrize(
    "pattern",
    [
        [({"kind": "window", "window": window}, plain.sees_window(window)) for window in (3, 7)],
        [({"kind": "strided", "stride": stride}, plain.sees_fixed(stride, 1)) for stride in (3, 5)],
        [({"kind": "strided", "stride": 5, "n_summary": n}, plain.sees_fixed(5, n)) for n in (1, 2)],
        [({"kind": "global_window", "window": 5, "n_global": n}, plain.sees_global_window(5, n)) for n in (1, 3)],
        [
            ({"kind": "window", "window": 5}, plain.sees_window(5)),
            ({"kind": "global_window", "window": 5, "n_global": 1}, plain.sees_global_window(5, 1)),
        ],
    ],
    ids=["windows", "strides", "summaries", "global tokens", "kinds"],
)
def test_layers_that_see_by_other_options_do_not_share_a_mask(
    pattern: list[tuple[Given, plain.Sees]], position: str
) -> None:
    changes = {"attention": [choice for choice, _ in pattern], "position": position}
    model, ids = build(changes), random_ids(17, 1, 20)
    by_formula = build(changes, attention_backend="manual")
    documents = torch.tensor([[0] * 2 + [1] * 18])
    torch.testing.assert_close(model(ids), by_formula(ids), **CLOSE)
    torch.testing.assert_close(model(ids, documents), by_formula(ids, documents), **CLOSE)
    with model.record("blocks.*.attention.mask") as trace:
        model(ids)
    for mask, (_, definition) in zip(trace.layers("attention.mask"), pattern, strict=True):
        np.testing.assert_array_equal(mask.numpy(force=True), plain.mask(20, definition, None))


def test_no_positions_suits_every_kind() -> None:
    for choice, _ in HEADS.values():
        assert make(choice, positions=NoPositions())(normal(1, 3, DIM)).shape == (1, 3, DIM)


@pytest.mark.parametrize("time", [2, 3, 4])
def test_a_text_shorter_than_the_global_tokens_is_what_it_is_by_the_formula(time: int) -> None:
    kind, ids = {"kind": "global_window", "window": 1, "n_global": 3}, random_ids(17, 1, time)
    by_blocks, by_formula = (
        build({"attention": kind}, attention_backend=backend)(ids) for backend in ("sdpa", "manual")
    )
    torch.testing.assert_close(by_blocks, by_formula, rtol=1e-9, atol=1e-9)
