"""A model that is made on the meta device and filled later has the numbers of one that is made directly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.models.materialise import materialise
from tests.models.helpers import random_ids
from tests.models.variants import CONFIGS, SIZES, fresh, name_of


def assert_same_model(filled: LanguageModel, direct: LanguageModel) -> None:
    """Every number is the same, also of what no state dict holds, and so is what the model computes."""

    def numbers(model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters()) | dict(model.named_buffers())

    assert filled.state_dict().keys() == direct.state_dict().keys()
    torch.testing.assert_close(numbers(filled), numbers(direct), rtol=0, atol=0)
    assert all(weight.device == torch.get_default_device() and weight.requires_grad for weight in filled.parameters())
    ids = random_ids(17, 2, 8)
    with torch.no_grad():
        torch.testing.assert_close(filled.eval()(ids), direct.eval()(ids), rtol=0, atol=0)


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
def test_a_model_filled_after_the_meta_device_is_the_one_made_directly_with_the_same_seed(
    changes: dict[str, Any],
) -> None:
    torch.manual_seed(3)
    direct = fresh(changes)
    with torch.device("meta"):
        filled = fresh(changes)
    assert all(weight.is_meta for weight in filled.parameters())
    torch.manual_seed(3)
    materialise(filled, torch.get_default_device())
    assert_same_model(filled, direct)


def test_the_single_head_can_be_filled_later_too() -> None:
    config = SingleHeadConfig(dim=8, block_size=8, vocab_size=17)
    torch.manual_seed(3)
    direct = SingleHeadModel(config)
    with torch.device("meta"):
        filled = SingleHeadModel(config)
    torch.manual_seed(3)
    materialise(filled, torch.get_default_device())
    assert_same_model(filled, direct)


def test_an_untied_head_and_projections_that_start_at_zero_are_filled_too() -> None:
    changes = {"tie_embeddings": False, "zero_projections": True}
    torch.manual_seed(3)
    direct = fresh(changes)
    with torch.device("meta"):
        filled = fresh(changes)
    torch.manual_seed(3)
    materialise(filled, torch.get_default_device())
    assert_same_model(filled, direct)


class Gain(nn.Module):
    """A module with a parameter that nothing fills again."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def test_a_module_that_cannot_fill_itself_is_refused_by_name_and_the_model_is_left_alone() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(**SIZES))
        model.blocks[1].add_module("extra", Gain())
    with pytest.raises(CallError, match=r"^blocks\.1\.extra \(Gain\) has parameters or buffers of its own but no"):
        materialise(model, torch.get_default_device())
    assert all(weight.is_meta for weight in model.parameters())


def test_a_model_whose_weights_came_from_another_is_refused() -> None:
    small = int8(GPT(GPTConfig(**SIZES)))
    with pytest.raises(CallError, match=r"\(Int8Linear\) has parameters or buffers of its own but no reset_parameters"):
        materialise(small, torch.get_default_device())
