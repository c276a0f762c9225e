"""Losses of a model's parts ride on activations: the gradient is that of the loss plus all terms, summed by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models import GPT
from lightning_gpt.models.part_losses import PartLosses
from tests.models.collected_losses import CollectedLosses
from tests.models.helpers import random_ids
from tests.models.variants import ROUTED, SEGMENTS, TOKENS, build, name_of

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
MIXTURE = {"kind": "moe", "n_expert": 4, "balance_rate": 0.5, "z_loss": 0.2}
CARRYING: list[dict[str, Any]] = [
    {"ffn": MIXTURE},
    {"diversity": 0.7},
    {"token_routing": {**ROUTED, "loss_weight": 0.3}},
    {"token_routing": {**ROUTED, "loss_weight": 0.3, "decision": "predictor"}, "ffn": MIXTURE, "diversity": 0.7},
    {"n_layer": 3, "n_unique": 1, "ffn": MIXTURE},
    {"memory": SEGMENTS, "position": "rotary", "ffn": MIXTURE, "diversity": 0.7},
    {"memory": TOKENS, "ffn": MIXTURE},
]
every_model = pytest.mark.parametrize("changes", CARRYING, ids=name_of)
IDS, OTHER_IDS = random_ids(17, 2, 12), random_ids(17, 3, 8, seed=5)


def by_hand(model: GPT, ids: Tensor) -> Tensor:
    """The cross-entropy of the logits plus every term of the model's parts, as one sum that autograd sees whole."""
    losses = CollectedLosses()
    logits = model.head(model.hidden(ids, losses=losses))
    assert losses.terms
    assert sum(float(term) for term in losses.terms) > 1e-3, "too small to show in the gradient"
    return F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()) + sum(losses.terms)


def loss_of(model: GPT, ids: Tensor) -> Tensor:
    """The loss that training uses."""
    return model.loss(ids, ids.roll(-1, 1))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: weight.grad for name, weight in model.named_parameters()}


def expected_gradients(model: GPT, total: Tensor) -> dict[str, Tensor | None]:
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return dict(zip(names, found, strict=True))


def assert_same_gradients(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    for name, expected in theirs.items():
        found = ours[name]
        assert (found is None) == (expected is None), name
        if found is not None:
            torch.testing.assert_close(found, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@every_model
@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
def test_the_gradient_is_that_of_the_loss_and_the_terms(changes: dict[str, Any], checkpointing: str) -> None:
    """Also where a part runs a second time for its gradient."""
    model, plain = build({**changes, "checkpointing": checkpointing}).train(), build(changes).train()
    loss_of(model, IDS).backward()
    assert_same_gradients(gradients(model), expected_gradients(plain, by_hand(plain, IDS)))


@every_model
@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
def test_a_scaled_loss_scales_the_terms_too(changes: dict[str, Any], checkpointing: str) -> None:
    model, plain = build({**changes, "checkpointing": checkpointing}).train(), build(changes).train()
    (0.3 * loss_of(model, IDS)).backward()
    assert_same_gradients(gradients(model), expected_gradients(plain, 0.3 * by_hand(plain, IDS)))


@every_model
@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
def test_of_two_losses_in_one_backward_pass_each_brings_its_own_terms(
    changes: dict[str, Any], checkpointing: str
) -> None:
    """With a factor each, and in both orders of the forward passes."""
    model, plain = build({**changes, "checkpointing": checkpointing}).train(), build(changes).train()
    expected = expected_gradients(plain, 0.3 * by_hand(plain, IDS) + 2 * by_hand(plain, OTHER_IDS))
    for first, second in (((IDS, 0.3), (OTHER_IDS, 2.0)), ((OTHER_IDS, 2.0), (IDS, 0.3))):
        model.zero_grad()
        losses = [factor * loss_of(model, ids) for ids, factor in (first, second)]
        (losses[0] + losses[1]).backward()
        assert_same_gradients(gradients(model), expected)


@every_model
@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
def test_accumulated_gradients_are_those_of_the_sum(changes: dict[str, Any], checkpointing: str) -> None:
    model, plain = build({**changes, "checkpointing": checkpointing}).train(), build(changes).train()
    for ids in (IDS, OTHER_IDS):
        (loss_of(model, ids) / 2).backward()
    total = (by_hand(plain, IDS) + by_hand(plain, OTHER_IDS)) / 2
    assert_same_gradients(gradients(model), expected_gradients(plain, total))


@every_model
def test_a_graph_that_is_kept_gives_its_terms_again_with_the_new_factor(changes: dict[str, Any]) -> None:
    model, plain = build(changes).train(), build(changes).train()
    loss = loss_of(model, IDS)
    loss.backward(retain_graph=True)
    (0.5 * loss).backward()
    assert_same_gradients(gradients(model), expected_gradients(plain, 1.5 * by_hand(plain, IDS)))


@every_model
def test_the_value_is_the_cross_entropy_alone_and_evaluation_has_no_terms(changes: dict[str, Any]) -> None:
    model = build(changes).train()
    targets = IDS.roll(-1, 1)
    assert float(loss_of(model, IDS)) == pytest.approx(float(model.token_nll(IDS, targets).mean()), rel=1e-12)
    model.eval()
    loss_of(model, IDS).backward()
    alone = F.cross_entropy(model(IDS).flatten(0, 1), targets.flatten())
    assert_same_gradients(gradients(model), expected_gradients(model, alone))


def test_a_term_counts_for_its_share_whatever_the_precision_of_loss_and_term() -> None:
    x, weight = torch.ones(2, requires_grad=True), torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = PartLosses().scaled(0.5).scaled(0.5)
    carried = losses.attach(x, 3 * weight)
    assert torch.equal(carried, x)
    loss = losses.close(carried.sum().to(torch.bfloat16))
    (4 * loss).backward()
    assert torch.equal(x.grad, torch.full((2,), 4.0))
    assert float(weight.grad) == 4 * 3 * 0.25
