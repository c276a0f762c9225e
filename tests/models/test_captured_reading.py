"""Generation over a cache of fixed shape, with the graph replaced by the work that it would replay."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from lightning_gpt.models import LanguageModel, SingleHeadConfig, SingleHeadModel, graph
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.sampling import Decoder
from tests.models.helpers import captured_again, randomise
from tests.models.variants import CONFIGS, build


@pytest.fixture
def captures() -> Iterator[mock.Mock]:
    """The captures, while the CPU counts as a device that has graphs."""
    spy = mock.Mock(side_effect=captured_again)
    with (
        mock.patch.object(graph, "GRAPH_DEVICES", (torch.get_default_device().type,)),
        mock.patch.object(graph, "capture", spy),
    ):
        yield spy


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
def test_the_text_is_the_same(captures: mock.Mock, config: dict[str, Any], lengths: torch.Tensor | None) -> None:
    """Rows of equal length take a shorter way that is the same in all variants, so that a quarter of them shows it."""
    model, ids = model_of(config), torch.randint(17, (3, 5))
    found = model.generate(ids, 18, lengths=lengths, temperature=0)
    states = model.new_cache(8).layers
    assert captures.called == (model.can_be_graphed and all(state.can_be_fixed for state in states))
    with mock.patch.object(graph, "GRAPH_DEVICES", ()):
        assert torch.equal(found, model.generate(ids, 18, lengths=lengths, temperature=0))


def test_the_text_goes_on_past_the_end_of_learned_positions(captures: mock.Mock) -> None:
    model, ids = model_of({"block_size": 12}), torch.randint(17, (2, 4))
    found = model.generate(ids, 30, temperature=0)
    assert captures.called
    with mock.patch.object(graph, "GRAPH_DEVICES", ()):
        assert torch.equal(found, model.generate(ids, 30, temperature=0))


def test_the_single_head(captures: mock.Mock) -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=16, block_size=40, vocab_size=17)), std=0.3).double().eval()
    ids = torch.randint(17, (1, 5))
    found = model.generate(ids, 20, temperature=0)
    assert captures.called
    with mock.patch.object(graph, "GRAPH_DEVICES", ()):
        assert torch.equal(found, model.generate(ids, 20, temperature=0))


def test_a_few_tokens_are_read_without_a_capture(captures: mock.Mock) -> None:
    model_of({}).generate(torch.randint(17, (1, 5)), 4, temperature=0)
    assert not captures.called


def test_layers_that_depend_on_the_token_are_not_captured(captures: mock.Mock) -> None:
    model = model_of({})
    with torch.no_grad():
        Decoder(EarlyExit(model, 0.9), torch.randint(17, (1, 5)), None, 18)  # type: ignore[arg-type]
    assert not captures.called
