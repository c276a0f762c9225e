"""Remedies against over-smoothing: against their formulas in a stack, where they start, and what they do to tokens.

Single layers of the attention kinds are in test_attention_kinds.py; what holds for every variant in test_variants.py.
"""

import numpy as np
import pytest
import torch

from lightning_gpt.analysis.similarity import token_cosine
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.optim import adamw
from tests.models.helpers import arrays, random_ids
from tests.models.layers import BACKENDS, DIM, N_HEAD, make, normal, of_documents
from tests.models.variants import SIZES, build
from tests.reference import remedies
from tests.reference.formulas import below

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
N_LAYER = 3


# --- attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_neutreno_adds_the_distance_from_the_first_layers_values(backend: str) -> None:
    choice = {"kind": "neutreno", "strength": 0.7}
    model = build({"n_layer": N_LAYER, "attention": choice, "attention_backend": backend})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["*.attention_norm", "*.attention.output", "*.head_output"]) as trace:
        model(ids)
    states = [below(state, f"blocks.{layer}.attention") for layer in range(N_LAYER)]
    normed = [trace[f"blocks.{layer}.attention_norm"][0].numpy(force=True) for layer in range(N_LAYER)]
    for layer, expected in enumerate(remedies.neutreno_layers(normed, states, SIZES["n_head"], 0.7)):
        np.testing.assert_allclose(trace[f"blocks.{layer}.attention.output"][0].numpy(force=True), expected, **CLOSE)


def test_neutreno_layers_that_differ_in_width_each_have_a_first_layer_of_their_width() -> None:
    model = build({"n_layer": 4, "attention": ["neutreno", {"kind": "neutreno", "head_dim": 6}]})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["*.attention_norm", "*.attention.output"]) as trace:
        model(ids)
    for layers in ((0, 2), (1, 3)):
        states = [below(state, f"blocks.{layer}.attention") for layer in layers]
        normed = [trace[f"blocks.{layer}.attention_norm"][0].numpy(force=True) for layer in layers]
        expected = remedies.neutreno_layers(normed, states, SIZES["n_head"], 0.4)
        for layer, output in zip(layers, expected, strict=True):
            np.testing.assert_allclose(trace[f"blocks.{layer}.attention.output"][0].numpy(force=True), output, **CLOSE)


def test_neutreno_without_strength_is_plain_attention() -> None:
    ids = random_ids(17, 2, 9)
    plain, without = (
        build({"n_layer": N_LAYER}),
        build({"n_layer": N_LAYER, "attention": {"kind": "neutreno", "strength": 0.0}}),
    )
    torch.testing.assert_close(without(ids), plain(ids), rtol=0, atol=0)


def test_one_pass_leaves_the_next_no_values() -> None:
    model, ids = build({"attention": "neutreno"}), random_ids(17, 2, 9)
    first = model(ids)
    model(random_ids(17, 2, 9, seed=7))
    assert torch.equal(model(ids), first)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["shaped", "attn_scale"])
def test_documents_have_an_average_and_an_identity_of_their_own(kind: str, backend: str) -> None:
    layer, x = make(kind, backend=backend), normal(1, 9, DIM)
    together = layer(x, of_documents(torch.tensor([[0] * 4 + [1] * 5])))
    torch.testing.assert_close(together, torch.cat([layer(x[:, :4]), layer(x[:, 4:])], dim=1), **CLOSE)


def test_shaped_attention_starts_near_the_identity_and_attn_scale_as_plain_attention() -> None:
    def start(kind: str) -> GPT:
        torch.manual_seed(0)
        return GPT(GPTConfig(**{**SIZES, "attention": kind}))

    ids = random_ids(17, 2, 12)
    model = start("shaped")
    with torch.no_grad(), model.record(["*.pattern"]) as trace:
        model(ids)
    eye = torch.eye(12).expand(2, N_HEAD, 12, 12)
    torch.testing.assert_close(trace["blocks.0.attention.pattern"], eye, rtol=0, atol=0.02)
    torch.testing.assert_close(start("attn_scale")(ids), start("full")(ids))


# --- residual rule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_the_initial_residual_equals_the_formula_of_a_stack(share: float) -> None:
    model = build({"n_layer": N_LAYER, "residual": {"kind": "initial", "share": share}})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["embedding", f"blocks.{N_LAYER - 1}.after_ffn"]) as trace:
        model(ids)
    states = [below(state, f"blocks.{layer}") for layer in range(N_LAYER)]
    shares = [(1 - share, share)] * N_LAYER
    expected = remedies.mixed_stack(trace["embedding"][0].numpy(force=True), states, SIZES["n_head"], shares)
    np.testing.assert_allclose(trace[f"blocks.{N_LAYER - 1}.after_ffn"][0].numpy(force=True), expected, **CLOSE)


def test_without_a_share_of_the_embeddings_it_is_pre_ln() -> None:
    ids = random_ids(17, 2, 9)
    without = build({"residual": {"kind": "initial", "share": 0.0}})
    torch.testing.assert_close(without(ids), build({})(ids), rtol=0, atol=0)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(CallError, match=f"residual share is {share}; it must be a number from 0 to 1"):
        build({"residual": {"kind": "initial", "share": share}})


# --- the loss against likeness ---------------------------------------------------------------------------------


def gradients(model: GPT, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model.loss(ids, ids.roll(-1, 1)).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_the_loss_has_the_gradient_of_the_formula_and_the_value_of_none(checkpointing: str) -> None:
    """Along a random direction of all weights, by central differences of the plain formula."""
    changes, ids = {"checkpointing": checkpointing}, random_ids(17, 2, 7)
    plain, penalised = build(changes).train(), build({**changes, "diversity": 0.3}).train()
    assert float(penalised.loss(ids, ids)) == float(plain.loss(ids, ids))
    added = [after - before for after, before in zip(gradients(penalised, ids), gradients(plain, ids), strict=True)]
    rng = torch.Generator(torch.get_default_device()).manual_seed(3)
    directions = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in penalised.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(added, directions, strict=True))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(penalised.parameters(), directions, strict=True):
                parameter += step * direction
            with penalised.record(["blocks.1.after_ffn"]) as trace:
                penalised(ids)
        ends.append(np.mean([remedies.diversity(row.numpy(force=True)) for row in trace["blocks.1.after_ffn"]]))
    assert slope == pytest.approx(0.3 * (ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_one_token_has_no_other_to_be_like() -> None:
    model, ids = build({"diversity": 0.5}).train(), random_ids(17, 2, 1)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model, ids))


def test_training_with_it_keeps_tokens_less_alike() -> None:
    ids, cosines = random_ids(17, 8, 12), []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**{**SIZES, "diversity": weight}))
        optimizer = adamw(model, lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            model.loss(ids, ids.roll(-1, 1)).backward()
            optimizer.step()
        with torch.no_grad(), model.record(["blocks.1.after_ffn"]) as trace:
            model(ids)
        cosines.append(float(token_cosine(trace["blocks.1.after_ffn"]).abs().mean()))
    assert cosines[1] < cosines[0]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(CallError, match="diversity is -1; it must be a number of at least 0"):
        GPTConfig(**{**SIZES, "diversity": -1})
