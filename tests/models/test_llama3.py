"""The frequencies of Llama 3.1 against their formula and against transformers, and what cannot be."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.positions.llama3 import Llama3Positions
from lightning_gpt.models.positions.rotary import RotaryPositions
from tests.reference import parts

DEVICE = torch.get_default_device()
SETTINGS = [
    # width, base, factor, original, fast, slow
    (128, 500000.0, 8.0, 8192, 4.0, 1.0),
    (64, 500000.0, 32.0, 8192, 4.0, 1.0),
    (16, 10000.0, 4.0, 64, 8.0, 2.0),
    (8, 100.0, 3.0, 16, 2.0, 0.5),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_frequencies_are_those_of_the_formula_and_of_transformers(setting: tuple[Any, ...]) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    width, base, factor, original, fast, slow = setting
    found = Llama3Positions(16, base, factor, original, fast, slow).frequencies(width, DEVICE)
    np.testing.assert_allclose(found.numpy(force=True), parts.llama3_frequencies(*setting), rtol=1e-6)
    config = transformers.LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": original,
            "high_freq_factor": fast,
            "low_freq_factor": slow,
        },
    )
    theirs, _ = rope.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    torch.testing.assert_close(found, theirs, rtol=2e-6, atol=0)


def test_a_factor_of_one_changes_nothing() -> None:
    changed = Llama3Positions(16, 10000.0, 1.0).frequencies(8, DEVICE)
    torch.testing.assert_close(changed, RotaryPositions().frequencies(8, DEVICE), rtol=1e-6, atol=0)


def test_the_length_trained_on_is_the_block_size_unless_it_is_given() -> None:
    assert Llama3Positions(64).original == 64
    assert Llama3Positions(64, original=32).original == 32


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(CallError, match=r"position slow is 4.0; it must be below fast, which is 4.0"):
        GPT(GPTConfig(position={"kind": "llama3", "slow": 4.0}))
