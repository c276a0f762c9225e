"""The logit lens against the formula, and that its last depth is the model itself."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.analysis import logit_lens as module
from lightning_gpt.analysis.logit_lens import lens_logits, logit_lens, stream_names
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from tests.models.helpers import arrays, property_test, random_ids, randomise
from tests.models.variants import CONFIGS, build, name_of
from tests.reference import formulas

VOCAB, LAYERS, HEADS = 13, 3, 2
IDS = random_ids(VOCAB, 5)


def gpt(residual: str = "pre", *, tied: bool = True) -> GPT:
    sizes = {"n_layer": LAYERS, "n_head": HEADS, "dim": 8, "block_size": 6, "vocab_size": VOCAB}
    return randomise(GPT(GPTConfig(**sizes, residual=residual, tie_embeddings=tied)).double()).eval()


def single_head() -> SingleHeadModel:
    return randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=VOCAB)).double()).eval()


@pytest.mark.parametrize("model", [gpt(), gpt(tied=False), gpt("post"), gpt("parallel"), single_head()])
def test_the_last_depth_is_the_models_own_output(model: LanguageModel) -> None:
    with torch.no_grad(), model.record(stream_names(model)) as trace:
        logits = model(IDS[None])
    torch.testing.assert_close(lens_logits(model, trace[stream_names(model)[-1]]), logits, rtol=1e-12, atol=1e-12)
    lens = logit_lens(model, IDS, k=4)
    probabilities = logits[0].softmax(-1)
    best = probabilities.topk(4)
    assert lens.top[-1].tolist() == best.indices.tolist()
    np.testing.assert_allclose(lens.probability[-1], best.values.numpy(), rtol=1e-5)
    nll = -probabilities[:-1].gather(-1, IDS[1:, None])[:, 0].log()
    np.testing.assert_allclose(lens.nll[-1], nll.numpy(), rtol=1e-5)


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
def test_the_last_depth_of_every_variant_is_its_own_output(changes: dict[str, Any]) -> None:
    model = build(changes)
    ids = random_ids(17, model.trace_limit or 8)
    lens = logit_lens(model, ids, k=17)
    with torch.no_grad():
        probabilities = model(ids[None])[0].softmax(-1).numpy()
    np.testing.assert_allclose(lens.probability[-1], -np.sort(-probabilities), rtol=1e-5)


def test_every_depth_is_the_stream_through_the_final_norm_and_the_unembedding() -> None:
    model = gpt()
    state, lens = arrays(model), logit_lens(model, IDS, k=3)
    stream = formulas.embedding(state, IDS.numpy())
    assert lens.depths == ["embedding", "layer 0", "layer 1", "layer 2"]
    for depth in range(LAYERS + 1):
        if depth:
            stream = formulas.block(stream, formulas.below(state, f"blocks.{depth - 1}"), HEADS)
        normed = formulas.layer_norm(stream, state["final_norm.weight"], state["final_norm.bias"])
        logits = normed @ state["token_embedding.weight"].T
        np.testing.assert_allclose(lens.nll[depth], formulas.token_nll(logits[:-1], IDS[1:].numpy()), rtol=1e-5)
        for place, row in enumerate(logits):
            likeliest = np.argsort(-row)[:3]
            assert lens.top[depth, place].tolist() == likeliest.tolist()
            np.testing.assert_allclose(lens.probability[depth, place], formulas.softmax(row)[likeliest], rtol=1e-5)


def test_a_single_token_has_no_next_one_and_k_is_at_most_the_vocabulary() -> None:
    lens = logit_lens(gpt(), IDS[:1], k=50)
    assert lens.nll.shape == (LAYERS + 1, 0)
    assert lens.top.shape == (LAYERS + 1, 1, VOCAB)
    np.testing.assert_allclose(lens.probability.sum(-1), 1, rtol=1e-6)


@property_test
@given(at_once=st.integers(1, 7), time=st.integers(1, 6))
def test_how_many_rows_are_looked_at_at_once_changes_nothing(at_once: int, time: int) -> None:
    model, ids = gpt(), random_ids(VOCAB, time)
    whole = logit_lens(model, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_AT_ONCE", at_once)
        parts = logit_lens(model, ids)
    assert parts.top.tolist() == whole.top.tolist()
    np.testing.assert_allclose(parts.probability, whole.probability, rtol=1e-6)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-6)
