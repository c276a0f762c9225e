"""Gated DeltaNet: its formula, chunks against steps, what it keeps of the past, and another implementation."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.chunks import CHUNK
from lightning_gpt.models.attention.delta_net import DeltaState, GatedDeltaNet, Read, by_steps
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.positions.scheme import NoPositions, position_schemes
from lightning_gpt.models.record import record
from tests.models import slopes
from tests.models.helpers import property_test, random_ids, randomise
from tests.models.layers import BACKENDS, DIM, N_HEAD, State, normal, of_documents
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build
from tests.reference import delta_net

SAME = {"rtol": 1e-10, "atol": 1e-10}
WIDTHS: list[dict[str, int]] = [{}, {"head_dim": 3, "value_dim": 5}, {"conv_width": 1}, {"conv_width": 6}]


def make(widths: dict[str, int] | None = None, **context: Any) -> GatedDeltaNet:
    """One layer, every weight random, in double precision."""
    shared = {"dim": DIM, "n_head": N_HEAD, "bias": True, "backend": "sdpa", "positions": NoPositions()}
    layer = attentions.make({"kind": "delta_net", **(widths or {})}, **{**shared, "qk_norm": "none", **context})
    assert isinstance(layer, GatedDeltaNet)
    return randomise(layer).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_the_layer_and_its_gradient_equal_the_formula(
    widths: dict[str, int], bias: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "STEP", 1e-6)  # the norms of short vectors are steep
    layer = make(widths, bias=bias, backend=backend)

    def reference(x: Array, state: State) -> Array:
        return delta_net.layer(x, state, N_HEAD, layer.head_dim, layer.value_dim)

    assert_equals_reference(layer, reference, normal(2, 13, DIM))


@pytest.mark.parametrize("backend", BACKENDS)
def test_over_many_chunks_it_equals_the_formula(backend: str) -> None:
    layer = make(backend=backend)
    x = normal(1, 2 * CHUNK + 5, DIM)
    state = {name: parameter.numpy(force=True) for name, parameter in layer.named_parameters()}
    expected = delta_net.layer(x[0].numpy(force=True), state, N_HEAD, layer.head_dim, layer.value_dim)
    np.testing.assert_allclose(layer(x)[0].numpy(force=True), expected, rtol=1e-9, atol=1e-10)


@property_test
@given(
    rows=st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=4), min_size=1, max_size=2),
    apart=st.booleans(),
    decay=st.sampled_from([-8.0, 0.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_by_chunks_it_is_what_it_is_by_steps(rows: list[list[int]], apart: bool, decay: float, seed: int) -> None:
    """In value, gradient and state, whether the memory hardly decays or is gone after a token."""
    time = max(map(sum, rows))
    filled = [[*row, time - sum(row)] for row in rows]
    documents = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in filled])
    made = []
    for backend in BACKENDS:
        layer, state = make(backend=backend), DeltaState()
        with torch.no_grad():
            layer.a_log += decay
        x = normal(len(rows), time, DIM, seed=seed).requires_grad_()
        layer(x, Context(state=state))
        y = layer(x, of_documents(documents) if apart else Context())
        assert state.memory is not None
        gradients = torch.autograd.grad((y * normal(*y.shape, seed=seed + 1)).sum(), [x, *layer.parameters()])
        made.append([y, state.memory, *gradients])
    torch.testing.assert_close(made[0], made[1], **SAME)


@property_test
@given(
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 200), min_size=2, max_size=3),
    backend=st.sampled_from(BACKENDS),
)
def test_rows_of_unequal_length_go_on_as_if_alone(cuts: list[int], lengths: list[int], backend: str) -> None:
    """Whatever fills a row at its end is no part of its past, in the memory or in the convolutions."""
    layer, state = make(backend=backend), DeltaState()
    x, more = normal(len(lengths), max(lengths), DIM), normal(len(lengths), sum(cuts), DIM, seed=2)
    with torch.no_grad():
        layer(x, Context(state=state, lengths=torch.tensor(lengths)))
        together = torch.cat([layer(piece, Context(state=state)) for piece in more.split(cuts, dim=1)], dim=1)
        for row, length in enumerate(lengths):
            alone = layer(torch.cat([x[row, None, :length], more[row, None]], dim=1))
            torch.testing.assert_close(together[row], alone[0, length:], **SAME)


def test_the_state_is_of_one_size_and_nothing_can_be_taken_back() -> None:
    model = build({"attention": "delta_net", "position": "none"})
    sizes = set()
    for time in (1, 2, 70, 200):
        cache = model.new_cache(time)
        with torch.no_grad():
            model.hidden(random_ids(17, 2, time), cache=cache)
        state = cache.layers[0]
        assert isinstance(state, DeltaState)
        assert state.memory is not None
        assert state.inputs is not None
        sizes.add((state.memory.shape, state.inputs.shape))
        assert state.inputs.untyped_storage().nbytes() == state.inputs.nbytes
    assert sizes == {((2, 4, 4, 4), (2, 3, 3 * 16))}
    assert not cache.can_truncate
    with pytest.raises(CallError, match="tokens cannot be removed"):
        cache.truncate(1)


def test_a_memory_that_cannot_decay_finds_the_value_of_a_key_and_one_that_does_forgets_it() -> None:
    """What the rule is for: writing at a key replaces what was there."""
    keys = torch.eye(3, dtype=torch.float64)[[0, 1, 0]][None, None]
    values = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)[None, None]
    zero, one = torch.zeros(1, 1, 3, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    memory = torch.zeros(1, 1, 3, 1, dtype=torch.float64)
    _, kept = by_steps(Read(keys, keys, values, zero, one), None, memory)
    assert kept.flatten().tolist() == [3.0, 2.0, 0.0]
    _, faded = by_steps(Read(keys, keys, values, zero - 1, one), None, memory)
    assert faded.flatten().tolist() == pytest.approx([3.0, 2 / np.e, 0.0])


def test_tokens_alone_tell_order_without_positions() -> None:
    model, ids = build({"attention": "delta_net", "position": "none"}), torch.tensor([[3, 1, 4, 5], [1, 3, 4, 5]])
    logits = model(ids)
    assert not torch.allclose(logits[0, -1], logits[1, -1])


def test_rotary_positions_do_not_act_in_it() -> None:
    x, rotary = normal(1, 9, DIM), position_schemes.make("rotary")
    assert torch.equal(make(positions=rotary)(x, Context(scheme=rotary)), make()(x))


def test_the_trace_shows_its_steps_and_no_pattern() -> None:
    layer, x = make({"head_dim": 3, "value_dim": 5}), normal(2, 9, DIM)
    with record(layer) as trace:
        layer(x)
    assert {name: tuple(tensor.shape) for name, tensor in trace.items()} == {
        "q": (2, N_HEAD, 9, 3),
        "k": (2, N_HEAD, 9, 3),
        "v": (2, N_HEAD, 9, 5),
        "log_alpha": (2, 9, N_HEAD),
        "beta": (2, 9, N_HEAD),
        "head_output": (2, N_HEAD, 9, 5),
        "output": (2, 9, DIM),
    }
    torch.testing.assert_close(trace["k"].norm(dim=-1), torch.ones(2, N_HEAD, 9, dtype=torch.float64))
    assert (trace["log_alpha"] < 0).all()


def test_weights_start_within_the_ranges_of_mamba_2() -> None:
    torch.manual_seed(0)
    block = GPT(GPTConfig(**{**SIZES, "n_head": 128, "dim": 256, "attention": "delta_net"})).blocks[0].attention
    step = torch.nn.functional.softplus(block.dt_bias)
    assert 0.0009 < step.min() < 0.003
    assert 0.03 < step.max() < 0.101
    assert 1 <= block.a_log.exp().min() < 2
    assert 15 < block.a_log.exp().max() <= 16
    assert 0.45 < block.conv.abs().max() <= 0.5


def test_matrices_are_declared_and_flops_counted() -> None:
    layer = make({"head_dim": 3, "value_dim": 5}, bias=False)
    weights = sum(matrix.weight.numel() for matrix in all_matrices(layer))
    assert layer.flops(torch.arange(10)) == 2 * weights + 6 * N_HEAD * 3 * 5
    hidden = {matrix.weight.shape[0] for matrix in all_matrices(layer) if matrix.is_hidden}
    assert hidden == {N_HEAD * (3 + 3 + 5), N_HEAD * 5, DIM}  # all but the convolutions and what makes the rates


def test_in_bf16_the_memory_is_kept_in_fp32() -> None:
    model, ids = build({"attention": "delta_net", "position": "none"}).float(), random_ids(17, 1, 150)
    cache = model.new_cache(150)
    with torch.no_grad(), torch.autocast(torch.get_default_device().type, torch.bfloat16):
        model.hidden(ids, cache=cache)
    assert cache.layers[0].memory.dtype == torch.float32
    low = model.bfloat16()
    low.loss(ids, ids).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "delta_net", "position": "alibi"}, "delta_net has no scores for AlibiPositions to add to"),
        ({"attention": "delta_net", "position": "t5"}, "use position none, or another attention"),
        ({"attention": "delta_net", "qk_norm": "rms"}, "use qk_norm none"),
        ({"attention": {"kind": "delta_net", "conv_width": 0}}, "attention conv_width is 0; it must be a"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, **changes}))
    assert message in str(refused.value)


def test_it_is_the_layer_of_transformers_qwen3_next() -> None:
    theirs = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    n_head, keys, values = 3, 4, 6
    config = pytest.importorskip("transformers").Qwen3NextConfig(
        hidden_size=24, linear_num_value_heads=n_head, linear_num_key_heads=n_head, linear_key_head_dim=keys,
        linear_value_head_dim=values, linear_conv_kernel_dim=4, rms_norm_eps=1e-6 / keys, num_hidden_layers=1,
        layer_types=["linear_attention"], vocab_size=16, intermediate_size=8,
    )  # fmt: skip  # they divide q by √width, so a norm of what it reads needs an eps as much smaller
    torch.manual_seed(0)
    other = theirs.Qwen3NextGatedDeltaNet(config, 0).eval()
    shared = {"dim": 24, "n_head": n_head, "bias": False, "positions": NoPositions(), "backend": "sdpa"}
    ours = attentions.make({"kind": "delta_net", "head_dim": keys, "value_dim": values}, **shared, qk_norm="none")
    weights = {name: torch.randn_like(weight) * 0.3 for name, weight in other.state_dict().items()}
    other.load_state_dict(weights)
    by_head = weights["in_proj_qkvz.weight"].unflatten(0, (n_head, -1)).split([keys, keys, values, values], dim=1)
    q, k, v, gate = (part.flatten(0, 1) for part in by_head)
    beta, alpha = weights["in_proj_ba.weight"].unflatten(0, (n_head, 2)).unbind(dim=1)
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat([q, k, v]),
            "rates.weight": torch.cat([alpha, beta]),
            "gate.weight": gate,
            "conv": weights["conv1d.weight"][:, 0],
            "a_log": weights["A_log"],
            "dt_bias": weights["dt_bias"],
            "head_norm.weight": weights["norm.weight"],
            "w_o.weight": weights["out_proj.weight"],
        }
    )
    x = normal(2, 150, 24).float()
    with torch.no_grad():
        np.testing.assert_allclose(ours(x).numpy(force=True), other(x).numpy(force=True), rtol=1e-3, atol=1e-4)
