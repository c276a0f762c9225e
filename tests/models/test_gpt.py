"""The multi-block GPT against its formula, Hugging Face's GPT-2, and what its config promises."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.formula import Backend
from tests.models.helpers import (
    arrays,
    assert_only_later_logits_change,
    changed_ids,
    property_test,
    random_ids,
    randomise,
)
from tests.reference import formulas

BACKENDS: list[Backend] = ["sdpa", "manual"]
SMALL = GPTConfig(n_layer=2, n_head=2, dim=8, block_size=9, vocab_size=12)
CONFIGS = [
    GPTConfig(n_layer=1, n_head=1, dim=1, block_size=1, vocab_size=1),
    GPTConfig(n_layer=1, n_head=1, dim=4, block_size=3, vocab_size=7),
    GPTConfig(n_layer=2, n_head=2, dim=8, block_size=5, vocab_size=11, bias=False, tie_embeddings=False),
    GPTConfig(n_layer=3, n_head=4, dim=8, block_size=6, vocab_size=13, tie_embeddings=False),
    GPTConfig(n_layer=2, n_head=3, dim=6, block_size=7, vocab_size=5, bias=False),
    GPTConfig(n_layer=4, n_head=6, dim=6, block_size=4, vocab_size=9),
]
CAUSAL = {
    backend: randomise(GPT(dataclasses.replace(SMALL, attention_backend=backend)).double()) for backend in BACKENDS
}


def describe(config: GPTConfig) -> str:
    bias, tied = "bias" if config.bias else "no-bias", "tied" if config.tie_embeddings else "untied"
    return f"L{config.n_layer}-H{config.n_head}-d{config.dim}-{bias}-{tied}"


def small_gpt(**changes: object) -> GPT:
    return randomise(GPT(dataclasses.replace(SMALL, **changes)))  # type: ignore[arg-type]


# --- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", CONFIGS, ids=describe)
def test_logits_and_loss_equal_the_reference(config: GPTConfig, backend: Backend) -> None:
    model = randomise(GPT(dataclasses.replace(config, attention_backend=backend)).double())
    for time in {1, config.block_size}:
        ids, targets = random_ids(config.vocab_size, 2, time), random_ids(config.vocab_size, 2, time, seed=2)
        state = arrays(model)
        expected = formulas.each(
            lambda row, state=state: formulas.gpt(state, row, n_layer=config.n_layer, n_head=config.n_head),
            ids.numpy(force=True),
        )
        np.testing.assert_allclose(model(ids).numpy(force=True), expected, rtol=1e-10, atol=1e-10)
        loss = formulas.cross_entropy(expected.reshape(-1, config.vocab_size), targets.flatten().numpy(force=True))
        assert model.loss(ids, targets).item() == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize("time", [1, 2, 3, 7, 16, 33])
def test_both_attention_backends_have_equal_values_and_gradients(time: int) -> None:
    results = []
    for backend in BACKENDS:
        model = small_gpt(block_size=33, attention_backend=backend)
        logits = model(random_ids(12, 3, time))
        nn.functional.cross_entropy(logits.flatten(0, 1), random_ids(12, 3 * time, seed=2)).backward()
        results.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert all(gradient is not None for gradient in results[0][1].values())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@property_test
@given(case=changed_ids(vocab_size=12, block_size=9), backend=st.sampled_from(BACKENDS))
def test_a_change_at_one_position_changes_every_logit_row_from_there_on_and_none_before(
    case: tuple[Tensor, Tensor, int], backend: Backend
) -> None:
    ids, changed, position = case
    with torch.no_grad():
        assert_only_later_logits_change(CAUSAL[backend](ids), CAUSAL[backend](changed), position)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_sequence_of_a_batch_is_computed_as_if_alone(backend: Backend) -> None:
    ids = random_ids(12, 4, 9)
    alone = torch.cat([CAUSAL[backend](row[None]) for row in ids])
    torch.testing.assert_close(CAUSAL[backend](ids), alone, rtol=0, atol=1e-12)


# --- Hugging Face ----------------------------------------------------------------------------------------------


def import_hugging_face(theirs: GPT2LMHeadModel) -> GPT:
    """Our GPT with the weights of theirs, whose ``Conv1D`` holds ``(in, out)`` where ours holds ``(out, in)``."""
    c = theirs.config
    model = GPT(
        GPTConfig(n_layer=c.n_layer, n_head=c.n_head, dim=c.n_embd, block_size=c.n_positions, vocab_size=c.vocab_size)
    )
    state = {
        "token_embedding.weight": theirs.transformer.wte.weight,
        "positions.weight": theirs.transformer.wpe.weight,
        "final_norm.weight": theirs.transformer.ln_f.weight,
        "final_norm.bias": theirs.transformer.ln_f.bias,
    }
    for i, block in enumerate(theirs.transformer.h):
        for ours, norm in {"attention_norm": block.ln_1, "ffn_norm": block.ln_2}.items():
            state |= {f"blocks.{i}.{ours}.weight": norm.weight, f"blocks.{i}.{ours}.bias": norm.bias}
        layers = {
            "attention.qkv": block.attn.c_attn,
            "attention.w_o": block.attn.c_proj,
            "ffn.up": block.mlp.c_fc,
            "ffn.down": block.mlp.c_proj,
        }
        for ours, layer in layers.items():
            state |= {f"blocks.{i}.{ours}.weight": layer.weight.T, f"blocks.{i}.{ours}.bias": layer.bias}
    model.to(theirs.dtype).load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    """A small GPT-2 of Hugging Face's class, every parameter random, in float64."""
    config = GPT2Config(
        n_layer=3, n_head=4, n_embd=16, n_positions=24, vocab_size=61, bos_token_id=None, eos_token_id=None
    )
    return randomise(GPT2LMHeadModel(config).double().eval(), seed=5, std=0.25)


def test_logits_equal_those_of_hugging_face(gpt2: GPT2LMHeadModel) -> None:
    ids = random_ids(61, 3, 24)
    with torch.no_grad():
        torch.testing.assert_close(import_hugging_face(gpt2)(ids), gpt2(ids).logits, rtol=1e-9, atol=1e-9)


def test_the_loss_equals_that_of_hugging_face(gpt2: GPT2LMHeadModel) -> None:
    """Theirs shifts the labels itself, and takes the cross-entropy in fp32."""
    ids = random_ids(61, 3, 24)
    with torch.no_grad():
        expected = gpt2(ids, labels=ids).loss
        assert import_hugging_face(gpt2).loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(
            expected.item(), rel=1e-6
        )


def test_the_greedy_continuation_equals_that_of_hugging_face(gpt2: GPT2LMHeadModel) -> None:
    prompt = random_ids(61, 2, 5)
    expected = gpt2.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=19, pad_token_id=0
    )
    ours = import_hugging_face(gpt2).generate(prompt, 19, temperature=0)
    assert ours.tolist() == expected.tolist()
    assert len(set(ours[0, 5:].tolist())) > 2, "a continuation that only repeats proves little"


def test_the_number_of_parameters_equals_that_of_hugging_face(gpt2: GPT2LMHeadModel) -> None:
    ours = import_hugging_face(gpt2)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in gpt2.parameters())


# --- sizes -----------------------------------------------------------------------------------------------------


def test_gpt2_small_has_124439808_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=12, n_head=12, dim=768, block_size=1024, vocab_size=50257))
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize("config", CONFIGS, ids=describe)
def test_the_number_of_parameters_is_that_of_the_formula(config: GPTConfig) -> None:
    d, layers = config.dim, config.n_layer
    matrices = (2 - config.tie_embeddings) * config.vocab_size * d + config.block_size * d + layers * 12 * d * d
    gains, biases = (2 * layers + 1) * d, (2 * layers + 1) * d + layers * (3 * d + d + 4 * d + d)
    parameters = sum(parameter.numel() for parameter in GPT(config).parameters())
    assert parameters == matrices + gains + (biases if config.bias else 0)


def test_without_bias_no_parameter_is_a_bias() -> None:
    assert [name for name, _ in GPT(dataclasses.replace(SMALL, bias=False)).named_parameters() if "bias" in name] == []


def test_the_head_is_the_token_embedding_when_tied_and_a_matrix_of_its_own_when_not() -> None:
    tied, untied = GPT(SMALL), GPT(dataclasses.replace(SMALL, tie_embeddings=False))
    assert tied.unembedding is tied.token_embedding.weight
    assert untied.unembedding is not untied.token_embedding.weight
    assert untied.unembedding.shape == (12, 8)
    assert any(parameter is untied.unembedding for parameter in untied.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", range(1, 10))
def test_every_length_up_to_block_size_gives_logits_of_that_length(time: int, backend: Backend) -> None:
    logits = small_gpt(attention_backend=backend)(random_ids(12, 2, time))
    assert logits.shape == (2, time, 12)
    assert logits.isfinite().all()


# --- initialisation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layer", [1, 2, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_fresh_weights_have_deviation_0_02_and_residual_projections_that_over_root_2_n_layer(
    n_layer: int, tied: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 64, "block_size": 128, "vocab_size": 300}
    model = GPT(GPTConfig(n_layer=n_layer, n_head=4, tie_embeddings=tied, **sizes))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            expected = 0.02 / math.sqrt(2 * n_layer) if name.endswith((".w_o", ".down")) else 0.02
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(module.weight.numel()), name


def test_fresh_biases_are_zero_and_layer_norms_are_the_identity() -> None:
    model = GPT(SMALL)
    biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
    gains = {name: parameter for name, parameter in model.named_parameters() if name.endswith("norm.weight")}
    assert len(biases) == 2 * 6 + 1
    assert len(gains) == 2 * 2 + 1
    assert all((bias == 0).all() for bias in biases.values())
    assert all((gain == 1).all() for gain in gains.values())


def test_with_fresh_weights_the_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(SMALL, vocab_size=5000, dim=32))
    loss = model.loss(random_ids(5000, 8, 9), random_ids(5000, 8, 9, seed=2))
    assert loss.item() == pytest.approx(math.log(5000), rel=0.01)


# --- dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_changes_training_outputs_and_not_those_of_evaluation(backend: Backend) -> None:
    plain, dropping = small_gpt(attention_backend=backend), small_gpt(attention_backend=backend, dropout=0.3)
    ids = random_ids(12, 2, 9)
    torch.manual_seed(0)
    first, second = dropping.train()(ids), dropping(ids)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain(ids))
    torch.testing.assert_close(dropping.eval()(ids), plain(ids), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_dropout_training_and_evaluation_give_the_same(backend: Backend) -> None:
    model, ids = small_gpt(attention_backend=backend), random_ids(12, 2, 9)
    assert torch.equal(model.train()(ids), model.eval()(ids))


def test_dropout_falls_on_the_embedding_and_on_what_each_branch_adds() -> None:
    """With p = ½ every entry is either dropped or doubled."""
    model = small_gpt(dropout=0.5).train()
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    torch.manual_seed(0)
    with torch.no_grad(), model.record() as trace:
        model(random_ids(12, 4, 9))
    changes = {"embedding": (inputs[0], trace["embedding"])}
    for layer in range(2):
        after_attention = trace["after_attention", layer]
        changes[f"attention {layer}"] = (after_attention - inputs[layer], trace["attention.output", layer])
        changes[f"ffn {layer}"] = (trace["after_ffn", layer] - after_attention, trace["ffn.output", layer])
    for name, (dropped, whole) in changes.items():
        zero = torch.isclose(dropped, torch.zeros(()), atol=1e-6)
        double = torch.isclose(dropped, 2 * whole, atol=1e-5)
        assert (zero | double).all(), name
        assert 0.3 < zero.float().mean() < 0.7, name


# --- wrong calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["forward", "loss", "token_nll"])
def test_a_sequence_longer_than_block_size_is_refused_with_the_limit_and_a_remedy(call: str) -> None:
    ids = random_ids(12, 1, 10)
    arguments = (ids,) if call == "forward" else (ids, ids)
    with pytest.raises(CallError, match=r"10 tokens.*block_size 9.*shorten the input.*larger block_size"):
        getattr(small_gpt(), call)(*arguments)


@pytest.mark.cpu("a device reports a wrong id late, and then aborts")
@pytest.mark.parametrize("call", ["forward", "loss", "token_nll", "next_logits", "generate"])
@pytest.mark.parametrize("wrong", [12, 50256, -1, -100])
def test_an_id_outside_the_vocabulary_is_refused_with_the_id_and_the_range(wrong: int, call: str) -> None:
    ids = torch.tensor([[3, wrong, 11]])
    arguments = {"loss": (ids, ids), "token_nll": (ids, ids), "generate": (ids, 1)}.get(call, (ids,))
    with pytest.raises(CallError, match=rf"token id {wrong} is outside the vocabulary of 12 \(allowed: 0 to 11\)"):
        getattr(small_gpt(), call)(*arguments)


def test_the_first_and_last_id_of_the_vocabulary_are_allowed() -> None:
    assert small_gpt()(torch.tensor([[0, 11]])).isfinite().all()


@pytest.mark.parametrize("field", ["n_layer", "n_head", "dim", "block_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -4, 2.5, "8"])
def test_a_size_that_is_no_positive_whole_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(CallError, match=rf"{field} is {value!r}; it must be a whole number from 1 to"):
        dataclasses.replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_a_width_that_the_heads_do_not_divide_is_refused_with_what_would_do() -> None:
    with pytest.raises(CallError, match=r"dim 12 is not divisible by n_head 5; n_head may be 1, 2, 3, 4, 6, 12"):
        dataclasses.replace(SMALL, dim=12, n_head=5)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan])
def test_a_dropout_that_is_no_probability_below_one_is_refused(value: float) -> None:
    with pytest.raises(CallError, match=rf"dropout is {value}; it must be a number of at least 0 and below 1"):
        dataclasses.replace(SMALL, dropout=value)


def test_an_unknown_attention_backend_is_refused() -> None:
    with pytest.raises(CallError, match="attention_backend"):
        dataclasses.replace(SMALL, attention_backend="flash")  # type: ignore[arg-type]
