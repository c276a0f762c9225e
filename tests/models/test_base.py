"""What all models share: the evaluation context, the last logits, and the description they are rebuilt from."""

import json

import pytest
import torch

from lightning_gpt.models import (
    GPT,
    GPTConfig,
    LanguageModel,
    MemoryGPT,
    MemoryGPTConfig,
    SingleHeadConfig,
    SingleHeadModel,
)
from lightning_gpt.models.base import models
from lightning_gpt.models.evaluating import evaluating
from tests.models.helpers import random_ids, randomise
from tests.reference import formulas

GPT_CONFIG = GPTConfig(n_layer=2, n_head=2, dim=8, block_size=6, vocab_size=11, dropout=0.2, tie_embeddings=False)
SINGLE_HEAD_CONFIG = SingleHeadConfig(dim=8, block_size=6, vocab_size=11)
MEMORY = {"kind": "tokens", "segment": 3, "n_memory": 2}
MEMORY_GPT_CONFIG = MemoryGPTConfig(**{**vars(GPT_CONFIG), "memory": MEMORY})
MODELS = {
    "gpt": lambda: GPT(GPT_CONFIG),
    "memory_gpt": lambda: MemoryGPT(MEMORY_GPT_CONFIG),
    "single_head": lambda: SingleHeadModel(SINGLE_HEAD_CONFIG),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return randomise(MODELS[request.param]()).eval()


def test_the_last_logits_are_the_last_row_of_all_logits(model: LanguageModel) -> None:
    ids = random_ids(11, 3, 5)
    torch.testing.assert_close(model.next_logits(ids), model(ids)[:, -1])


def test_token_nll_of_the_model_averages_to_its_loss_and_equals_the_reference(model: LanguageModel) -> None:
    ids, targets = random_ids(11, 3, 5), random_ids(11, 3, 5, seed=2)
    nll = model.token_nll(ids, targets)
    assert nll.shape == (3, 5)
    assert not nll.requires_grad
    torch.testing.assert_close(nll.mean(), model.loss(ids, targets).detach())
    logits = model(ids).detach().double().flatten(0, 1).numpy(force=True)
    expected = torch.as_tensor(formulas.token_nll(logits, targets.flatten().numpy(force=True))).float()
    torch.testing.assert_close(nll.flatten(), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_has_a_gradient_in_every_parameter(model: LanguageModel) -> None:
    model.loss(random_ids(11, 3, 6), random_ids(11, 3, 6, seed=2)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_a_model_is_rebuilt_from_its_description_and_its_state(model: LanguageModel) -> None:
    description = model.describe()
    assert type(MODELS[description["name"]]()) is type(model)
    assert json.loads(json.dumps(description)) == description
    again = models.build(description).eval()
    assert type(again) is type(model)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    ids = random_ids(11, 2, 6)
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("training", [True, False])
def test_inside_evaluating_there_is_no_dropout_and_no_gradient_and_afterwards_the_mode_is_as_it_was(
    training: bool,
) -> None:
    model = randomise(GPT(GPT_CONFIG)).train(training)
    ids = random_ids(11, 2, 6)
    with evaluating(model):
        logits = model(ids)
        assert not any(module.training for module in model.modules())
        assert not logits.requires_grad
        assert torch.equal(model(ids), logits)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert model(ids).requires_grad


def test_after_an_exception_inside_evaluating_the_mode_is_as_it_was() -> None:
    model = GPT(GPT_CONFIG).train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert model.training
    assert torch.is_grad_enabled()


def test_evaluating_gives_back_a_mode_that_differs_between_the_parts() -> None:
    """Such as a block frozen in evaluation mode while the rest trains."""
    model = GPT(GPT_CONFIG).train()
    model.blocks[0].eval()
    with evaluating(model):
        pass
    assert model.blocks[1].training
    assert not model.blocks[0].training
