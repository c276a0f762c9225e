"""Blocks that some tokens pass by: which go through, what they see, what it costs, and what the trace shows of it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.formula import CausalAttention
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.from_trained.growth import deepen
from lightning_gpt.models.wrappers.chosen_tokens import ChosenKeyValues
from lightning_gpt.models.wrappers.token_routing import RoutedBlock
from lightning_gpt.planning.flops import flops_per_token, training_flops_per_token
from lightning_gpt.training.mup import Factors, MuP, factors
from lightning_gpt.training.optim import adamw
from tests.models.collected_losses import CollectedLosses
from tests.models.helpers import arrays, random_ids
from tests.models.variants import ROUTED, SIZES, build, name_of
from tests.reference import formulas
from tests.reference import mixture_of_depths as reference

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
TIME = 14
BY_PREDICTOR = {**ROUTED, "decision": "predictor"}
PARTS: list[dict[str, Any]] = [
    {},
    {"position": "rotary"},
    {"position": "alibi"},
    {"position": "t5", "qk_norm": "rms"},
    {"attention": {"kind": "window", "window": 3}, "position": "alibi"},
    {"attention": {"kind": "global_window", "window": 3, "n_global": 2}},
    {"attention": {"kind": "strided", "stride": 4}, "position": "rotary"},
    {"attention": {"kind": "grouped", "n_kv_head": 2}},
    {"attention": "linear", "position": "rotary"},
    {"attention": "differential"},
    {"attention": "shaped"},
    {"attention": "sink"},
    {"attention": "value_embedding"},
    *({"residual": rule} for rule in ("sandwich", "layerscale", "rezero", "parallel")),
    {"ffn": {"kind": "moe", "n_expert": 4}},
]


# --- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "time", "chosen"), [(0.07, 100, 7), (0.14, 50, 7), (0.3, 7, 3)])
def test_the_tokens_that_go_through_are_not_one_more_for_rounding(capacity: float, time: int, chosen: int) -> None:
    model = build({"token_routing": {**ROUTED, "capacity": capacity}})
    routers = [block.router for block in model.blocks if isinstance(block, RoutedBlock)]
    assert {router.n_chosen(time) for router in routers} == {chosen}


@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.0])
def test_training_is_the_formula_with_the_best_of_each_row(capacity: float) -> None:
    model, ids = build({"token_routing": {**ROUTED, "capacity": capacity}}).train(), random_ids(17, 3, TIME)
    hidden, state = model.hidden(ids), arrays(model)
    for row in range(3):
        h = formulas.embedding(state, ids[row].tolist())
        for layer in range(2):
            of_block = formulas.below(state, f"blocks.{layer}")
            chosen = reference.best(reference.scores(h, of_block), capacity)
            h = reference.routed(h, of_block, SIZES["n_head"], chosen)
        expected = formulas.layer_norm(h, state["final_norm.weight"], state["final_norm.bias"])
        np.testing.assert_allclose(hidden[row].numpy(force=True), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("routing", [ROUTED, BY_PREDICTOR], ids=["router", "predictor"])
def test_evaluation_is_the_formula_with_each_token_decided_by_itself(routing: dict[str, Any]) -> None:
    model, ids = build({"token_routing": routing}), random_ids(17, 3, TIME)
    logits, state, counts = model(ids), arrays(model), set()
    for row in range(3):
        h = formulas.embedding(state, ids[row].tolist())
        for layer in range(2):
            of_block = formulas.below(state, f"blocks.{layer}")
            decide = reference.scores if routing is ROUTED else reference.predicted
            chosen = [i for i, logit in enumerate(decide(h, of_block)) if logit > 0]
            counts.add(len(chosen))
            h = reference.routed(h, of_block, SIZES["n_head"], chosen) if chosen else h
        h = formulas.layer_norm(h, state["final_norm.weight"], state["final_norm.bias"])
        expected = formulas.linear(h, state["token_embedding.weight"])
        np.testing.assert_allclose(logits[row].numpy(force=True), expected, rtol=1e-9, atol=1e-9)
    assert len(counts) > 1  # rows of unequal numbers


@contextmanager
def only(attention: CausalAttention, chosen: Tensor) -> Iterator[None]:
    """Inside, a token of a row sees the chosen ``(time,)`` alone, of those that its kind lets it see; and itself."""
    visible = attention.visible

    def fewer(rows: Tensor, columns: Tensor) -> Tensor:
        return visible(rows, columns) & (chosen[columns] | (rows == columns))

    attention.visible, attention.sees_all = fewer, lambda time: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        del attention.visible, attention.sees_all


@pytest.mark.parametrize("changes", PARTS, ids=name_of)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_the_chosen_stand_where_they_stood_and_see_each_other_alone(changes: dict[str, Any], mode: str) -> None:
    """The same by whole rows in which what was not chosen is hidden, for every kind of position and attention."""
    model = build({"token_routing": ROUTED, "n_layer": 3, "attention_backend": "manual", **changes}).train(
        mode == "training"
    )
    for seed in range(3):
        ids = random_ids(17, 1, TIME, seed=seed)
        context = model.context(ids)
        x = model.embed(ids, context)
        for layer, block in enumerate(model.blocks):
            scores = x[0] @ block.router.score.weight[0]
            chosen = torch.zeros(TIME, dtype=torch.bool)
            chosen[scores.topk(7).indices if mode == "training" else scores > 0] = True
            with only(block.attention, chosen):
                added = block.unwrapped(x, model.context(ids).at_layer(layer)) - x
            x = torch.where(chosen[:, None], x + scores[:, None] * added, x)
        torch.testing.assert_close(model.hidden(ids), model.final_norm(x), **CLOSE)


# --- what it costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_the_block_is_run_on_the_chosen_alone(checkpointing: str) -> None:
    model = build({"token_routing": {**ROUTED, "capacity": 0.25}, "checkpointing": checkpointing}).train()
    shapes = []
    for block in model.blocks:
        block.unwrapped.ffn.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.hidden(random_ids(17, 2, 13))
    assert shapes == [(2, 4, 16)] * 2


@pytest.mark.parametrize("capacity", [0.125, 0.3, 1.0])
def test_flops_by_formula_are_what_torch_counts(capacity: float) -> None:
    sizes = {**SIZES, "n_layer": 4, "dim": 32, "attention_backend": "manual"}
    model = GPT(
        GPTConfig(**sizes, token_routing={"kind": "mixture_of_depths", "capacity": capacity, "decision": "router"})
    )
    ids = random_ids(17, 2, 24)
    for backward, by_formula in ((False, flops_per_token), (True, training_flops_per_token)):
        with FlopCounterMode(display=False) as counter:
            logits = model(ids)
            if backward:
                logits.sum().backward()
        assert counter.get_total_flops() / ids.numel() == pytest.approx(by_formula(model, 24), rel=1e-12)


def test_flops_in_closed_form() -> None:
    """Two of four blocks at an eighth of the tokens, attention among those; router and predictor on all."""
    sizes: dict[str, Any] = {"n_layer": 4, "n_head": 4, "dim": 64, "block_size": 64, "vocab_size": 100}
    d, t, k = 64, 64, 8
    full = 2 * 12 * d * d + 4 * d * t
    routed = (2 * 12 * d * d + 4 * d * k) * k / t + 2 * d + 2 * (8 * d + 8)
    model = GPT(GPTConfig(**sizes, token_routing={"kind": "mixture_of_depths", "capacity": 0.125}))
    assert flops_per_token(model, t) == 2 * (full + routed) + 2 * 100 * d


def test_shared_blocks_count_as_often_as_they_run() -> None:
    plain, shared = (GPT(GPTConfig(**{**SIZES, "n_layer": 4, "n_unique": n})) for n in (None, 1))
    assert flops_per_token(shared, 24) == flops_per_token(plain, 24)


def test_a_block_that_no_token_goes_through_is_not_run() -> None:
    model = build({"token_routing": ROUTED})
    with torch.no_grad():
        model.blocks[1].router.score.weight.zero_()
    model.blocks[1].unwrapped.register_forward_hook(lambda *_: pytest.fail("it was run"))
    model(random_ids(17, 2, TIME))


# --- how the decision is learned ------------------------------------------------------------------------------------


def gradients(routing: dict[str, Any], terms_alone: bool = False) -> dict[str, Tensor]:
    model, ids = build({"token_routing": routing}).train(), random_ids(17, 2, TIME)
    if terms_alone:
        losses = CollectedLosses()
        model.hidden(ids, losses=losses)
        sum(losses.terms).backward()
    else:
        model.loss(ids, ids.roll(-1, 1)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_binary_cross_entropy_of_being_among_the_best() -> None:
    model, ids = build({"token_routing": {**BY_PREDICTOR, "loss_weight": 0.3}}).train(), random_ids(17, 1, TIME)
    losses = CollectedLosses()
    model.hidden(ids, losses=losses)
    state = arrays(model)
    h = formulas.embedding(state, ids[0].tolist())
    for layer, term in enumerate(losses.terms):
        of_block = formulas.below(state, f"blocks.{layer}")
        chosen = reference.best(reference.scores(h, of_block), 0.5)
        expected = 0.3 * reference.binary_cross_entropy(reference.predicted(h, of_block), chosen)
        assert float(term.detach()) == pytest.approx(expected, rel=1e-9)
        h = reference.routed(h, of_block, SIZES["n_head"], chosen)
    assert len(losses.terms) == 2


def test_a_predictor_leaves_the_models_own_gradient_alone() -> None:
    light, heavy = (gradients({**BY_PREDICTOR, "loss_weight": weight}) for weight in (0.01, 10.0))
    for name in light:
        changes = 1000 if ".predictor." in name else 1
        torch.testing.assert_close(heavy[name], changes * light[name], **CLOSE)
    assert all(".predictor." in name for name in gradients(BY_PREDICTOR, terms_alone=True))


def test_a_router_that_decides_is_taught_by_both_losses() -> None:
    terms, light, heavy = gradients(ROUTED, True), *(gradients({**ROUTED, "loss_weight": w}) for w in (0.01, 0.02))
    name = "blocks.1.router.score.weight"
    torch.testing.assert_close(heavy[name] - light[name], terms[name], rtol=1e-7, atol=1e-12)
    assert float(terms[name].abs().max()) > 0


@pytest.mark.cpu("its seeds were chosen for the weights that a CPU draws")
@pytest.mark.parametrize("decision", ["router", "predictor"])
def test_the_decision_is_learned(decision: str) -> None:
    """Of five tokens the one before the last is asked for, of the others nothing; which are which is soon decided."""
    torch.manual_seed(1)
    routing = {"kind": "mixture_of_depths", "capacity": 0.25, "decision": decision}
    model = GPT(GPTConfig(**{**SIZES, "dim": 32, "token_routing": routing}))
    optimizer = adamw(model, lr=1e-2)
    for step in range(150):
        ids = random_ids(17, 16, 24, seed=step)
        optimizer.zero_grad()
        model.loss(ids, torch.where(ids < 5, ids.roll(2, 1), 0)).backward()
        optimizer.step()
    ids, through = random_ids(17, 16, 24, seed=999), []
    for training in (True, False):
        with torch.no_grad(), model.train(training).record("blocks.1.router.through") as trace:
            model.hidden(ids)
        through.append(trace["blocks.1.router.through"])
    by_rank, by_token = through
    assert float((by_rank == by_token).double().mean()) > 0.85
    assert 0.15 < float(by_token.double().mean()) < 0.4
    routers = model.blocks[1].router.take_passed()
    assert (int(routers.through), int(routers.tokens)) == (int(by_token.sum()), ids.numel())
    assert model.blocks[1].router.take_passed() is None


# --- the cache -------------------------------------------------------------------------------------------------


def test_the_cache_holds_the_chosen_alone() -> None:
    model, ids = build({"token_routing": ROUTED, "position": "rotary"}), random_ids(17, 2, 60)
    cache = model.new_cache(60)
    with torch.no_grad():
        for piece in ids.split([20, *[1] * 40], dim=1):
            model.hidden(piece, cache=cache)
    with model.record("blocks.*.router.through") as trace:
        model(ids)
    for layer, state in enumerate(cache.layers):
        assert isinstance(state, ChosenKeyValues)
        through = trace[f"blocks.{layer}.router.through"]
        assert state.counts.tolist() == through.sum(dim=1).tolist()
        for row in range(2):
            kept = [place for place in state.places[row].tolist() if place >= 0]
            assert kept == through[row].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "attention", [{"kind": "window", "window": 5}, {"kind": "global_window", "window": 5, "n_global": 9}], ids=str
)
def test_of_a_window_the_cache_forgets_what_no_later_token_sees(attention: dict[str, Any]) -> None:
    model = build({"token_routing": ROUTED, "position": "rotary", "attention": attention})
    ids, cache, hidden = random_ids(17, 3, 240), model.new_cache(240), []
    with torch.no_grad():
        for piece in ids.split([50, *[3] * 20, *[1] * 130], dim=1):
            hidden.append(model.hidden(piece, cache=cache))
            sizes = [int(state.counts.max()) for state in cache.layers if isinstance(state, ChosenKeyValues)]
            assert len(sizes) == 2
            assert max(sizes) <= 2 * cache.layers[0].capacity + 50
    torch.testing.assert_close(torch.cat(hidden, dim=1), model.hidden(ids), **CLOSE)
    assert cache.layers[0].places.shape[1] < 150


# --- the trace -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_the_trace_shows_whole_rows(mode: str) -> None:
    changes = {"n_layer": 2, "n_unique": None, "attention_backend": "manual"}
    model, plain = (
        build({**changes, **routing}).train(mode == "training") for routing in ({"token_routing": ROUTED}, {})
    )
    ids = random_ids(17, 2, TIME)
    with plain.record() as expected:
        plain(ids)
    with model.record() as trace:
        logits = model(ids)
    torch.testing.assert_close(logits, model(ids), **CLOSE)
    for name, value in expected.items():
        assert trace[name].shape[-2:] == value.shape[-2:], name
    through = trace["blocks.0.router.through"]
    rows = trace["blocks.0.attention.pattern"].sum(dim=-1)  # (B, H, T)
    torch.testing.assert_close(rows, through[:, None].double().expand_as(rows), **CLOSE)
    assert not trace["blocks.0.attention.mask"].expand(2, 1, -1, -1)[:, 0][~through].any()
    passed_by = torch.where(through[..., None], 0.0, 1.0)
    torch.testing.assert_close(
        trace["blocks.0.after_ffn"] * passed_by, trace["embedding"] * passed_by, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(model.final_norm(trace["blocks.1.after_ffn"]), trace["final_norm"], **CLOSE)


def test_an_edit_acts_on_the_chosen() -> None:
    model, ids = build({"token_routing": ROUTED}), random_ids(17, 1, TIME)
    with model.record(["blocks.0.after_ffn", "blocks.0.router.through"]) as before:
        model(ids)
    edits = {"blocks.0.ffn.output": lambda x: x + 1.0}
    with model.record(["blocks.0.after_ffn", "blocks.0.router.scores"], edits) as after:
        model(ids)
    scores = after["blocks.0.router.scores"] * before["blocks.0.router.through"]
    expected = before["blocks.0.after_ffn"] + scores[..., None]
    torch.testing.assert_close(after["blocks.0.after_ffn"], expected, **CLOSE)


def test_a_block_that_no_token_goes_through_is_shown_all_the_same() -> None:
    model = build({"token_routing": ROUTED})
    with torch.no_grad():
        model.blocks[1].router.score.weight.zero_()
    with model.record() as trace:
        model(random_ids(17, 2, TIME))
    assert float(trace["blocks.1.attention.pattern"].abs().max()) == 0
    assert torch.equal(trace["blocks.1.after_ffn"], trace["blocks.0.after_ffn"])


# --- with other parts ------------------------------------------------------------------------------------------


def test_a_model_is_made_deeper_as_the_function_that_it_is() -> None:
    model, ids = (
        build({"token_routing": {"kind": "mixture_of_depths", "capacity": 0.5}, "n_layer": 3}),
        random_ids(17, 2, TIME),
    )
    deep = deepen(model, 8)
    assert [isinstance(block, RoutedBlock) for block in deep.blocks] == [False, True] * 4
    torch.testing.assert_close(deep(ids), model(ids), **CLOSE)


def test_mup_has_router_and_predictor_as_outputs() -> None:
    config = GPTConfig(n_layer=2, n_head=16, dim=256, block_size=8, vocab_size=40, token_routing="mixture_of_depths")
    found = factors(GPT(config), MuP(base_dim=64))
    assert found["blocks.1.router.score.weight"] == Factors(start=1 / 4, rate=1 / 4)
    # the predictor's weights start at 1/√inputs, which is what a hidden matrix is to have, and half of an output's way
    assert found["blocks.1.router.predictor.up.weight"] == Factors(start=1, rate=1 / 4)
    assert found["blocks.1.router.predictor.output.weight"] == Factors(start=1 / 2, rate=1 / 4)


def test_in_half_precision_scores_are_not_rounded_before_the_choice() -> None:
    model, ids = build({"token_routing": BY_PREDICTOR}).to(torch.bfloat16).train(), random_ids(17, 2, TIME)
    with torch.no_grad(), model.record("blocks.*.router.scores") as trace:
        assert model.hidden(ids).dtype == torch.bfloat16
    assert trace["blocks.0.router.scores"].dtype == torch.float32


def test_early_exit_is_refused() -> None:
    with pytest.raises(CallError, match="needs every token's keys and values in every layer"):
        EarlyExit(build({"token_routing": "mixture_of_depths"}), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token_routing": {"kind": "mixture_of_depths", "capacity": 0}},
            "token_routing capacity is 0; it must be a number above 0 and at most 1",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "capacity": 1.5}},
            "token_routing capacity is 1.5; it must be a number above 0 and at most 1",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "every": 3}},
            "token_routing every is 3; it must be a whole number from 1 to n_layer",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "layers": [0, 2]}},
            "token_routing layers is [0, 2]; it must list different layers from",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "layers": []}},
            "token_routing layers is []; it must list different layers from 0 to 1",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "decision": "coin"}},
            "token_routing decision is 'coin'; it must be one of predictor, ",
        ),
        (
            {"token_routing": {"kind": "mixture_of_depths", "loss_weight": 0}},
            "token_routing loss_weight is 0; it must be a positive number",
        ),
        (
            {"token_routing": "mixture_of_depths", "residual": "post"},
            "with residual 'post' a block's output is not the stream plus",
        ),
        (
            {"token_routing": "mixture_of_depths", "residual": {"kind": "initial", "share": 0.2}},
            "use residual depth_scaled, layerscale, multiplied, normed_branches, parallel, pre, rezero, sandwich, "
            "scaled_norms",
        ),
        (
            {"token_routing": "mixture_of_depths", "attention": ["full", "neutreno"]},
            "attention 'neutreno' uses the first layer's values of every token",
        ),
        (
            {"token_routing": "mixture_of_depths", "n_layer": 4, "n_unique": 1},
            "with n_unique 1 layer 0 shares a block with one of them",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPTConfig(**{**SIZES, **changes})
    assert message in str(refused.value)


def test_what_a_layer_that_all_go_through_does_is_its_own() -> None:
    mixed = build({"token_routing": "mixture_of_depths", "attention": ["neutreno", "full"]})
    shared = build({"token_routing": "mixture_of_depths", "n_layer": 4, "n_unique": 2})
    assert isinstance(mixed.blocks[1], RoutedBlock)
    assert isinstance(shared.blocks[3], RoutedBlock)


def test_the_number_of_chosen_is_rounded_up() -> None:
    router = build({"token_routing": {"kind": "mixture_of_depths", "capacity": 0.125}}).blocks[1].router
    assert [router.n_chosen(time) for time in (1, 8, 9, 64)] == [1, 1, 2, math.ceil(64 / 8)]
