"""What a layer is worth: against edited weights, a run by hand, and blocks that do nothing or everything."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis.interventions import text_loss
from lightning_gpt.analysis.layer_diagnostics import measure
from lightning_gpt.analysis.layer_values import Removal, layer_value, layer_values
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.head import IGNORED
from tests.analysis.copying_model import copying_model
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, build, name_of

IDS = random_ids(11, 2, 6)


def gpt(**options: Any) -> GPT:
    return randomise(GPT(GPTConfig(n_layer=3, n_head=2, dim=8, block_size=6, vocab_size=11, **options)).double()).eval()


def test_skipping_a_block_equals_zeroing_what_its_branches_write() -> None:
    model = gpt()
    values, before = layer_values(model, IDS), text_loss(model, IDS)
    for layer in range(3):
        without = copy.deepcopy(model)
        without.blocks[layer].zero_branches()
        assert values[layer] == pytest.approx(text_loss(without, IDS) - before, rel=1e-10, abs=1e-12)
        assert abs(values[layer]) > 1e-6


@pytest.mark.parametrize("residual", ["pre", "post", "initial"])
def test_both_removals_equal_a_run_by_hand(residual: str) -> None:
    model = gpt(residual=residual)
    read = IDS[:, :-1]
    with torch.no_grad():
        context = model.context(read)
        streams = [model.embed(read, context)]
        for layer in range(3):
            streams.append(model.layer(layer, streams[-1], context))

    def loss(removed: int | None, added: Tensor | float = 0.0) -> float:
        with torch.no_grad():
            context = model.context(read)
            x = model.embed(read, context)
            for layer in range(3):
                after = model.layer(layer, x, context)
                x = x + added if layer == removed else after
            return float(model.head.token_nll(model.finish(x, context), IDS[:, 1:]).mean())

    skipped, averaged = layer_values(model, IDS), layer_values(model, IDS, "mean")
    for layer in range(3):
        mean = (streams[layer + 1] - streams[layer]).mean(dim=(0, 1))
        assert skipped[layer] == pytest.approx(loss(layer) - loss(None), rel=1e-10, abs=1e-12)
        assert averaged[layer] == pytest.approx(loss(layer, mean) - loss(None), rel=1e-10, abs=1e-12)


def test_a_block_that_does_nothing_is_worth_nothing_and_one_that_copies_is_worth_much() -> None:
    model = gpt()
    model.blocks[1].zero_branches()
    assert layer_values(model, IDS)[1] == layer_values(model, IDS, "mean")[1] == 0.0
    repeated = torch.cat([(torch.arange(12)[None] % 3) + start for start in range(0, 60, 3)])
    for removal in ("skip", "mean"):
        assert min(layer_values(copying_model(), repeated, removal)) > 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", CONFIGS[::3], ids=name_of)
def test_every_variant_has_layer_values(changes: dict[str, Any]) -> None:
    model = build(changes)
    values = layer_values(model, random_ids(17, 2, model.trace_limit or 6))
    assert len(values) == len(model.block_views())
    assert all(value == value for value in values)


def test_the_diagnostic_is_the_value_over_the_probe_and_only_on_request() -> None:
    model = gpt()
    probe = Probe.take(model, IDS[:, :-1], IDS[:, 1:])
    assert measure(probe, requested=True)["layer_value"] == pytest.approx(layer_values(model, IDS), rel=1e-9)
    assert "layer_value" not in measure(probe)
    cut = IDS[:, 1:].clone()
    cut[1] = IGNORED
    of_one = measure(Probe.take(model, IDS[:, :-1], cut), requested=True)["layer_value"]
    assert of_one == pytest.approx(layer_values(model, IDS[:1]), rel=1e-9)
    by_hand = Probe(model, probe.targets, probe.streams, probe.patterns)
    assert measure(by_hand, requested=True)["layer_value"] == [None] * 3


def test_the_one_head_model_and_a_text_too_short() -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=11)).double())
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.attention.w_0.weight.zero_()
    assert layer_values(model, IDS) == pytest.approx([text_loss(without, IDS) - text_loss(model, IDS)], rel=1e-10)
    with pytest.raises(CallError, match="the text has 1 token and a loss needs 2"):
        layer_values(model, IDS[:, :1], "mean")


def test_one_block_is_that_of_all_and_one_that_is_not_there_is_refused() -> None:
    model: LanguageModel = gpt()
    for removal in get_args(Removal):
        assert [layer_value(model, IDS, layer, removal) for layer in range(3)] == layer_values(model, IDS, removal)
        with pytest.raises(CallError, match="the text has 1 token and a loss needs 2"):
            layer_value(model, IDS[:, :1], 0, removal)
        for layer in (-1, 3):
            with pytest.raises(CallError, match=rf"layer is {layer}; the model has 3 \(allowed: 0 to 2\)"):
                layer_value(model, IDS, layer, removal)
