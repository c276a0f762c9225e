"""What must hold for every registered variant: causality, cache, checkpointing, documents, training."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.training.optim import adamw
from tests.models import checks
from tests.models.helpers import random_ids
from tests.models.variants import CONFIGS, PARTS, SIZES, build, config, fresh, name_of

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
every_variant = pytest.mark.parametrize("changes", CONFIGS, ids=name_of)


@every_variant
def test_no_logit_depends_on_a_later_token(changes: dict[str, Any]) -> None:
    checks.no_logit_depends_on_a_later_token(changes)


@every_variant
def test_both_backends_are_the_same_function(changes: dict[str, Any]) -> None:
    checks.both_backends_are_the_same_function(changes)


@every_variant
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 1, 4, 2, 1, 3], [20]])
def test_reading_in_pieces_gives_the_logits_of_one_reading(changes: dict[str, Any], pieces: list[int]) -> None:
    checks.reading_in_pieces_gives_the_logits_of_one_reading(changes, pieces)


@every_variant
def test_prompts_of_unequal_length_go_on_as_if_alone(changes: dict[str, Any]) -> None:
    model, ids, lengths = build(changes), random_ids(17, 3, 9), torch.tensor([9, 2, 5])
    together = model.generate(ids, 12, lengths=lengths, temperature=0)
    for row, length in enumerate(lengths.tolist()):
        alone = model.generate(ids[row, None, :length], 12, temperature=0)
        assert together[row, : length + 12].tolist() == alone[0].tolist()


@every_variant
def test_tokens_that_were_read_can_be_taken_back(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 1, 18)
    cache = model.new_cache(18)
    if not cache.can_truncate:
        pytest.skip("this variant's state cannot be taken back, and says so")
    with torch.no_grad():
        model.hidden(ids[:, :12], cache=cache)
        model.hidden(random_ids(17, 1, 3, seed=5), cache=cache)
        cache.truncate(12)
        rest = model.hidden(ids[:, 12:], cache=cache)
    torch.testing.assert_close(rest, model.hidden(ids)[:, 12:], **CLOSE)


@every_variant
@pytest.mark.parametrize("rounded", [int8, lambda model: copy.deepcopy(model).bfloat16()], ids=["int8", "bf16"])
def test_rounded_weights_generate(changes: dict[str, Any], rounded: Callable[[GPT], GPT]) -> None:
    """Also behind matrices that a layer takes apart or multiplies itself."""
    model = build(changes).float()
    small, ids = rounded(model), random_ids(17, 1, 9)
    with torch.no_grad():
        exact, near = model.next_logits(ids).softmax(-1), small.next_logits(ids).float().softmax(-1)
    assert (exact - near).abs().sum() < 0.2
    assert small.generate(ids, 4, temperature=0).shape == (1, 13)


@every_variant
def test_checkpointing_changes_no_gradient(changes: dict[str, Any]) -> None:
    ids, gradients = random_ids(17, 2, 13), {}
    for kind in ("none", "block", "attention"):
        model = build(changes, checkpointing=kind, dropout=0.3).train()
        torch.manual_seed(0)
        model.loss(ids, ids.roll(-1, 1)).backward()
        gradients[kind] = [parameter.grad for parameter in model.parameters()]
    for kind in ("block", "attention"):
        torch.testing.assert_close(
            gradients["none"], gradients[kind], **CLOSE, msg=lambda said, kind=kind: f"{kind}: {said}"
        )


@every_variant
def test_documents_kept_apart_are_computed_as_if_alone(changes: dict[str, Any]) -> None:
    checks.documents_kept_apart_are_computed_as_if_alone(changes)


@every_variant
def test_masks_that_layers_share_are_those_that_each_would_make(changes: dict[str, Any]) -> None:
    checks.masks_that_layers_share_are_those_that_each_would_make(changes)


@every_variant
def test_every_weight_is_trained_and_a_small_task_is_learnt(changes: dict[str, Any]) -> None:
    """A sequence that repeats with period 3 is learnt to well below the loss of not looking.

    Less is asked where there is no residual path: that it can hardly learn is what it is there to show. So it is of a
    stream of length 1 whose logits have no factor: they grow only as the embeddings do.
    """
    torch.manual_seed(0)
    model = fresh(changes)
    start = torch.randint(17, (8, 3), generator=torch.Generator(torch.get_default_device()).manual_seed(0))
    rows = start.repeat(1, 8)
    optimizer = adamw(model, lr=1e-2)
    first = float(model.loss(rows[:, :-1], rows[:, 1:]).detach())
    rule = "" if changes.get("logit_scale") else model.config.residual["kind"]
    learnt = {"none": 1.0, "spherical": 0.7}.get(rule, 0.5) * first
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        if loss.detach() < learnt:
            break
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert loss.detach() < learnt


@every_variant
def test_a_variant_is_rebuilt_from_its_description(changes: dict[str, Any]) -> None:
    checks.a_variant_is_rebuilt_from_its_description(changes)


@pytest.mark.parametrize("changes", [c for c in CONFIGS if c.get("position") not in (None, "learned")], ids=name_of)
def test_with_all_but_learned_positions_a_sequence_may_be_longer_than_block_size(changes: dict[str, Any]) -> None:
    model, ids = build(changes, block_size=8), random_ids(17, 1, 50)
    assert model(ids).shape == (1, 50, 17)
    assert model.generate(ids, 5, temperature=0).shape == (1, 55)


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nonsense", "is 'nonsense'; it must be one of"),
        ({"window": 3}, "it must be a name or a mapping with 'kind'"),
        (7, "it must be a name or a mapping"),
    ],
)
def test_a_variant_that_does_not_exist_is_refused_with_those_that_do(part: str, choice: Any, message: str) -> None:
    with pytest.raises(CallError, match=message):
        config({part: choice})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": {"kind": "full", "windw": 3}},
            "attention 'full' has no option 'windw'; its options are n_kv_head",
        ),
        ({"attention": "grouped"}, "attention 'grouped' needs the option 'n_kv_head': {kind: grouped, n_kv_head: ...}"),
        ({"attention": []}, "attention is an empty list"),
        ({"norm": {"kind": "none", "eps": 1}}, "norm 'none' has no option 'eps'; it has none"),
        ({"checkpointing": "all"}, "checkpointing is 'all'; it must be one of none, block, attention"),
    ],
)
def test_wrong_options_are_refused_when_the_config_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPTConfig(**{**SIZES, **changes})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"kind": "full", "n_kv_head": 3}}, "n_kv_head is 3; it must divide n_head, which is 4"),
        (
            {"position": {"kind": "rotary", "factor": 0.5}},
            "position factor is 0.5; it must be a number from 1 to 1,000,000",
        ),
        ({"position": {"kind": "rotary", "extension": "yarn"}}, "it must be one of linear, ntk"),
        (
            {"position": "rotary", "dim": 12},
            "rotary positions act on pairs of dimensions, so a head's width must be even; it is 3",
        ),
        (
            {"position": {"kind": "t5", "max_distance": 3}},
            "position max_distance is 3; it must be more than half of n_bucket, which is 32",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_model_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, **changes}))
    assert message in str(refused.value)


def test_a_pattern_is_repeated_down_the_layers() -> None:
    model = GPT(GPTConfig(**{**SIZES, "n_layer": 5, "attention": ["multi_query", "full"]}))
    kinds = [type(block.attention).__name__ for block in model.blocks]
    assert kinds == ["MultiQueryAttention", "MultiHeadAttention"] * 2 + ["MultiQueryAttention"]
