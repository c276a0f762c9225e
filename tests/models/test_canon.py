"""Canon layers: the formula at each place, what a cache keeps of them, and what is refused."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.block import Block
from lightning_gpt.models.canon import CanonLayers
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.kv_cache import LOOKAHEAD
from lightning_gpt.models.norms import LayerNorm
from lightning_gpt.models.positions.scheme import NoPositions
from lightning_gpt.models.record import record
from lightning_gpt.models.short_convolution import ShortConvolution
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.suited import require_suited
from tests.models.helpers import random_ids, randomise
from tests.models.layers import normal, of_documents
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build, fresh
from tests.reference import canon

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
State = Mapping[str, Array]


def block() -> Block:
    """A block of width 6 with 2 heads."""
    context: dict[str, Any] = {"dim": 6, "n_head": 2, "bias": True, "dropout": 0.0, "backend": "sdpa"}
    attention = attentions.make("full", **context, qk_norm="none", layer=0, positions=NoPositions())
    return Block(attention, ffns.make("gelu", dim=6, bias=True), partial(LayerNorm, 6), 0.0)


def reference(h: Array, state: State) -> Array:
    return canon.block(h, state, 2)


@pytest.mark.parametrize("places", ["A", "B", "C", "D", "DA", "ABCD"])
def test_a_block_and_its_gradient_equal_the_formula(places: str) -> None:
    made = block()
    CanonLayers(6, 0, places).add_to(made)
    names = {"A": "attention_convolution", "B": "attention.convolution", "C": "ffn_convolution", "D": "ffn.convolution"}
    convolved = {name for name, _ in made.named_parameters() if "convolution" in name}
    assert convolved == {f"{names[place]}.weight" for place in places}
    assert_equals_reference(randomise(made).double(), reference, normal(2, 9, 6))


@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_text_shorter_than_the_convolution(time: int) -> None:
    made = block()
    CanonLayers(6, 0).add_to(made)
    assert_equals_reference(randomise(made).double(), reference, normal(1, time, 6))


def test_a_long_text_in_pieces_of_any_length_is_the_text_at_once() -> None:
    """Longer than what is kept, by a token at a time and by more than can be taken back; some are taken back."""
    model, ids = build({"convolution": "canon", "position": "rotary"}), random_ids(17, 2, 90)
    cache, read = model.new_cache(90), []
    with torch.no_grad():
        wanted = model.hidden(ids)
        for piece in ids.split([1, 1, 40, 1, 1, 1, 3, 25, 1, 16], dim=1):
            read.append(model.hidden(piece, cache=cache))
            before = cache.length
            model.hidden(random_ids(17, 2, LOOKAHEAD, seed=before), cache=cache)
            cache.truncate(before)
    torch.testing.assert_close(torch.cat(read, dim=1), wanted, **CLOSE)


def test_rows_of_unequal_length_go_on_far_as_if_alone() -> None:
    model, ids, lengths = build({"convolution": "canon", "position": "rotary"}), random_ids(17, 3, 30), [30, 1, 7]
    together = model.generate(ids, 40, lengths=torch.tensor(lengths), temperature=0)
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row, None, :length], 40, temperature=0)
        assert together[row, : length + 40].tolist() == alone[0].tolist()


def test_what_is_not_finite_in_one_document_stays_there() -> None:
    layer, x = randomise(ShortConvolution(6, 4, "A")).double(), normal(1, 12, 6)
    context = of_documents(torch.tensor([[0] * 5 + [1] * 7]))
    wanted = layer(x, context)[:, 5:]
    x[0, 4] = torch.inf
    assert torch.equal(layer(x, context)[:, 5:], wanted)


def test_it_starts_as_torch_starts_a_convolution_and_its_outputs_can_be_recorded() -> None:
    torch.manual_seed(0)
    model = fresh({"convolution": "canon"})
    weights = torch.cat([p.flatten() for name, p in model.named_parameters() if "convolution" in name])
    assert 0.49 < weights.abs().max() <= 0.5
    with record(model, "*convolution.output") as trace:
        model(random_ids(17, 1, 4))
    assert {name.removeprefix("blocks.1."): value.shape[-1] for name, value in trace.items() if "blocks.1" in name} == {
        "attention_convolution.output": 16,
        "attention.convolution.output": 48,
        "ffn_convolution.output": 16,
        "ffn.convolution.output": 64,
    }


def test_its_products_are_counted() -> None:
    positions, plain, sizes = torch.arange(24), fresh({}), {"dim": 16, "qkv": 48, "hidden": 64}
    counted = fresh({"convolution": {"kind": "canon", "width": 3}}).flops(positions) - plain.flops(positions)
    assert counted == 2 * 2 * 3 * (2 * sizes["dim"] + sizes["qkv"] + sizes["hidden"])


def test_in_mixed_and_half_precision_it_computes_nearly_the_same() -> None:
    model, ids = build({"convolution": "canon"}).float(), random_ids(17, 2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7] * 2)
    for given in (None, documents):
        wanted = model(ids, given)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(ids, given).float(), wanted, rtol=0.1, atol=0.3)
    low = model.bfloat16()
    low.loss(ids, ids).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"convolution": {"kind": "canon", "places": "AE"}},
            "convolution places is 'AE'; it must be different letters",
        ),
        ({"convolution": {"kind": "canon", "places": "AA"}}, "it must be different letters of ABCD, such as AC"),
        ({"convolution": {"kind": "canon", "places": ""}}, "it must be different letters of ABCD, such as AC"),
        (
            {"convolution": {"kind": "canon", "width": 1}},
            "convolution width is 1; it must be a whole number from 2 to 16",
        ),
        (
            {"convolution": "canon", "attention": ["full", "delta_net"]},
            "GatedDeltaNet in layer 1 has no product of queries, keys and values for place B: use places ACD",
        ),
        (
            {"convolution": {"kind": "canon", "places": "D"}, "ffn": "moe"},
            "in layer 0 has no single product before its activation for place D: use convolution none",
        ),
        ({"convolution": "canon", "ffn": "none"}, "layer 0 has no feed-forward network for place C: use places AB"),
        ({"convolution": "canon", "token_routing": "mixture_of_depths"}, "convolution and token_routing cannot be"),
        ({"convolution": "canon", "memory": "segment", "position": "rotary"}, "use convolution none"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        fresh(changes)
    assert message in str(refused.value)


def test_layouts_that_divide_rows_or_units_and_early_exit_are_refused() -> None:
    model = GPT(GPTConfig(**{**SIZES, "convolution": {"kind": "canon", "places": "C"}}))
    with pytest.raises(CallError, match=r"the convolution of a block cannot be divided: use parallel\.shard"):
        require_suited(model, Layout(tensor=2))
    with pytest.raises(CallError, match=r"blocks\.0\.ffn_convolution \(ShortConvolution\) needs whole rows"):
        require_suited(model, Layout(context=2))
    with pytest.raises(CallError, match="this model's convolution mixes each with those before it"):
        EarlyExit(model, 0.5)
