"""What other rooms rely on: names of models, stages of a pipeline, the layout of logits on a device."""

from unittest import mock

import pytest
import torch

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.base import models
from lightning_gpt.models.context import Context
from tests.models.helpers import random_ids, randomise
from tests.models.variants import build

SIZES = {"n_layer": 4, "n_head": 2, "dim": 16, "block_size": 24, "vocab_size": 17}


def test_a_model_whose_class_was_renamed_is_described_as_what_it_is() -> None:
    """``fully_shard`` makes a class ``FSDPGPT`` of a ``GPT``."""
    model = GPT(GPTConfig(**SIZES))
    model.__class__ = type("FSDPGPT", (GPT,), {})
    described = model.describe()
    assert described["name"] == "gpt"
    assert type(models.build(described)) is GPT


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "rotary"},
        {"residual": "initial", "position": "rotary"},
        {"attention": ["value_residual", {"kind": "window", "window": 5}]},
        {"attention": "neutreno", "position": "alibi"},
    ],
    ids=str,
)
def test_two_stages_that_pass_on_the_stream_and_what_is_carried_are_the_whole(changes: dict[str, object]) -> None:
    """Each stage makes its own masks, biases and rotations; what layers made of the stream comes along."""
    model, ids = build({**SIZES, **changes}), random_ids(17, 2, 13)
    whole = model.hidden(ids)
    first: Context = model.context(ids)
    x = model.embed(ids, first)
    for layer in (0, 1):
        x = model.layer(layer, x, first)
    second: Context = model.context(ids)
    second.shared.carried.update(first.shared.carried)
    for layer in (2, 3):
        x = model.layer(layer, x, second)
    torch.testing.assert_close(model.finish(x, second), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocab_size", [50257, 50304, 17])
def test_rows_of_half_precision_logits_are_aligned(vocab_size: int) -> None:
    """A GPU's matrix units ask for rows of multiples of 16 bytes; 50,257 values of 2 bytes are not."""
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with torch.device("meta"), mock.patch.object(torch, "mm", wraps=torch.mm) as product:
        model = GPT(GPTConfig(**{**SIZES, "vocab_size": vocab_size})).to(torch.bfloat16)
        model.loss(ids, ids).backward()
    outputs = [call.kwargs["out"] for call in product.call_args_list if "out" in call.kwargs]
    logits = [rows for rows in outputs if rows.shape[-1] == vocab_size]
    assert logits
    assert all(rows.stride() == (-(-vocab_size // 64) * 64, 1) for rows in logits)


def test_so_are_those_on_a_cpu() -> None:
    model, ids = randomise(GPT(GPTConfig(**SIZES))).to(torch.bfloat16), random_ids(17, 2, 8)
    with mock.patch.object(torch, "mm", wraps=torch.mm) as product:
        model.loss(ids, ids).backward()
    assert product.call_args_list[0].kwargs["out"].stride() == (64, 1)
