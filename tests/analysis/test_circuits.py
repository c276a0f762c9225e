"""The matrices of a head are what the layer computes with, and its circuits what the head scores and writes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis.attribution import direct_logit_attribution
from lightning_gpt.analysis.circuits import Circuit, head_matrices, ov_circuit, qk_circuit
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.adapters import LoRA, adapt
from lightning_gpt.models.block import blocks
from tests.analysis.copying_model import VOCAB, copying_model
from tests.models.helpers import random_ids, randomise
from tests.models.variants import SIZES, build

IDS = random_ids(17, 2, 9)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def of(changes: dict[str, Any]) -> GPT:
    return build(changes).double().eval()


def one_head() -> SingleHeadModel:
    return randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=9, vocab_size=17)).double()).eval()


def adapted() -> GPT:
    model = of({"attention": "full"})
    adapt(model, LoRA(rank=2))
    return randomise(model).eval()


def traced(model: LanguageModel) -> dict[str, Tensor]:
    with torch.no_grad(), model.record() as trace:
        model(IDS)
    return dict(trace.items())


def with_heads(x: Tensor) -> Tensor:
    """The one-head model's intermediates have no head axis."""
    return x if x.ndim == 4 else x[:, None]


def product(n: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``n W + b`` for each head: ``(batch, n_head, time, width)``."""
    made = n[:, None] @ weight
    return made if bias is None else made + bias[:, None]


PLAIN: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"attention": {"kind": "grouped", "n_kv_head": 2}},
    {"attention": "multi_query"},
    {"attention": {"kind": "full", "head_dim": 6, "qkv_bias": True, "output_bias": False}},
    {"attention": {"kind": "window", "window": 5}},
    {"attention": "sink"},
    {"attention": "shaped"},
    {"attention": "linear"},
    {"attention": "differential"},
    {"residual": "post"},
]


@pytest.mark.parametrize("model", [*map(of, PLAIN), adapted(), one_head()], ids=lambda model: model.name)
def test_queries_keys_values_and_outputs_are_products_with_them(model: LanguageModel) -> None:
    trace = traced(model)
    for view in model.block_views():
        found, name = head_matrices(model, view.layer), view.mixer_name
        before = trace["embedding"] if view.layer == 0 else trace[f"blocks.{view.layer - 1}.after_ffn"]
        n = view.mixer_input(before)
        for letter in "qk":
            made = product(n, getattr(found, f"w_{letter}"), getattr(found, f"b_{letter}"))
            group = made.shape[1] // with_heads(trace[f"{name}.{letter}"]).shape[1]
            torch.testing.assert_close(made[:, ::group], with_heads(trace[f"{name}.{letter}"]), **CLOSE)
        v = product(n, found.w_v, found.b_v)
        group = v.shape[1] // with_heads(trace[f"{name}.v"]).shape[1]
        torch.testing.assert_close(v[:, ::group], with_heads(trace[f"{name}.v"]), **CLOSE)
        if not found.no_ov:
            written = (with_heads(trace[f"{name}.head_output"]) @ found.w_o).sum(dim=1)
            written = written if found.b_o is None else written + found.b_o
            torch.testing.assert_close(written, trace[f"{name}.output"], **CLOSE)


@pytest.mark.parametrize("q_rank", [None, 5])
@pytest.mark.parametrize("position", ["rotary", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_latents_are_gone_through_up_to_the_factor_of_their_norm(q_rank: int | None, position: str, bias: bool) -> None:
    options = {"kind": "latent", "kv_rank": 6, "q_rank": q_rank, "value_dim": 3}
    model = of({"attention": options, "position": position, "bias": bias})
    trace, found, layer = traced(model), head_matrices(model, 1), model.blocks[1].attention
    n = trace["blocks.1.attention_norm"]

    def factor(linear: torch.nn.Module, rank: int) -> Tensor:
        down = linear(n)[..., :rank]
        return down.square().mean(dim=-1).add(1e-6).rsqrt()[:, None, :, None]

    of_kv = factor(layer.kv_down, 6)
    torch.testing.assert_close(product(n, found.w_v, found.b_v) * of_kv, trace["blocks.1.attention.v"], **CLOSE)
    keys, plain = product(n, found.w_k, found.b_k), layer.plain_dim
    keys = torch.cat([keys[..., :plain] * of_kv, keys[..., plain:]], dim=-1)
    queries = product(n, found.w_q, found.b_q) * (1.0 if q_rank is None else factor(layer.q_down, 5))
    context = model.context(IDS)
    torch.testing.assert_close(layer.turned(keys, context), trace["blocks.1.attention.k"], **CLOSE)
    torch.testing.assert_close(layer.turned(queries, context), trace["blocks.1.attention.q"], **CLOSE)
    written = (trace["blocks.1.attention.head_output"] @ found.w_o).sum(dim=1)
    torch.testing.assert_close(written + (found.b_o if bias else 0), trace["blocks.1.attention.output"], **CLOSE)
    direct_logit_attribution(model, IDS, IDS, by_head=True)  # its heads write to the stream as they are


def test_values_with_a_share_of_others_have_it_in_w_v() -> None:
    model = of({"attention": "value_embedding"})
    trace, found, layer = traced(model), head_matrices(model, 1), model.blocks[1].attention
    table = layer.value_table(IDS).view(*IDS.shape, layer.n_head, -1).transpose(1, 2) * layer.value_shares[1]
    v = product(trace["blocks.1.attention_norm"], found.w_v, found.b_v) + table
    torch.testing.assert_close(v, trace["blocks.1.attention.v"], **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "rotary"},
        {"position": {"kind": "yarn", "factor": 4.0, "original": 8}},
        {"attention": {"kind": "grouped", "n_kv_head": 2, "rotary_base": 50.0}},
        {"attention": {"kind": "latent", "kv_rank": 6}, "position": "rotary"},
    ],
)
def test_the_qk_circuit_at_a_distance_is_the_score(changes: dict[str, Any]) -> None:
    model = of({**changes, "bias": False})
    trace, layer = traced(model), model.blocks[1].attention
    n, scores = trace["blocks.1.attention_norm"], trace["blocks.1.attention.scores"]
    for head, distance in ((1, 0), (3, 4)):
        circuit = qk_circuit(model, 1, head, distance)
        if "latent" in str(changes):  # queries and rotated keys have no factor; the other keys that of their latent
            factor = layer.kv_down(n)[..., :6].square().mean(dim=-1).add(1e-6).rsqrt()
            plain = (n @ circuit.left[:, : layer.plain_dim]) @ (n @ circuit.right[: layer.plain_dim].mT).mT
            turned = (n @ circuit.left[:, layer.plain_dim :]) @ (n @ circuit.right[layer.plain_dim :].mT).mT
            made = plain * factor[:, None] + turned
        else:
            made = n @ circuit.matrix() @ n.mT
        made = made.diagonal(-distance, -2, -1) / math.sqrt(layer.score_width or layer.head_dim)
        torch.testing.assert_close(made, scores[:, head].diagonal(-distance, -2, -1), **CLOSE)


def test_the_ov_circuit_is_what_a_head_writes_and_its_embedding_what_that_does_to_the_logits() -> None:
    """One layer without positions: the stream before it is the embedding, so both are exact."""
    shape = {**SIZES, "n_layer": 1, "n_head": 2, "vocab_size": 17, "ffn": "none", "position": "none"}
    model = randomise(GPT(GPTConfig(**shape, bias=False, embedding_scale=2.0, tie_embeddings=False)).double()).eval()
    trace, head = traced(model), 1
    pattern, n = trace["blocks.0.attention.pattern"][:, head], trace["blocks.0.attention_norm"]
    circuit = ov_circuit(model, 0, head)
    written = trace["blocks.0.attention.head_output"][:, head] @ head_matrices(model, 0).w_o[head]
    torch.testing.assert_close(pattern @ (n @ circuit.left) @ circuit.right, written, **CLOSE)
    last, against = trace["blocks.0.after_ffn"], torch.zeros_like(IDS)
    share = direct_logit_attribution(model, IDS, IDS.roll(1, 0), against, by_head=True)
    deviation = ((last.var(dim=-1, keepdim=True, correction=0) + 1e-5) / (1 + 1e-5)).sqrt()
    logits = pattern @ ov_circuit(model, 0, head, embedded=True).rows(IDS) / deviation
    difference = (logits.gather(-1, IDS.roll(1, 0)[..., None]) - logits[..., :1])[..., 0]
    torch.testing.assert_close(difference, share.values[share.parts.index(f"0.{head}")], **CLOSE)
    scores = trace["blocks.0.attention.scores"][:, head] * math.sqrt(model.blocks[0].attention.head_dim)
    tokens = qk_circuit(model, 0, head, embedded=True)
    torch.testing.assert_close(tokens.matrix()[IDS[:, :, None], IDS[:, None]], scores, **CLOSE)


def test_what_is_asked_of_a_circuit_is_that_of_its_product() -> None:
    circuit = ov_circuit(of({}), 0, 2, embedded=True)
    whole, ids = circuit.matrix(), torch.tensor([3, 16])
    assert circuit.shape == (17, 17) == tuple(whole.shape)
    assert circuit.left.shape[1] == 4  # head_dim: no more is ever held than the factors
    largest = sorted(torch.linalg.eigvals(whole).tolist(), key=abs)[-4:]
    found = sorted(circuit.eigenvalues().tolist(), key=abs)
    assert [abs(value) for value in found] == pytest.approx([abs(value) for value in largest])
    assert circuit.copying_score() == pytest.approx(sum(v.real for v in found) / sum(map(abs, found)))
    torch.testing.assert_close(circuit.singular_values(), torch.linalg.svdvals(whole.detach())[:4], **CLOSE)
    torch.testing.assert_close(circuit.rows(ids), whole[ids], **CLOSE)
    with pytest.raises(CallError, match=f"k is {circuit.shape[1] + 1}; a row has {circuit.shape[1]} entries"):
        circuit.top(ids, circuit.shape[1] + 1)
    values, columns = circuit.top(ids, 2)
    torch.testing.assert_close(values, whole[ids].topk(2).values, **CLOSE)
    assert columns.tolist() == whole[ids].topk(2).indices.tolist()
    with pytest.raises(CallError, match=r"shape \(3, 2\) has no eigenvalues"):
        Circuit(torch.ones(3, 1), torch.ones(1, 2)).eigenvalues()
    assert Circuit(torch.zeros(3, 1), torch.zeros(1, 3)).copying_score() == 0


def test_a_head_that_copies_has_a_copying_score_of_one() -> None:
    model = copying_model()
    assert ov_circuit(model, 1, 0, embedded=True).copying_score() == pytest.approx(1)
    copied = ov_circuit(model, 1, 0, embedded=True).top(torch.arange(VOCAB), 1)[1]
    assert copied[:, 0].tolist() == list(range(VOCAB))


@pytest.mark.parametrize("attention", ["value_residual", "value_embedding", "grouped", "differential", "gated", "full"])
def test_value_and_output_are_those_of_the_heads(attention: str) -> None:
    """The spectra are of the same product as the circuits, or neither is there."""
    choice = {"kind": attention, "n_kv_head": 2} if attention == "grouped" else attention
    mixer = randomise(of({"attention": choice}), std=0.3).block_views()[0].mixer
    matrices, factors = mixer.head_matrices(), mixer.value_output()
    assert (factors is None) == bool(matrices.no_ov)
    if factors is not None:
        torch.testing.assert_close(factors[0] @ factors[1], matrices.w_v @ matrices.w_o)


@pytest.mark.parametrize("attention", ["value_residual", "full"])
def test_what_the_first_layer_writes_for_a_token_is_its_value_circuit(attention: str) -> None:
    """Of one token alone, whose own values are those of the first layer as well."""
    model = randomise(of({"attention": attention, "bias": False}), std=0.3)
    view = model.block_views()[0]
    with torch.no_grad(), model.record([view.input_name, "blocks.0.attention.output"]) as trace:
        model(torch.arange(17)[:, None])
    matrices = view.mixer.head_matrices()
    written = torch.einsum("btd,hdk,hke->bte", trace[view.input_name], matrices.w_v, matrices.w_o)
    torch.testing.assert_close(written, trace["blocks.0.attention.output"], **CLOSE)


@pytest.mark.parametrize("residual", blocks.names)
def test_a_layer_s_queries_are_made_of_what_its_view_says_its_heads_read(residual: str) -> None:
    model = randomise(of({"residual": residual, "bias": False}), std=0.3)
    for view, view_before in zip(model.block_views()[1:], model.block_views(), strict=False):
        read, queries = view.input_name or view_before.stream_name, f"{view.mixer_name}.q"
        with torch.no_grad(), model.record([read, queries]) as trace:
            model(IDS)
        made = torch.einsum("btd,hdk->bhtk", trace[read], view.mixer.head_matrices().w_q)
        torch.testing.assert_close(made, trace[queries], **CLOSE)


@pytest.mark.parametrize("residual", ["pre", "parallel", "none", "layerscale", "rezero", "multiplied", "depth_scaled"])
def test_a_value_circuit_has_the_factor_of_the_residual_rule(residual: str) -> None:
    """What a token that attends to itself alone adds to the stream; also of the spectra of diagnostics."""
    model = randomise(of({"residual": residual, "bias": False}), std=0.3)
    view, tokens = model.block_views()[0], torch.arange(17)[:, None]
    with torch.no_grad(), model.record([view.input_name, "embedding", view.half_name]) as trace:
        model(tokens)
    read = trace.get(view.input_name, trace["embedding"])
    added = trace[view.half_name] - (0 if residual == "none" else trace["embedding"])
    heads = [ov_circuit(model, 0, head) for head in range(view.mixer.n_head)]
    torch.testing.assert_close(sum(read @ head.matrix() for head in heads), added, **CLOSE)
    radii = torch.stack([head.eigenvalues().abs().max() for head in heads])
    spectra = Probe.take(model, tokens, tokens).value_spectra[0].abs().amax(dim=-1)
    torch.testing.assert_close(spectra.double(), radii.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        *({"residual": kind} for kind in ("sandwich", "normed_branches", "post", "deepnorm", "attention_residuals")),
        {"residual": "hyper_connections"},
        {"token_routing": {"kind": "mixture_of_depths", "every": 1}},
    ],
    ids=str,
)
def test_what_is_normed_or_weighted_before_it_joins_the_stream_has_no_value_circuit(changes: dict[str, Any]) -> None:
    model, ids = of(changes), IDS
    with pytest.raises(CallError, match="has no OV circuit: what its output adds to the stream depends on the token"):
        ov_circuit(model, 0, 0)
    assert Probe.take(model, ids, ids).value_spectra[0] is None


def test_what_heads_read_behind_a_convolution_is_its_result() -> None:
    model = randomise(of({"convolution": {"kind": "canon", "places": "A"}, "bias": False}), std=0.3)
    view = model.block_views()[0]
    with torch.no_grad(), model.record([view.input_name, "blocks.0.attention.q"]) as trace:
        model(IDS)
    read = torch.einsum("btd,hdk->bhtk", trace[view.input_name], head_matrices(model, 0).w_q)
    torch.testing.assert_close(read, trace["blocks.0.attention.q"], **CLOSE)
    tokens = torch.arange(17)[:, None]  # each alone
    with torch.no_grad(), model.record([view.input_name, "embedding"]) as trace:
        model(tokens)
    torch.testing.assert_close(view.mixer_input(trace["embedding"]).detach(), trace[view.input_name], **CLOSE)
    mixed = of({"convolution": {"kind": "canon", "places": "B"}})
    assert mixed.block_views()[0].mixer.value_output() is None
    for call in (qk_circuit, ov_circuit):
        with pytest.raises(CallError, match="its queries, keys and values also hold those of earlier tokens"):
            call(mixed, 0, 0)


@pytest.mark.parametrize("residual", ["hyper_connections", "constrained_hyper_connections"])
def test_tokens_are_read_through_every_copy_of_the_stream(residual: str) -> None:
    circuit = qk_circuit(of({"residual": residual}), 0, 0, embedded=True)
    assert circuit.rows(IDS[0]).shape[-1] == of({}).config.vocab_size


def test_what_a_layer_does_not_have_is_refused_by_its_name() -> None:
    mixed = of({"attention": ["full", "delta_net"]})
    with pytest.raises(CallError, match=r"blocks\.1\.attention \(GatedDeltaNet\) has no W_Q, W_K, W_V and W_O by head"):
        head_matrices(mixed, 1)
    assert head_matrices(mixed, 0).w_q.shape == (4, 16, 4)
    for kind, call, reason in (
        ("gated", ov_circuit, "has no OV circuit: it gates"),
        ("differential", ov_circuit, "has no OV circuit: it norms"),
        ("differential", qk_circuit, "has no QK circuit: each head has two"),
        ("linear", qk_circuit, "has no QK circuit: queries and keys go through a feature map"),
    ):
        with pytest.raises(CallError, match=reason):
            call(of({"attention": kind}), 0, 0)
    with pytest.raises(CallError, match=r"layer is 2; the model has 2 \(allowed: 0 to 1\)"):
        head_matrices(mixed, 2)
    with pytest.raises(CallError, match=r"head is 4; blocks\.0\.attention .* has 4 \(allowed: 0 to 3\)"):
        ov_circuit(mixed, 0, 4)
    with pytest.raises(CallError, match="distance is -1"):
        qk_circuit(mixed, 0, 0, distance=-1)
