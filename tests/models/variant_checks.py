"""What must hold for any variant, registered by the package or by a user."""

from collections.abc import Sequence
from typing import Any

import torch

from lightning_gpt.models.base import models
from tests.models.helpers import random_ids
from tests.models.variants import build

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


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


def reading_in_pieces_gives_the_logits_of_one_reading(changes: dict[str, Any], pieces: Sequence[int]) -> None:
    model, ids = build(changes), random_ids(17, 2, 20)
    cache = model.new_cache(20)
    with torch.no_grad():
        hidden = torch.cat([model.hidden(piece, cache=cache) for piece in ids.split(list(pieces), dim=1)], dim=1)
    torch.testing.assert_close(hidden, model.hidden(ids), **CLOSE)


def documents_kept_apart_are_computed_as_if_alone(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 2, 13)
    documents = torch.tensor([[0] * 4 + [1] * 9, [0] * 6 + [1] * 1 + [2] * 6])
    logits = model(ids, documents)
    for row in range(2):
        for document in documents[row].unique():
            places = documents[row] == document
            torch.testing.assert_close(logits[row, places], model(ids[row, places][None])[0], **CLOSE)


def a_variant_is_rebuilt_from_its_description(changes: dict[str, Any]) -> None:
    model = build(changes)
    again = models.build(model.describe()).double().eval()
    assert type(again) is type(model)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    ids = random_ids(17, 1, 10)
    assert torch.equal(again(ids), model(ids))
