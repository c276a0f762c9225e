"""Leaving the layers early: what is left out, what later tokens see of it, and what is counted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.models.decoding.early_exit import EarlyExit, confidence_of
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.evaluating import evaluating
from tests.models.helpers import random_ids
from tests.models.variants import build, choices, name_of

N_LAYER = 4
VARIANTS: list[dict[str, Any]] = [
    *({"attention": choice} for choice in choices("attention") if choice not in ("linear", "delta_net")),
    *({"residual": choice} for choice in choices("residual")),
    {"position": "rotary"},
    {"position": "alibi"},
    {"n_unique": 1},
    {"ffn": {"kind": "moe", "n_expert": 4}},
    *({"loop": {"kind": "recurrent_depth", "core": 1, "injection": injection}} for injection in ("adapter", "add")),
    {"loop": {"kind": "recurrent_depth", "prelude": 0, "core": 2, "coda": 0}},
]


def continued(model: EarlyExit, ids: Tensor, n: int, lengths: Tensor | None = None) -> Tensor:
    """Greedy tokens ``(batch, n)``."""
    with evaluating(model.model):
        decoder = Decoder(model, ids, lengths, n)
        return torch.stack(list(sample(decoder, n, Sampling(temperature=0))), dim=1)


def by_formula(model: GPT, ids: Tensor, n_prompt: int, confidence: float) -> tuple[Tensor, list[int]]:
    """Last hidden states and the layers that each token after the prompt ran, without a cache.

    A token that left keeps its stream, which all layers above see: keys and values follow from it as from any other.
    When a token leaves follows from the sequence up to it.
    """
    left = [N_LAYER] * n_prompt
    for length in range(n_prompt + 1, ids.shape[1] + 1):
        context = model.context(ids[:, :length])
        x, this = model.embed(ids[:, :length], context), N_LAYER
        for layer in range(N_LAYER):
            inside = torch.tensor([layer < n for n in [*left, this]])
            x = torch.where(inside[:, None], model.layer(layer, x, context), x)
            first, second = (
                model.head.few(model.final_norm(model.narrowed(x))[:, -1]).softmax(-1).topk(2).values[0].tolist()
            )
            if layer < this and first - second >= confidence:
                this = layer + 1
        left.append(this)
    return model.final_norm(model.narrowed(x)), left[n_prompt:]


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_tokens_that_leave_early_are_seen_by_later_ones_as_the_formula_says(changes: dict[str, Any]) -> None:
    model, ids = build({**changes, "n_layer": N_LAYER}), random_ids(17, 1, 14)
    depths = set()
    for confidence in (0.02, 0.1, 0.3):
        expected, layers = by_formula(model, ids, 5, confidence)
        early, cache = EarlyExit(model, confidence), model.new_cache(14)
        with torch.no_grad():
            early.next_logits(ids[:, :5], cache=cache)
            for token in range(5, 14):
                logits = early.next_logits(ids[:, token, None], cache=cache)
        assert early.layers_run == layers
        torch.testing.assert_close(logits, model.head.few(expected[:, -1]), rtol=1e-9, atol=1e-9)
        depths |= set(layers)
    assert len(depths) > 1


def test_confidence_is_the_lead_of_the_likeliest_token() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()
    torch.testing.assert_close(confidence_of(logits), torch.tensor([0.2, 0.7]))


def test_a_threshold_that_is_not_reached_changes_nothing() -> None:
    model, ids = build({"n_layer": N_LAYER}), random_ids(17, 2, 6)
    early = EarlyExit(model, 1.0)
    assert torch.equal(continued(early, ids, 9), model.generate(ids, 9, temperature=0)[:, 6:])
    assert early.layers_run == [N_LAYER] * 16
    assert early.layers_per_token == N_LAYER


def test_a_threshold_that_is_always_reached_runs_one_layer_a_token() -> None:
    model = build({"n_layer": N_LAYER})
    early, calls = EarlyExit(model, 1e-9), []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    continued(early, random_ids(17, 2, 6), 9)
    assert early.layers_per_token == 1
    assert len(calls) == 1  # the prompt's


@pytest.mark.parametrize("confidence", [0.05, 0.2])
def test_rows_leave_each_for_itself(confidence: float) -> None:
    model, ids, lengths = build({"n_layer": N_LAYER}), random_ids(17, 3, 7), torch.tensor([7, 3, 5])
    together = EarlyExit(model, confidence)
    tokens, alone_layers = continued(together, ids, 8, lengths), []
    for row, length in enumerate(lengths.tolist()):
        alone = EarlyExit(model, confidence)
        assert torch.equal(continued(alone, ids[row, None, :length], 8)[0], tokens[row])
        alone_layers.append(alone.layers_run)
    assert torch.tensor(together.layers_run).view(7, 3).T.tolist() == alone_layers
    assert len(set(together.layers_run)) > 1


def test_past_the_end_of_learned_positions_all_layers_run_and_nothing_is_counted() -> None:
    model, ids = build({"n_layer": N_LAYER, "block_size": 8}), random_ids(17, 1, 6)
    early = EarlyExit(model, 1e-9)
    continued(early, ids, 10)
    assert early.layers_run == [1, 1]


def test_before_a_token_was_read_the_mean_is_all_layers() -> None:
    assert EarlyExit(build({"n_layer": N_LAYER}), 0.5).layers_per_token == N_LAYER


@pytest.mark.parametrize("confidence", [0, -0.1, 1.01])
def test_a_threshold_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(CallError, match=f"exit_confidence is {confidence}; it must be a number above 0 and at most 1"):
        EarlyExit(build({}), confidence)


def test_a_layer_without_keys_is_refused() -> None:
    with pytest.raises(CallError, match="keeps keys and values, and layer 1 is a LinearAttention"):
        EarlyExit(build({"attention": ["full", "linear"]}), 0.5)
