"""Rows of a batch that are read on, left out or doubled, in every variant: as if they had been alone from the start."""

from typing import Any

import pytest
import torch

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.sampling import Decoder
from tests.models.variants import CONFIGS, build


def model_of(config: dict[str, Any]) -> LanguageModel:
    torch.manual_seed(0)  # of the tokens that a test draws, too
    return build(config)


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        *(pytest.param(config, torch.tensor([3, 5, 1]), id=f"{config}-unequal") for config in CONFIGS),
        *(pytest.param(config, None, id=f"{config}-equal") for config in CONFIGS[::4]),
    ],
)
def test_rows_go_on_as_if_alone(config: dict[str, Any], lengths: torch.Tensor | None) -> None:
    """Rows of equal length take a shorter way that is the same in all variants, so that a quarter of them shows it."""
    model, ids, order = model_of(config), torch.randint(17, (3, 5)), torch.tensor([2, 0, 0])
    tokens = torch.randint(17, (6, 3))
    with torch.no_grad():
        decoder = Decoder(model, ids, lengths, 6, same_rows=False)
        if not decoder.can_select:
            assert config.get("memory", "none") != "none"
            return
        for step in tokens[:3]:
            decoder.feed(step)
        decoder.select(order)
        for step in tokens[3:]:
            decoder.feed(step)
        for row, before in enumerate(order.tolist()):
            length = 5 if lengths is None else int(lengths[before])
            alone = Decoder(model, ids[before, None, :length], None, 6, same_rows=False)
            for step in tokens[:3]:
                alone.feed(step[before, None])
            for step in tokens[3:]:
                alone.feed(step[row, None])
            torch.testing.assert_close(decoder.logits[row], alone.logits[0], rtol=1e-9, atol=1e-10)
    if config.get("memory", "none") != "none":
        pytest.fail("a model with memory says that its rows can be selected")
