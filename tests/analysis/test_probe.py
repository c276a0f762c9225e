"""The diagnostics of whole models: which layer is which, against formulas worked out from the weights."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS, measure, one_value
from lightning_gpt.analysis.layer_measures import cka_matrix
from lightning_gpt.analysis.probe import Probe, block_parameters
from lightning_gpt.analysis.similarity import linear_cka
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.head import IGNORED
from tests.models.helpers import arrays, random_ids, randomise
from tests.reference import depth as reference
from tests.reference import formulas

N_LAYER, N_HEAD, DIM, TIME = 3, 2, 8, 6


@pytest.fixture
def gpt() -> GPT:
    config = GPTConfig(n_layer=N_LAYER, n_head=N_HEAD, dim=DIM, block_size=TIME, vocab_size=11, dropout=0.5)
    return randomise(GPT(config)).double()


@pytest.fixture
def one_head() -> SingleHeadModel:
    return randomise(SingleHeadModel(SingleHeadConfig(dim=DIM, block_size=TIME, vocab_size=11))).double()


def probe_of(model: LanguageModel) -> Probe:
    ids = random_ids(11, 2, TIME)
    return Probe.take(model, ids, ids.roll(-1, 1))


def streams_by_hand(model: GPT, ids: Tensor) -> list[np.ndarray]:
    """The stream of one sequence, layer by layer, from the weights."""
    state = arrays(model)
    stream = [formulas.embedding(state, ids.tolist())]
    for layer in range(N_LAYER):
        stream.append(formulas.block(stream[-1], formulas.below(state, f"blocks.{layer}"), N_HEAD))
    return stream


def test_stream_layer_0_is_the_embedding_and_the_last_what_the_last_block_left(gpt: GPT) -> None:
    figures = measure(probe_of(gpt))
    by_hand = [streams_by_hand(gpt, ids) for ids in random_ids(11, 2, TIME)]
    assert len(by_hand[0]) == N_LAYER + 1
    for name, formula in (
        ("token_cosine", reference.token_cosine),
        ("rank_residual", reference.rank_residual),
        ("effective_rank", reference.effective_rank),
        ("rms", reference.activation_rms),
    ):
        expected = [np.mean([formula(stream[layer]) for stream in by_hand]) for layer in range(N_LAYER + 1)]
        np.testing.assert_allclose(figures[name], expected, rtol=1e-4, err_msg=name)
    joined = [np.concatenate(layer) for layer in zip(*by_hand, strict=True)]
    expected = [reference.linear_cka(joined[layer], joined[layer + 1]) for layer in range(N_LAYER)]
    np.testing.assert_allclose(figures["cka"], expected, rtol=1e-4)


def test_attention_layer_i_is_block_i_by_head(gpt: GPT) -> None:
    probe = probe_of(gpt)
    figures = measure(probe)
    for layer in range(N_LAYER):
        for head in range(N_HEAD):
            rows = [(probe.patterns[layer][row, head].numpy(), probe.streams[layer, row].numpy()) for row in range(2)]
            for name, value in (
                ("attention_entropy", np.mean([reference.attention_entropy(a) for a, _ in rows])),
                ("attention_distance", np.mean([reference.attention_distance(a) for a, _ in rows])),
                ("first_token_share", np.mean([reference.first_token_share(a) for a, _ in rows])),
                ("spectral_gap", np.mean([reference.spectral_gap(a) for a, _ in rows])),
                ("second_singular_value", np.mean([reference.second_singular_value(a) for a, _ in rows])),
                ("dirichlet_energy", np.mean([reference.dirichlet_energy(x, a) for a, x in rows])),
            ):
                assert figures[name][layer][head] == pytest.approx(value, rel=1e-4), (name, layer, head)


def test_logit_lens_ends_at_the_models_own_loss(gpt: GPT, one_head: SingleHeadModel) -> None:
    for model, layers in ((gpt, N_LAYER + 1), (one_head, 2)):
        ids = random_ids(11, 2, TIME)
        targets = ids.roll(-1, 1)
        targets[0, -1] = IGNORED
        losses = measure(Probe.take(model, ids, targets))["logit_lens_loss"]
        assert len(losses) == layers
        assert losses[-1] == pytest.approx(float(model.eval().loss(ids, targets)), rel=1e-5)
        assert losses[0] != pytest.approx(losses[-1], rel=1e-3)


def test_fresh_attention_is_nearly_uniform_and_the_lens_knows_nothing() -> None:
    torch.manual_seed(0)
    figures = measure(probe_of(GPT(GPTConfig(n_layer=2, n_head=2, dim=32, block_size=TIME, vocab_size=11))))
    uniform = sum(math.log(i) for i in range(1, TIME + 1)) / TIME
    for heads in figures["attention_entropy"]:
        assert heads == pytest.approx([uniform, uniform], rel=1e-3)
    assert figures["logit_lens_loss"] == pytest.approx([math.log(11)] * 3, rel=0.05)


@pytest.mark.parametrize("head", range(N_HEAD))
def test_value_projection_is_what_the_values_go_through(gpt: GPT, head: int) -> None:
    """Attention of a token to itself alone hands on ``Σ_h x W_V^h W_O^h`` and the biases."""
    attention = gpt.blocks[1].attention
    with gpt.eval().record(["blocks.1.attention_norm", "blocks.1.attention.v"]) as trace:
        gpt.hidden(random_ids(11, 1, TIME))
    values, output = attention.value_output()
    x, width = trace["blocks.1.attention_norm"][0], DIM // N_HEAD
    biases = attention.qkv.bias[-DIM:].view(N_HEAD, width)
    torch.testing.assert_close(x @ values[head] + biases[head], trace["blocks.1.attention.v"][0, head])
    joined = torch.cat([trace["blocks.1.attention.v"][0, h] for h in range(N_HEAD)], dim=-1)
    summed = sum(trace["blocks.1.attention.v"][0, h] @ output[h] for h in range(N_HEAD))
    torch.testing.assert_close(summed + attention.w_o.bias, attention.w_o(joined))


def test_value_spectra_are_by_head_and_zero_weights_have_none(gpt: GPT) -> None:
    with torch.no_grad():
        gpt.blocks[0].attention.w_o.weight.zero_()
        gpt.blocks[1].attention.w_o.weight.copy_(gpt.blocks[1].attention.qkv.weight[-DIM:].mT)
    figures = measure(probe_of(gpt))
    assert figures["value_radius"][0] == [0.0, 0.0]
    assert figures["value_positive_share"][0] == [0.0, 0.0]
    # W_O = W_Vᵀ makes W_V W_O positive semi-definite: it can only smooth
    assert figures["value_positive_share"][1] == pytest.approx([1.0, 1.0])


def test_a_value_projection_that_turns_the_stream_round_and_enlarges_it_smooths(gpt: GPT) -> None:
    """``W_O = −c W_Vᵀ`` makes every eigenvalue negative; those below −2 amplify what all tokens share."""
    attention = gpt.blocks[1].attention
    values, _ = attention.value_output()
    for smallest, expected in ((-1.9, None), (-2.1, 1.0)):
        scale = -smallest / float(torch.linalg.eigvalsh(values.mT @ values).min())
        with torch.no_grad():
            attention.w_o.weight.copy_(-scale * attention.qkv.weight[-DIM:].mT)
        shares = measure(probe_of(gpt))["value_positive_share"][1]
        of_heads = zip(*(weights.numpy(force=True) for weights in attention.value_output()), strict=True)
        by_hand = [reference.positive_share(w_v, w_o) for w_v, w_o in of_heads]
        assert shares == pytest.approx(by_hand)
        if expected is not None:
            assert shares == pytest.approx([expected] * N_HEAD)


@pytest.mark.parametrize("kind", ["differential", "shaped"])
def test_the_spectral_gap_of_attention_with_negative_weights_is_that_of_its_eigenvalues(kind: str) -> None:
    config = GPTConfig(n_layer=2, n_head=2, dim=16, block_size=TIME, vocab_size=11, attention=kind)
    probe = probe_of(randomise(GPT(config), seed=1, std=1.0).double())
    assert min(float(pattern.diagonal(dim1=-2, dim2=-1).min()) for pattern in probe.patterns) < 0
    for pattern, gaps in zip(probe.patterns, measure(probe)["spectral_gap"], strict=True):
        for head in range(2):
            by_hand = np.mean([max(0.0, reference.spectral_gap(row[head].numpy())) for row in pattern])
            assert gaps[head] == pytest.approx(by_hand, abs=1e-6)


def test_the_one_head_model_is_one_block(one_head: SingleHeadModel) -> None:
    figures = measure(probe_of(one_head))
    for name, values in figures.items():
        diagnostic = DIAGNOSTICS[name]
        assert len(values) == (2 if diagnostic.of == "stream" else 1), name
        assert all(isinstance(value, list) == diagnostic.by_head for value in values), name
    whole = reference.value_spectrum(
        one_head.attention.w_v.weight.mT.numpy(force=True), one_head.attention.w_0.weight.mT.numpy(force=True)
    )
    assert figures["value_radius"][0] == pytest.approx([abs(whole[0])], rel=1e-5)


def test_every_figure_is_in_its_range(gpt: GPT, one_head: SingleHeadModel) -> None:
    for model in (gpt, one_head):
        for name, values in measure(probe_of(model)).items():
            diagnostic = DIAGNOSTICS[name]
            for value in map(one_value, values):
                assert value is not None
                assert diagnostic.low is None or value >= diagnostic.low, name
                assert diagnostic.high is None or value <= diagnostic.high + 1e-6, name


def test_probing_leaves_the_model_and_the_random_state_as_they_were(gpt: GPT) -> None:
    gpt.train()
    before = torch.get_rng_state()
    first, second = measure(probe_of(gpt)), measure(probe_of(gpt))
    assert first == second, "dropout was on"
    assert gpt.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in gpt.parameters())


def test_mixed_precision_and_half_weights_give_fp32_figures() -> None:
    model = randomise(GPT(GPTConfig(n_layer=2, n_head=2, dim=16, block_size=TIME, vocab_size=11)), std=0.1)
    plain = measure(probe_of(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(probe_of(model)) == plain
    probe = probe_of(model.bfloat16())
    assert probe.streams.dtype == torch.float32
    assert all(pattern.dtype == torch.float32 for pattern in probe.patterns)
    assert measure(probe)["token_cosine"] == pytest.approx(plain["token_cosine"], abs=0.02)


def test_documents_are_kept_apart(gpt: GPT) -> None:
    ids, documents = random_ids(11, 1, TIME), torch.tensor([[0, 0, 0, 1, 1, 1]])
    apart = Probe.take(gpt, ids, ids, documents)
    assert (apart.patterns[0][:, :, 3:, :3] == 0).all()
    # the second document's first token attends to itself alone, so something besides the mean survives
    assert measure(apart)["spectral_gap"][0] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_layer_without_a_softmax_has_no_figure(gpt: GPT) -> None:
    probe = probe_of(gpt)
    without = Probe(gpt, probe.targets, probe.streams, [None, *probe.patterns[1:]])
    figures = measure(without)
    assert figures["attention_entropy"][0] is None
    assert figures["dirichlet_energy"][0] is None
    assert figures["token_cosine"] == measure(probe)["token_cosine"]


def test_what_is_not_finite_is_none(gpt: GPT) -> None:
    probe = probe_of(gpt)
    broken = Probe(gpt, probe.targets, probe.streams.clone(), probe.patterns)
    broken.streams[1, 0, 0, 0] = torch.inf
    figures = measure(broken)
    assert figures["rms"][1] is None
    assert figures["rms"][0] == measure(probe)["rms"][0]
    assert one_value([1.0, None]) is None
    assert one_value([1.0, 2.0]) == 1.5


def test_a_model_that_diverged_is_measured_all_the_same(gpt: GPT) -> None:
    with torch.no_grad():
        gpt.blocks[1].attention.qkv.weight.fill_(torch.nan)
    figures = measure(probe_of(gpt))
    for name, values in figures.items():
        layer = 2 if DIAGNOSTICS[name].of == "stream" else 1
        assert one_value(values[0]) is not None, name
        assert one_value(values[layer]) is None, name


def test_blocks_share_no_parameter_and_leave_out_the_embeddings(gpt: GPT, one_head: SingleHeadModel) -> None:
    for model, count in ((gpt, N_LAYER), (one_head, 1)):
        parts = block_parameters(model)
        assert len(parts) == count
        inside = {id(p) for part in parts for p in part}
        assert len(inside) == sum(len(part) for part in parts)
        outside = {name.split(".")[0] for name, p in model.named_parameters() if id(p) not in inside}
        assert "token_embedding" in outside
        assert not outside & {"blocks", "attention", "norm"}


def test_cka_of_every_two_layers_is_that_of_the_two(gpt: GPT) -> None:
    probe = probe_of(gpt)
    matrix = cka_matrix(probe)
    tokens = probe.streams.flatten(1, 2)
    by_pairs = torch.stack([torch.stack([linear_cka(x, y) for y in tokens]) for x in tokens])
    torch.testing.assert_close(matrix, by_pairs)
    assert matrix.shape == (N_LAYER + 1, N_LAYER + 1)
    assert measure(probe)["cka"] == pytest.approx(matrix.diagonal(1).tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", attentions.names)
def test_every_attention_can_be_probed(kind: str) -> None:
    """What a variant has no figure for is None; nothing fails, whatever its pattern looks like."""
    options = {name: 2 for name, given in attentions.options(kind).items() if given.default is given.empty}
    config = GPTConfig(n_layer=2, n_head=4, dim=32, block_size=TIME, vocab_size=11, attention={"kind": kind, **options})
    figures = measure(probe_of(randomise(GPT(config))))
    for name, values in figures.items():
        assert len(values) == (3 if DIAGNOSTICS[name].of == "stream" else 2), name
        if DIAGNOSTICS[name].by_head:
            assert all(value is None or len(value) == 4 for value in values), name
    assert None not in [value for name in ("token_cosine", "cka", "logit_lens_loss") for value in figures[name]]


def test_the_documented_example_says_what_it_gives() -> None:
    page = (Path(__file__).parents[2] / "docs/instruments.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/instruments.md", "exec"), names)
    assert len(names["figures"]["token_cosine"]) == 5
    assert len(names["figures"]["attention_entropy"][0]) == 4
    table = re.findall(r"^\| `(\w+)` \| (stream|blocks)(, heads)? \|", page, re.M)
    assert {name: (of, bool(heads)) for name, of, heads in table} == {
        name: (diagnostic.of, diagnostic.by_head) for name, diagnostic in DIAGNOSTICS.items()
    }


def test_logit_rms_is_that_of_the_logits_where_the_head_reads_a_layer(gpt: GPT, one_head: SingleHeadModel) -> None:
    for model in (gpt, one_head):
        probe = probe_of(model)
        sizes = measure(probe)["logit_rms"]
        logits = model.eval()(random_ids(11, 2, TIME))
        assert sizes[-1] == pytest.approx(float(logits.square().mean().sqrt()), rel=1e-5)
        first = probe.streams[0].double()
        if isinstance(model, GPT):
            first = model.final_norm(first)
        assert sizes[0] == pytest.approx(float((first @ model.unembedding.T).square().mean().sqrt()), rel=1e-5)
