"""Parts that published models have: norms over all heads, biases here and there, bounds of scores and logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.record import record as layer_record
from lightning_gpt.models.registry import Given
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.suited import require_suited
from tests.models.helpers import randomise
from tests.models.layers import BACKENDS, DIM, N_HEAD, make, normal
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import build
from tests.reference import attention_kinds as plain
from tests.reference import formulas, parts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_a_layer_and_its_gradient_equal_the_formula(n_kv_head: int, backend: str) -> None:
    layer = make({"kind": "joint_norm", "n_kv_head": n_kv_head, "head_dim": 6}, qk_norm="rms", backend=backend)
    rows, kv_rows = N_HEAD * 6, n_kv_head * 6

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        q, k, v = np.split(formulas.linear(x, state["qkv.weight"], state["qkv.bias"]), [rows, rows + kv_rows], axis=1)
        q, k = parts.rms_norm(q, state["q_norm.weight"]), parts.rms_norm(k, state["k_norm.weight"])
        head = plain.softmax_head()
        made = []
        for h in range(N_HEAD):
            group = h * n_kv_head // N_HEAD
            of_q, of_k = slice(6 * h, 6 * h + 6), slice(6 * group, 6 * group + 6)
            made.append(head(q[:, of_q], k[:, of_k], v[:, of_k], h))
        return formulas.linear(np.concatenate(made, axis=1), state["w_o.weight"], state["w_o.bias"])

    assert_equals_reference(layer, reference, normal(2, 7, DIM))


def test_tensor_parallel_is_refused() -> None:
    model = GPT(GPTConfig(attention="joint_norm", qk_norm="rms", dim=16, vocab_size=32))
    with pytest.raises(CallError, match=r"attention joint_norm cannot be divided over parallel.tensor 2"):
        require_suited(model, Layout(tensor=2))


def test_biases_of_one_attention_are_where_its_options_say() -> None:
    for qkv_bias, output_bias in ((True, False), (False, True)):
        options = {"kind": "full", "qkv_bias": qkv_bias, "output_bias": output_bias}
        for of_model in (True, False):
            model = GPT(GPTConfig(n_layer=1, dim=16, vocab_size=32, bias=of_model, attention=options))
            attention, ffn = model.blocks[0].attention, model.blocks[0].ffn
            assert (attention.qkv.bias is not None, attention.w_o.bias is not None) == (qkv_bias, output_bias)
            assert (ffn.up.bias is not None) == of_model


def test_the_embedding_norm_comes_before_the_first_block_and_is_seen() -> None:
    model = GPT(GPTConfig(n_layer=1, dim=16, vocab_size=32, embedding_norm="layer")).double().eval()
    with torch.no_grad():
        model.embedding_norm.weight.normal_()
        model.embedding_norm.bias.normal_()
    ids = torch.arange(8)[None]
    with model.record(["token_embedding", "position_embedding", "embedding"]) as trace, torch.no_grad():
        model(ids)
    summed = (trace["token_embedding"] + trace["position_embedding"])[0].numpy(force=True)
    weight, bias = (parameter.numpy(force=True) for parameter in model.embedding_norm.parameters())
    expected = formulas.layer_norm(summed, weight, bias)
    np.testing.assert_allclose(trace["embedding"][0].numpy(force=True), expected, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [{"kind": "full"}, {"kind": "window", "window": 4}])
def test_bounded_scores_of_another_width_equal_the_formula(kind: dict[str, Any], backend: str) -> None:
    layer = make({**kind, "n_kv_head": 2, "score_width": 2.5, "softcap": 0.7}, backend=backend)
    sees = plain.sees_window(4) if "window" in kind else plain.sees_all_before

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        return plain.layer(x, state, N_HEAD, plain.capped_head(sees, 2.5, 0.7), n_kv_head=2)

    assert_equals_reference(layer, reference, normal(2, 9, DIM))


@pytest.mark.parametrize(
    "kind", ["full", "sink", {"kind": "window", "window": 4}, {"kind": "sink_window", "window": 4}]
)
def test_a_width_of_the_scores_acts_as_a_factor_of_the_queries(kind: Given) -> None:
    """The fused kernel is told of it in another place in each of these kinds."""
    options = {"kind": kind} if isinstance(kind, str) else dict(kind)
    wide, usual = make({**options, "score_width": 4.0 * DIM / N_HEAD}), make(options)
    usual.load_state_dict(wide.state_dict())
    with torch.no_grad():
        for parameter in (usual.qkv.weight, usual.qkv.bias):
            parameter[: usual.qkv.pieces["q"]] /= 2
    x = normal(2, 9, DIM)
    torch.testing.assert_close(wide(x), usual(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_model", ["none", "rotary"])
def test_a_layer_may_have_rotary_positions_of_its_own(of_model: str) -> None:
    own = {"kind": "full", "rotary_base": 30.0}
    models = [
        build({"attention": [own, "full"], "position": of_model}),
        build({"attention": "full", "position": {"kind": "rotary", "base": 30.0}}),
        build({"attention": "full", "position": of_model}),
    ]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    x, ids = normal(1, 12, 16), torch.arange(12)[None]
    contexts = [model.context(ids) for model in models]  # one for both layers, which then share what they compute
    for layer, same_as in ((0, models[1]), (1, models[2])):
        expected = same_as.layer(layer, x, contexts[models.index(same_as)])
        torch.testing.assert_close(models[0].layer(layer, x, contexts[0]), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(models[1](ids), models[2](ids))


def test_heads_of_differential_attention_are_normed_with_the_epsilon_that_was_chosen() -> None:
    layer = make({"kind": "differential", "head_gain": False, "head_eps": 0.3})
    with layer_record(layer) as trace:
        layer(normal(1, 6, DIM))
    assert [name for name, _ in layer.named_parameters() if "head_norm" in name] == []
    mixed = trace["head_output"].detach()
    normed = mixed / (mixed.square().mean(dim=-1, keepdim=True) + 0.3).sqrt() * (1 - layer.initial)
    expected = torch.nn.functional.linear(normed.transpose(1, 2).flatten(2), layer.w_o.weight, layer.w_o.bias)
    torch.testing.assert_close(trace["output"], expected)


@pytest.mark.parametrize("option", ["score_width", "softcap", "rotary_base"])
def test_attention_without_scores_refuses_what_acts_on_them(option: str) -> None:
    with pytest.raises(CallError, match=f"attention linear has no scores, and so no {option}: leave it out"):
        GPT(GPTConfig(dim=16, vocab_size=32, attention={"kind": "linear", option: 2.0}))


def test_embeddings_are_multiplied_on_their_way_in_but_not_in_the_head() -> None:
    options: dict[str, Any] = {"n_layer": 1, "dim": 16, "vocab_size": 32, "position": "none"}
    scaled, usual = (GPT(GPTConfig(**options, embedding_scale=scale)).double().eval() for scale in (3.0, 1.0))
    usual.load_state_dict(scaled.state_dict())
    ids = torch.arange(8)[None]
    with scaled.record("embedding") as trace:
        logits = scaled(ids)
    torch.testing.assert_close(trace["embedding"], 3 * usual.token_embedding(ids))
    with usual.record([], edits={"embedding": lambda x: 3 * x}):
        torch.testing.assert_close(usual(ids), logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("bias", "softcap", "divisor"),
    [(True, None, 1.0), (False, 1.5, 1.0), (True, 1.5, 1.0), (False, None, 3.0), (True, 1.5, 0.7)],
)
def test_logits_of_an_adjusted_head_are_the_formula_and_the_loss_is_theirs(
    bias: bool, softcap: float | None, divisor: float, tied: bool
) -> None:
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "dim": 8, "vocab_size": 90, "block_size": 48}
    adjusted: dict[str, Any] = {"head_bias": bias, "logit_softcap": softcap, "logit_divisor": divisor}
    model = randomise(GPT(GPTConfig(**sizes, tie_embeddings=tied, **adjusted))).double()
    ids = torch.randint(90, (2, 48), generator=torch.Generator(torch.get_default_device()).manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[0, :5] = -100
    hidden = model.hidden(ids)
    expected = (hidden @ model.unembedding.mT + (model.head.bias if bias else 0)) / divisor
    expected = expected if softcap is None else softcap * (expected / softcap).tanh()
    torch.testing.assert_close(model(ids), expected)
    torch.testing.assert_close(model.head.few(hidden[0, :3]), expected[0, :3])
    terms = {"label_smoothing": 0.1, "z_loss": 0.01}
    loss = model.loss(ids, targets, **terms)
    flat, labels = expected.flatten(0, 1), targets.flatten()
    of_logits = torch.nn.functional.cross_entropy(flat, labels, label_smoothing=0.1)
    of_logits = of_logits + 0.01 * flat.logsumexp(-1).square()[labels != -100].mean()
    torch.testing.assert_close(loss, of_logits, rtol=1e-10, atol=1e-10)
    parameters = dict(model.named_parameters())
    gradients = (torch.autograd.grad(each, list(parameters.values()), retain_graph=True) for each in (loss, of_logits))
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    nll = torch.nn.functional.cross_entropy(flat, labels, reduction="none").view_as(targets)
    torch.testing.assert_close(model.token_nll(ids, targets), nll, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", ["logit_softcap", "logit_divisor"])
def test_a_divided_vocabulary_refuses_such_a_head(option: str) -> None:
    model = GPT(GPTConfig(dim=16, vocab_size=32, **{option: 30.0}))
    with pytest.raises(
        CallError, match=r"parallel.tensor 2 divides the vocabulary, and an output head with head_bias, logit_softcap, "
    ):
        require_suited(model, Layout(tensor=2))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_bias_of_a_router_acts_on_its_scores_and_is_trained(score: str) -> None:
    options = {"kind": "moe", "n_expert": 4, "router": score, "router_bias": True, "hidden": 8}
    mixture = ffns.make(options, dim=6, bias=True).double()
    assert isinstance(mixture, MixtureOfExperts)
    router = mixture.router
    with torch.no_grad():
        router.weight.zero_()
        assert router.logit_bias is not None
        router.logit_bias.copy_(torch.tensor([0.5, -2.0, 1.5, 0.0]))
    routing = router(normal(1, 3, 6))
    scores = torch.tensor([1.5, 0.5], dtype=torch.float64)
    scores = scores.exp() if score == "softmax" else scores.sigmoid()
    assert routing.chosen.tolist() == [[[2, 0]] * 3]
    torch.testing.assert_close(routing.gates, (scores / scores.sum()).expand(1, 3, 2))
    mixture(normal(1, 3, 6)).square().sum().backward()
    assert router.logit_bias.grad is not None
    assert router.logit_bias.grad.abs().sum() > 0
