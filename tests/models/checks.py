"""What must hold for any variant, also for one that is only now added to its registry."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch

from lightning_gpt.models.base import models
from lightning_gpt.models.context import Once, Shared
from tests.models.helpers import random_ids
from tests.models.variants import build

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 9, [0] * 6 + [1] * 1 + [2] * 6])


class MadeEachTime(Once[Any]):
    """Keeps nothing for later layers."""

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return make()


def no_logit_depends_on_a_later_token(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 1, 14)
    logits = model(ids)
    for position in range(1, 14):
        changed = ids.clone()
        changed[0, position:] = (changed[0, position:] + 1) % 17
        torch.testing.assert_close(model(changed)[:, :position], logits[:, :position], **CLOSE)


def both_backends_are_the_same_function(changes: dict[str, Any]) -> None:
    ids = random_ids(17, 2, 13)
    by_kernel, by_formula = (build(changes, attention_backend=backend)(ids) for backend in ("sdpa", "manual"))
    torch.testing.assert_close(by_kernel, by_formula, **CLOSE)


def reading_in_pieces_gives_the_logits_of_one_reading(changes: dict[str, Any], pieces: list[int]) -> None:
    """Pieces of 20 tokens, read with a cache one after the other."""
    model, ids = build(changes), random_ids(17, 2, 20)
    cache = model.new_cache(20)
    with torch.no_grad():
        hidden = torch.cat([model.hidden(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(hidden, model.hidden(ids), **CLOSE)


def documents_kept_apart_are_computed_as_if_alone(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 2, 13)
    logits = model(ids, DOCUMENTS)
    for row in range(2):
        for document in DOCUMENTS[row].unique():
            places = DOCUMENTS[row] == document
            torch.testing.assert_close(logits[row, places], model(ids[row, places][None])[0], **CLOSE)


def masks_that_layers_share_are_those_that_each_would_make(changes: dict[str, Any]) -> None:
    """Also biases, rotations and layouts, with and without documents that are kept apart."""
    model, ids = build(changes), random_ids(17, 2, 13)
    for documents in (None, DOCUMENTS):
        sharing = model.context(ids, documents)
        alone = replace(sharing, shared=Shared(*(MadeEachTime() for _ in range(4))))
        hidden = [model.run(model.embed(ids, context), context) for context in (sharing, alone)]
        torch.testing.assert_close(*hidden, **CLOSE)


def a_variant_is_rebuilt_from_its_description(changes: dict[str, Any]) -> None:
    model = build(changes)
    again = models.build(model.describe()).double().eval()
    assert type(again) is type(model)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    ids = random_ids(17, 1, 10)
    assert torch.equal(again(ids), model(ids))
