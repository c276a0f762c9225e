"""Mixtures of experts against their formulas; what keeps them balanced; what they cost in parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.context import Context
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.models.ffn.dense import FeedForward, ffns
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts, mixtures
from lightning_gpt.models.ffn.moe.router import Router, load_balancing_loss
from lightning_gpt.planning.flops import active_parameters
from tests.models.collected_losses import CollectedLosses
from tests.models.helpers import arrays, property_test, random_ids, randomise
from tests.reference import experts as reference

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 16, "block_size": 12, "vocab_size": 23}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    )


def build(dim: int = 5, seed: int = 0, bias: bool = True, **options: Any) -> MixtureOfExperts:
    mixture = MixtureOfExperts(dim, bias=bias, **options)
    randomise(mixture, seed, std=0.5)
    if mixture.router.balance == "bias":
        mixture.router.bias = normal(mixture.n_expert, seed=seed + 1) * 0.1
    return mixture.double()


def test_the_bias_adds_up_in_a_model_in_half_precision() -> None:
    router = MixtureOfExperts(8, bias=True, n_expert=4, balance="bias", balance_rate=1e-4).router
    router.to(torch.bfloat16)
    for _ in range(3000):
        router.rebalance(torch.tensor([5, 1, 1, 1]))
    assert router.weight.dtype == torch.bfloat16
    torch.testing.assert_close(router.bias, torch.tensor([-0.3, 0.3, 0.3, 0.3]), atol=1e-4, rtol=0)


def expected_of(mixture: MixtureOfExperts, x: torch.Tensor, kind: str = "gelu", **options: Any) -> reference.Mixture:
    return reference.mixture(
        x.reshape(-1, x.shape[-1]).numpy(force=True),
        arrays(mixture),
        n_expert=mixture.n_expert,
        top_k=mixture.top_k,
        kind=kind,
        score=mixture.router.score,
        **options,
    )


def capacity_of(mixture: MixtureOfExperts, tokens: int) -> int:
    assert mixture.capacity_factor is not None
    return int(np.ceil(mixture.capacity_factor * tokens * mixture.top_k / mixture.n_expert))


# --- values ----------------------------------------------------------------------------------------------------


@property_test
@given(
    n_expert=st.integers(1, 6),
    top_k=st.integers(1, 6),
    n_shared=st.integers(0, 2),
    kind=st.sampled_from(sorted(reference.ACTIVATIONS)),
    router=st.sampled_from(["softmax", "sigmoid"]),
    balance=st.sampled_from(["loss", "bias", "none"]),
    normed=st.sampled_from([None, True, False]),
    factor=st.sampled_from([1.0, 2.5]),
    gated=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_output_and_routing_equal_the_formula(
    n_expert: int,
    top_k: int,
    n_shared: int,
    kind: str,
    router: str,
    balance: str,
    normed: bool | None,
    factor: float,
    gated: bool,
    bias: bool,
    seed: int,
) -> None:
    options: dict[str, Any] = {"n_expert": n_expert, "top_k": min(top_k, n_expert), "n_shared": n_shared}
    options |= {"shared_gate": gated and n_shared > 0, "expert": kind, "normed_gates": normed, "gate_factor": factor}
    mixture = build(seed=seed, bias=bias, router=router, balance=balance, **options)
    x = normal(2, 6, 5, seed=seed)
    expected = expected_of(mixture, x, kind, normed=normed, factor=factor)
    routing = mixture.router(x)
    assert routing.chosen.flatten(0, 1).tolist() == expected.chosen
    np.testing.assert_allclose(routing.gates.detach().flatten(0, 1).numpy(force=True), expected.gates, **CLOSE)
    np.testing.assert_allclose(mixture(x).detach().flatten(0, 1).numpy(force=True), expected.output, **CLOSE)


@pytest.mark.parametrize("factor", [0.25, 1.0, 100.0])
@pytest.mark.parametrize("top_k", [1, 2])
def test_over_capacity_the_later_choices_add_nothing_and_are_counted(top_k: int, factor: float) -> None:
    mixture = build(n_expert=4, top_k=top_k, capacity_factor=factor).train()
    x = normal(3, 8, 5)
    expected = expected_of(mixture, x, capacity=capacity_of(mixture, 24))
    output = mixture(x, Context(losses=CollectedLosses()))
    np.testing.assert_allclose(output.detach().flatten(0, 1).numpy(force=True), expected.output, **CLOSE)
    use = mixture.take_use()
    assert use is not None
    assert int(use.dropped) == expected.dropped
    assert (expected.dropped > 0) == (factor < 100)
    assert mixture.take_use() is None


def test_capacity_lets_no_token_depend_on_a_later_one_and_does_not_bind_evaluation() -> None:
    mixture = build(n_expert=4, capacity_factor=0.5).train()
    x = normal(1, 12, 5)
    output = mixture(x)
    for position in range(1, 12):
        changed = x.clone()
        changed[:, position:] = normal(1, 12 - position, 5, seed=position)
        torch.testing.assert_close(mixture(changed)[:, :position], output[:, :position], **CLOSE)
    np.testing.assert_allclose(mixture.eval()(x)[0].numpy(force=True), expected_of(mixture, x).output, **CLOSE)


@pytest.mark.cpu("a device takes grouped products by itself: tests/gpu")
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dim", "hidden"), [(16, 64), (20, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_grouped_products_equal_those_of_one_expert_after_the_other(
    kind: str, bias: bool, dim: int, hidden: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Values and gradients, also where an expert has no token and where widths are padded."""
    expert = ffns.get(kind)
    assert issubclass(expert, FeedForward)
    experts = randomise(Experts(expert, dim, hidden, 4, bias=bias)).to(dtype)
    x, counts = normal(21, dim).to(dtype).requires_grad_(), torch.tensor([7, 0, 13, 1])
    weights, results = normal(21, dim, seed=1).to(dtype), []
    with mock.patch.object(F, "grouped_mm", wraps=F.grouped_mm) as product:
        for run, n_product in ((experts, 0), (partial(experts._grouped, stacks=experts._stacks), 2)):
            output = run(x, counts)
            assert product.call_count == n_product
            results.append([output, *torch.autograd.grad((output * weights).sum(), [x, *experts.parameters()])])
    for one_by_one, grouped in zip(*results, strict=True):
        size = float(one_by_one.detach().abs().max())
        torch.testing.assert_close(grouped, one_by_one, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
@pytest.mark.parametrize(("dim", "hidden"), [(16, 32), (20, 12)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "ffn": {"capacity_factor": 1.0, "n_shared": 1, "shared_gate": True, "expert": "swiglu"}},
        {"dropout": 0.1, "ffn": {"router": "sigmoid", "balance": "bias"}},
    ],
    ids=["plain", "capacity", "sigmoid"],
)
def test_off_the_cpu_a_training_step_takes_grouped_products_and_waits_for_no_value(
    options: dict[str, Any], dim: int, hidden: int, checkpointing: str
) -> None:
    """Traced on the meta device, whose tensors have no values: whatever asks for one raises."""
    ffn = {"kind": "moe", "n_expert": 4, "hidden": hidden, **options.get("ffn", {})}
    config = GPTConfig(**{**SIZES, **options, "dim": dim, "ffn": ffn, "checkpointing": checkpointing})
    with torch.device("meta"), mock.patch.object(F, "grouped_mm", wraps=F.grouped_mm) as product:
        model, ids = GPT(config).bfloat16().train(), torch.zeros(2, 12, dtype=torch.long)
        loss = model.loss(ids, ids, label_smoothing=0.1, z_loss=1e-3)
        assert product.call_count == 2 * config.n_layer
        loss.backward()
    runs = 2 if checkpointing == "block" else 1
    assert product.call_count == runs * 2 * config.n_layer
    assert all(weight.grad is not None and weight.grad.shape == weight.shape for weight in model.parameters())
    uses = [mixture.take_use() for mixture in mixtures(model.block_views()).values()]
    assert [use is not None and use.chosen.shape for use in uses] == [(4,)] * config.n_layer


@pytest.mark.parametrize(
    "waits",
    [torch.Tensor.tolist, lambda x: x[0].item(), torch.bincount, lambda x: x[x > 0], lambda x: bool(x.all())],
    ids=["tolist", "item", "bincount", "boolean index", "bool"],
)
def test_on_the_meta_device_what_would_wait_for_a_value_raises(waits: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        waits(torch.ones(3, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_scores_that_all_vanish_give_gates_and_losses_that_are_numbers(router: str) -> None:
    layer = Router(4, 5, 2, router, "loss", None, 0.1)  # type: ignore[arg-type]
    torch.nn.init.constant_(layer.weight, -40.0)
    x = torch.ones(3, 4, requires_grad=True)
    routing = layer(x)
    scores = (x @ layer.weight.T).softmax(dim=-1) if router == "softmax" else (x @ layer.weight.T).sigmoid()
    assert bool((scores == 0).all()) == (router == "sigmoid")
    loss = load_balancing_loss(scores, routing.counts) + routing.gates.sum()
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_router_computes_in_fp32_under_autocast() -> None:
    mixture = randomise(MixtureOfExperts(16, bias=False), std=0.5)
    x = normal(2, 9, 16).float()
    plain = mixture.router(x)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        cast = mixture.router(x)
        assert mixture(x).dtype == torch.bfloat16
    assert torch.equal(cast.chosen, plain.chosen)
    assert torch.equal(cast.gates, plain.gates)


def test_a_quantised_model_routes_by_the_weights_it_was_trained_with() -> None:
    model = GPT(GPTConfig(**SIZES, ffn={"kind": "moe", "n_expert": 4})).eval()
    randomise(model)
    x = normal(2, 9, 16).float()
    small = mixtures(int8(model).block_views())[0]
    mixture = mixtures(model.block_views())[0]
    assert torch.equal(small.router.weight, mixture.router.weight.to(torch.bfloat16))
    difference = small(x.bfloat16()).float() - mixture(x)
    assert difference.norm() < 0.1 * mixture(x).norm()


# --- losses and gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_losses_equal_the_formula(router: str, top_k: int) -> None:
    mixture = build(n_expert=5, top_k=top_k, router=router, balance_rate=0.3, z_loss=0.7).train()
    x = normal(2, 8, 5)
    expected = expected_of(mixture, x)
    losses = CollectedLosses()
    mixture(x, Context(losses=losses))
    charged = 0.3 * expected.balance_loss + 0.7 * expected.z_loss
    assert [float(term) for term in losses.terms] == pytest.approx([charged])
    use = mixture.take_use()
    assert use is not None
    assert (float(use.balance_loss), float(use.z_loss)) == pytest.approx((expected.balance_loss, expected.z_loss))
    assert use.chosen.tolist() == [sum(row.count(expert) for row in expected.chosen) for expert in range(5)]


def test_the_balancing_loss_is_1_in_equal_use_and_the_number_of_experts_where_all_go_to_one() -> None:
    mixture = build(n_expert=4, top_k=1).train()
    for scale, expected in ((0.0, 1.0), (1e4, 4.0)):
        with torch.no_grad():
            mixture.router.weight.zero_()[2] = scale
        mixture(torch.ones(1, 6, 5, dtype=torch.float64), Context(losses=CollectedLosses()))
        use = mixture.take_use()
        assert use is not None
        assert float(use.balance_loss) == pytest.approx(expected)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("normed", "factor"), [(None, 1.0), (True, 1.0), (False, 2.5)])
def test_gradients_are_those_of_the_formula_with_its_losses(
    normed: bool | None, factor: float, top_k: int, router: str
) -> None:
    options: dict[str, Any] = {"n_shared": 1, "shared_gate": factor != 1, "normed_gates": normed, "gate_factor": factor}
    mixture = build(n_expert=4, top_k=top_k, router=router, balance_rate=0.5, z_loss=0.2, **options).train()
    x, weights = normal(10, 5), normal(10, 5, seed=1)
    losses = CollectedLosses()
    output = mixture(x, Context(losses=losses))
    ((output * weights).sum() + sum(losses.terms)).backward()

    def value(state: reference.State) -> float:
        gates: dict[str, Any] = {"score": router, "normed": normed, "factor": factor}
        found = reference.mixture(x.numpy(force=True), state, n_expert=4, top_k=top_k, **gates)
        return float((found.output * weights.numpy(force=True)).sum()) + 0.5 * found.balance_loss + 0.2 * found.z_loss

    for name, parameter in mixture.named_parameters():
        direction = normal(*parameter.shape, seed=2)
        assert parameter.grad is not None, name
        along = float((parameter.grad * direction).sum())
        expected = reference.derivative_along(value, arrays(mixture), name, direction.numpy(force=True))
        assert along == pytest.approx(expected, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_the_losses_act_through_the_gradient_of_training_and_no_value(checkpointing: str) -> None:
    """The model's loss is the cross-entropy; its gradient has each block's losses once, also where it is run twice."""
    ids = random_ids(23, 2, 12)
    ffn = {"kind": "moe", "n_expert": 4, "balance_rate": 0.5, "z_loss": 0.2}
    model = randomise(GPT(GPTConfig(**SIZES, ffn=ffn, checkpointing=checkpointing))).double().train()
    loss = model.loss(ids, ids)
    assert float(loss) == pytest.approx(float(model.token_nll(ids, ids).mean()), rel=1e-12)
    loss.backward()
    for block in model.blocks:
        use = block.ffn.take_use()
        assert (int(use.passes), int(use.chosen.sum())) == (1, 2 * 12 * 2)
    gradients = [parameter.grad for parameter in model.parameters()]

    losses = CollectedLosses()
    logits = model.head(model.hidden(ids, losses=losses))
    assert len(losses.terms) == 2  # a mixture's two losses are one term
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()) + sum(losses.terms)
    expected = torch.autograd.grad(total, list(model.parameters()))
    torch.testing.assert_close(gradients, list(expected), **CLOSE)


def test_evaluation_counts_nothing() -> None:
    model, ids = GPT(GPTConfig(**SIZES, ffn="moe")).eval(), random_ids(23, 2, 12)
    model.loss(ids, ids)
    model.generate(ids, 3)
    assert all(mixture.take_use() is None for mixture in mixtures(model.block_views()).values())


# --- balance by bias -------------------------------------------------------------------------------------------


def test_the_bias_moves_by_its_step_towards_the_experts_that_are_chosen_less() -> None:
    mixture = build(n_expert=4, balance="bias", balance_rate=0.25)
    before = mixture.router.bias.clone()
    mixture.router.rebalance(torch.tensor([9, 1, 5, 5]))
    assert (mixture.router.bias - before).tolist() == pytest.approx([-0.25, 0.25, 0, 0])
    assert "router.bias" in mixture.state_dict()


def test_the_bias_evens_out_a_router_that_prefers_one_expert() -> None:
    mixture = build(n_expert=4, top_k=1, balance="bias", balance_rate=0.01, z_loss=0.0).train()
    mixture.router.bias.zero_()
    x = normal(1, 400, 5) + 1
    shares = []
    for _ in range(150):
        losses = CollectedLosses()
        mixture(x, Context(losses=losses))
        use = mixture.take_use()
        assert use is not None
        assert [float(term) for term in losses.terms] == [0]
        shares.append(float(use.chosen.max() / use.chosen.sum()))
        mixture.router.rebalance(use.chosen)
    assert shares[0] > 0.5
    assert shares[-1] < 0.35


# --- parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "n_shared"), [("gelu", 0), ("gelu", 2), ("swiglu", 0), ("swiglu", 1)])
def test_by_default_a_token_meets_as_many_parameters_as_in_the_dense_network(kind: str, n_shared: int) -> None:
    with torch.device("meta"):
        dense = GPT(GPTConfig(n_layer=3, dim=256, bias=False, ffn=kind))
        ffn = {"kind": "moe", "n_expert": 16, "top_k": 2, "expert": kind, "n_shared": n_shared}
        sparse = GPT(GPTConfig(n_layer=3, dim=256, bias=False, ffn=ffn))
    ffn_parameters = sum(parameter.numel() for parameter in dense.blocks.parameters())
    difference = active_parameters(sparse) - active_parameters(dense) - 3 * 16 * 256
    assert abs(difference) < 0.02 * ffn_parameters
    assert active_parameters(dense) == sum(parameter.numel() for parameter in dense.parameters())
    experts = mixtures(sparse.block_views())[0].experts
    all_of_them = 3 * sum(p.numel() for p in experts.parameters())
    assert sum(p.numel() for p in sparse.parameters()) == active_parameters(sparse) + all_of_them * 14 // 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, "ffn top_k is 9; it must be from 1 to n_expert, which is 8"),
        ({"top_k": 0}, "ffn top_k is 0; it must be a whole number from 1 to 65,536"),
        ({"n_shared": -1}, "ffn n_shared is -1; it must be a whole number from 0 to 1,024"),
        (
            {"capacity_factor": 0.0},
            "ffn capacity_factor is 0.0; it must be a number above 0 and at most 65,536, or null",
        ),
        ({"router": "cosine"}, "ffn router is 'cosine'; it must be one of softmax, sigmoid"),
        ({"balance": "luck"}, "ffn balance is 'luck'; it must be one of loss, bias, none"),
        ({"balance_rate": -0.1}, "ffn balance_rate is -0.1; it must be a number of at least 0, or null"),
        ({"z_loss": -1.0}, "ffn z_loss is -1.0; it must be a number of at least 0"),
        (
            {"expert": "moe"},
            "ffn expert is 'moe'; it must be one of clamped_swiglu, geglu, gelu, gelu_erf, relu, relu2, swiglu",
        ),
        (
            {"expert": "none"},
            "ffn expert is 'none'; it must be one of clamped_swiglu, geglu, gelu, gelu_erf, relu, relu2, swiglu",
        ),
        ({"shared_gate": True}, "ffn shared_gate needs shared experts, and n_shared is 0"),
        ({"gate_factor": 0.0}, "ffn gate_factor is 0.0; it must be a positive number"),
        ({"normed_gates": "no"}, "ffn normed_gates is 'no'; it must be"),
        ({"hidden": 0}, "ffn hidden is 0; it must be a whole number from 1 to 1,048,576"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**SIZES, ffn={"kind": "moe", **options}))
    assert message in str(refused.value)
