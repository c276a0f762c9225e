"""Recording and editing intermediates: names and shapes, what an edit does, and that nothing is left behind."""

import copy
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention import formula
from lightning_gpt.models.attention.formula import Backend
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.record import Edit, record, zero_heads
from tests.models.helpers import arrays, random_ids, randomise
from tests.reference import formulas

Make = Callable[..., LanguageModel]

BATCH, TIME, DIM, VOCAB, HEADS, LAYERS = 2, 5, 8, 11, 2, 3
IDS, OTHER_IDS = random_ids(VOCAB, BATCH, TIME), random_ids(VOCAB, BATCH, TIME, seed=2)
TARGETS = random_ids(VOCAB, BATCH, TIME, seed=3)

STREAM, MATRIX = (BATCH, TIME, DIM), (BATCH, HEADS, TIME, TIME)
HEAD = (BATCH, HEADS, TIME, DIM // HEADS)
SINGLE_HEAD_SHAPES = {
    "token_embedding": STREAM,
    "position_embedding": (TIME, DIM),
    "embedding": STREAM,
    "norm": STREAM,
    "attention.q": STREAM,
    "attention.k": STREAM,
    "attention.v": STREAM,
    "attention.mask": (TIME, TIME),
    "attention.scores": (BATCH, TIME, TIME),
    "attention.pattern": (BATCH, TIME, TIME),
    "attention.head_output": STREAM,
    "attention.output": STREAM,
    "residual": STREAM,
    "logits": (BATCH, TIME, VOCAB),
}
BLOCK_SHAPES = {
    "attention_norm": STREAM,
    "attention.q": HEAD,
    "attention.k": HEAD,
    "attention.v": HEAD,
    "attention.mask": (TIME, TIME),
    "attention.scores": MATRIX,
    "attention.pattern": MATRIX,
    "attention.head_output": HEAD,
    "attention.output": STREAM,
    "after_attention": STREAM,
    "ffn_norm": STREAM,
    "ffn.hidden": (BATCH, TIME, 4 * DIM),
    "ffn.output": STREAM,
    "after_ffn": STREAM,
}
GPT_SHAPES = {
    "token_embedding": STREAM,
    "position_embedding": (TIME, DIM),
    "embedding": STREAM,
    **{f"blocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in BLOCK_SHAPES.items()},
    "final_norm": STREAM,
    "logits": (BATCH, TIME, VOCAB),
}


def gpt(backend: Backend = "sdpa", n_layer: int = LAYERS) -> GPT:
    config = GPTConfig(
        n_layer=n_layer, n_head=HEADS, dim=DIM, block_size=6, vocab_size=VOCAB, attention_backend=backend
    )
    return randomise(GPT(config).double())


def single_head(backend: Backend = "sdpa") -> SingleHeadModel:
    config = SingleHeadConfig(dim=DIM, block_size=6, vocab_size=VOCAB, attention_backend=backend)
    return randomise(SingleHeadModel(config).double())


MODELS = pytest.mark.parametrize("make", [single_head, gpt])


def assert_nobody_watches(model: LanguageModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            assert module._watch is None, name
            assert module._prefix == "", name


def uniform(pattern: Tensor) -> Tensor:
    """The pattern of a head that only averages, in the shape of ``pattern``."""
    allowed = torch.ones_like(pattern).tril()
    return allowed / allowed.sum(dim=-1, keepdim=True)


# --- what is recorded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize(("make", "shapes"), [(single_head, SINGLE_HEAD_SHAPES), (gpt, GPT_SHAPES)])
def test_every_documented_intermediate_is_recorded_with_its_shape_and_in_order(
    make: Make, shapes: dict[str, tuple[int, ...]], backend: Backend
) -> None:
    model = make(backend)
    with model.record() as trace:
        logits = model(IDS)
    assert {name: tuple(tensor.shape) for name, tensor in trace.items()} == shapes
    assert list(trace) == list(shapes)
    assert len(trace) == len(shapes)
    assert trace["logits"] is logits


@MODELS
def test_logits_are_the_same_whether_recorded_or_not_and_by_either_backend(make: Make) -> None:
    model = make("sdpa")
    unwatched = model(IDS)
    with model.record() as trace:
        torch.testing.assert_close(model(IDS), unwatched, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(make("manual")(IDS), unwatched, rtol=1e-6, atol=1e-6)
    assert any(name.endswith("attention.pattern") for name in trace)


def test_the_parts_recorded_fit_together() -> None:
    model = gpt()
    with torch.no_grad(), model.record() as trace:
        model(IDS)
    close = {"rtol": 1e-12, "atol": 1e-12}
    stream = trace["embedding"]
    torch.testing.assert_close(stream, trace["token_embedding"] + trace["position_embedding"], **close)
    for layer in range(LAYERS):
        scores = trace["attention.q", layer] @ trace["attention.k", layer].mT / (DIM // HEADS) ** 0.5
        torch.testing.assert_close(trace["attention.scores", layer], scores, **close)
        mixed = trace["attention.pattern", layer] @ trace["attention.v", layer]
        torch.testing.assert_close(trace["attention.head_output", layer], mixed, **close)
        torch.testing.assert_close(trace["after_attention", layer], stream + trace["attention.output", layer], **close)
        stream = trace["after_attention", layer] + trace["ffn.output", layer]
        torch.testing.assert_close(trace["after_ffn", layer], stream, **close)
    torch.testing.assert_close(trace["logits"], trace["final_norm"] @ model.unembedding.T, **close)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["final_norm"], {"final_norm"}),
        (["blocks.1.attention.q", "logits"], {"blocks.1.attention.q", "logits"}),
        (["blocks.*.attention.pattern"], {f"blocks.{i}.attention.pattern" for i in range(LAYERS)}),
        (["blocks.0.ffn.*"], {"blocks.0.ffn.hidden", "blocks.0.ffn.output"}),
        (["blocks.[02].after_ffn"], {"blocks.0.after_ffn", "blocks.2.after_ffn"}),
        ([], set()),
    ],
)
def test_names_and_globs_restrict_what_is_kept(names: list[str], kept: set[str]) -> None:
    model = gpt()
    with model.record(names) as trace:
        model(IDS)
    assert set(trace) == kept


@pytest.mark.parametrize(
    ("names", "made"), [(["final_norm"], 0), (["blocks.1.attention.scores"], 1), (["*.mask"], LAYERS), (None, LAYERS)]
)
def test_attention_matrices_are_made_only_in_the_layers_that_are_asked_for_one(
    names: list[str] | None, made: int
) -> None:
    model = gpt("sdpa")
    with (
        mock.patch.object(formula, "scaled_scores", wraps=formula.scaled_scores) as scores,
        model.record(names),
    ):
        model(IDS)
    assert scores.call_count == made


def test_a_later_pass_overwrites_an_earlier_one() -> None:
    model = gpt()
    with model.record(["embedding"]) as trace:
        model(IDS)
        first = trace["embedding"]
        model(OTHER_IDS[:, :3])
    assert trace["embedding"].shape == (BATCH, 3, DIM)
    assert trace["embedding"] is not first


@pytest.mark.parametrize("call", [lambda m: m.loss(IDS, TARGETS), lambda m: m.token_nll(IDS, TARGETS)])
def test_the_passes_of_loss_and_token_nll_are_recorded_too(call: Callable[[LanguageModel], Tensor]) -> None:
    model = gpt()
    with model.record() as trace:
        call(model)
    assert set(trace) == set(GPT_SHAPES) - {"logits"}


def test_a_block_can_be_recorded_by_itself_under_its_own_names() -> None:
    model = gpt()
    with record(model.blocks[1]) as trace:
        model(IDS)
    assert set(trace) == set(BLOCK_SHAPES)


# --- the trace -------------------------------------------------------------------------------------------------


def test_a_name_and_a_layer_give_the_tensor_of_that_block() -> None:
    model = gpt()
    with model.record() as trace:
        model(IDS)
    for layer in range(LAYERS):
        assert trace["attention.pattern", layer] is trace[f"blocks.{layer}.attention.pattern"]
    assert not torch.equal(trace["attention.pattern", 0], trace["attention.pattern", 1])


def test_layers_stacks_the_blocks_in_order_beyond_ten_of_them() -> None:
    model = gpt(n_layer=12)
    with model.record(["blocks.*.after_ffn", "blocks.*.attention.output", "blocks.*.ffn.output"]) as trace:
        model(IDS)
    stacked = trace.layers("after_ffn")
    assert stacked.shape == (12, *STREAM)
    for layer in range(12):
        assert torch.equal(stacked[layer], trace[f"blocks.{layer}.after_ffn"])
    assert torch.equal(trace.layers("attention.output")[11], trace["attention.output", 11])


def test_layers_gives_only_the_blocks_that_were_recorded() -> None:
    model = gpt()
    with model.record(["blocks.[12].after_ffn"]) as trace:
        model(IDS)
    assert torch.equal(trace.layers("after_ffn"), torch.stack([trace["after_ffn", 1], trace["after_ffn", 2]]))


def test_a_missing_entry_of_the_trace_raises_and_names_near_ones() -> None:
    model = gpt()
    with model.record(["blocks.*.attention.*"]) as trace:
        model(IDS)
    with pytest.raises(KeyError, match=r"blocks\.0\.attention\.patern.*blocks\.0\.attention\.pattern"):
        trace["blocks.0.attention.patern"]
    with pytest.raises(KeyError, match=r"blocks\.7\.attention\.pattern"):
        trace["attention.pattern", 7]
    with pytest.raises(KeyError, match="no block recorded 'after_ffn'"):
        trace.layers("after_ffn")
    assert "blocks.0.attention.pattern" in trace
    assert "blocks.0.attention.patern" not in trace


def test_the_trace_prints_each_name_with_its_shape() -> None:
    model = gpt()
    with model.record(["logits", "embedding"]) as trace:
        model(IDS)
    assert "embedding: (2, 5, 8) torch.float64" in repr(trace)
    assert "logits: (2, 5, 11) torch.float64" in repr(trace)


# --- names that do not exist -----------------------------------------------------------------------------------


def record_a_pass(model: LanguageModel, **arguments: object) -> None:
    with model.record(**arguments):  # type: ignore[arg-type]
        model(IDS)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("blocks.0.attention.patern", "blocks.0.attention.pattern"),
        ("blocks.*.attention.patterns", "blocks.0.attention.pattern"),
        ("blocks.3.after_ffn", "blocks.2.after_ffn"),
        ("final_nrom", "final_norm"),
    ],
)
@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_a_name_that_fits_nothing_raises_and_near_names_are_shown(asked: str, near: str, backend: Backend) -> None:
    """Also under the fused kernel, where the attention matrices that nobody asks for are not made."""
    model = gpt(backend)
    with pytest.raises(KeyError) as as_name:
        record_a_pass(model, names=["embedding", asked])
    with pytest.raises(KeyError) as as_edit:
        record_a_pass(model, edits={asked: lambda x: x})
    assert_nobody_watches(model)
    for message in (str(as_name.value), str(as_edit.value)):
        assert f"no intermediate is named '{asked}'" in message
        assert near in message


# --- edits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("heads", [(0,), (1,), (0, 1)])
def test_zeroing_heads_equals_zeroing_their_columns_of_the_output_projection(
    heads: tuple[int, ...], backend: Backend
) -> None:
    model, without = gpt(backend), gpt(backend)
    width = DIM // HEADS
    with torch.no_grad():
        for head in heads:
            without.blocks[1].attention.w_o.weight[:, head * width : (head + 1) * width] = 0
    with model.record(["logits"], edits={"blocks.1.attention.head_output": zero_heads(*heads)}):
        edited = model(IDS)
    torch.testing.assert_close(edited, without(IDS), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(edited, model(IDS))


def test_zeroing_the_head_of_the_one_head_model_silences_it_or_is_refused() -> None:
    """Its head_output has no axis of heads; where batch and time are equal the wrong axis must not pass for it."""
    model, square = single_head(), random_ids(VOCAB, TIME, TIME)
    try:
        with model.record(["attention.output"], edits={"attention.head_output": zero_heads(0)}) as trace:
            model(square)
    except (ValueError, IndexError):
        return
    assert (trace["attention.output"] == 0).all()


def test_an_edit_under_a_glob_is_applied_in_every_layer() -> None:
    model, without = gpt(), gpt()
    with torch.no_grad():
        for block in without.blocks:
            block.attention.w_o.weight.zero_()
    with model.record([], edits={"blocks.*.attention.head_output": torch.zeros_like}):
        torch.testing.assert_close(model(IDS), without(IDS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_the_single_head_with_a_uniform_pattern_gives_what_the_reference_predicts(backend: Backend) -> None:
    model = single_head(backend)
    with torch.no_grad(), model.record(edits={"attention.pattern": uniform}) as trace:
        logits = model(IDS)
    state = arrays(model)
    expected = formulas.each(
        lambda ids: formulas.single_head(state, ids, formulas.uniform_pattern).logits, IDS.numpy(force=True)
    )
    np.testing.assert_allclose(logits.numpy(force=True), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(
        trace["attention.pattern"].numpy(force=True), uniform(trace["attention.pattern"]).numpy(force=True)
    )
    assert not torch.allclose(logits, model(IDS))


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize(
    ("name", "edit", "pattern_of"),
    [
        ("attention.pattern", uniform, formulas.uniform_pattern),
        ("attention.scores", torch.zeros_like, formulas.uniform_pattern),
        ("attention.mask", torch.ones_like, formulas.full_pattern),
    ],
)
def test_an_edited_layer_gives_what_the_reference_predicts(
    name: str, edit: Edit, pattern_of: formulas.PatternOf, backend: Backend
) -> None:
    model = gpt(backend)
    with torch.no_grad(), model.record(["logits"], edits={f"blocks.1.{name}": edit}):
        logits = model(IDS)
    state = arrays(model)
    expected = formulas.each(
        lambda ids: formulas.gpt(state, ids, n_layer=LAYERS, n_head=HEADS, pattern_of={1: pattern_of}),
        IDS.numpy(force=True),
    )
    np.testing.assert_allclose(logits.numpy(force=True), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(logits, model(IDS))


@MODELS
def test_a_tensor_put_in_place_of_the_embedding_gives_the_logits_of_its_own_ids(make: Make) -> None:
    model = make()
    with model.record(["embedding"]) as other:
        expected = model(OTHER_IDS)
    with model.record(edits={"embedding": other["embedding"]}) as trace:
        torch.testing.assert_close(model(IDS), expected, rtol=1e-12, atol=1e-12)
    assert trace["embedding"] is other["embedding"]
    assert not torch.allclose(model(IDS), expected)


def test_edits_that_fit_the_same_name_are_applied_one_after_the_other() -> None:
    model = gpt()
    expected = model(IDS)
    edits = {"final_norm": lambda x: x * 4, "final_*": lambda x: x + 1, "logits": lambda x: x - 1}
    with model.record(["final_norm", "logits"], edits=edits) as trace:
        model(IDS)
    with model.record(["final_norm"]) as unedited:
        model(IDS)
    torch.testing.assert_close(trace["final_norm"], unedited["final_norm"] * 4 + 1)
    shift = model.unembedding.sum(dim=1)
    torch.testing.assert_close(trace["logits"], expected * 4 + shift - 1)


@MODELS
@pytest.mark.parametrize("edit", [lambda x: x[:, :1], torch.zeros(3), lambda x: x[None]])
def test_an_edit_that_changes_the_shape_raises_and_names_both_shapes(make: Make, edit: Edit) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"edit of 'embedding' returned shape .*must keep \(2, 5, 8\)"):
        record_a_pass(model, edits={"embedding": edit})
    assert_nobody_watches(model)


# --- gradients -------------------------------------------------------------------------------------------------


@MODELS
def test_the_gradient_with_respect_to_a_recorded_pattern_predicts_what_an_edit_of_it_does(
    make: Make,
) -> None:
    model = make()
    name = "attention.pattern" if isinstance(model, SingleHeadModel) else "blocks.1.attention.pattern"
    with model.record([name]) as trace:
        (gradient,) = torch.autograd.grad(model.loss(IDS, TARGETS), trace[name])
    assert gradient.shape == trace[name].shape
    direction = torch.randn(
        gradient.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(0), dtype=torch.float64
    )
    losses = []
    for step in (1e-5, -1e-5):
        with torch.no_grad(), model.record([name], edits={name: lambda a, step=step: a + step * direction}):
            losses.append(model.loss(IDS, TARGETS).item())
    slope = (gradient * direction).sum().item()
    assert abs(slope) > 1e-3
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_the_gradients_of_the_weights_are_the_same_while_recording() -> None:
    model = gpt()
    weights = list(model.parameters())
    expected = torch.autograd.grad(model.loss(IDS, TARGETS), weights)
    with model.record():
        torch.testing.assert_close(torch.autograd.grad(model.loss(IDS, TARGETS), weights), expected)


# --- nothing is left behind ------------------------------------------------------------------------------------


@MODELS
def test_after_recording_nobody_watches_and_later_passes_are_not_recorded(make: Make) -> None:
    model = make()
    with model.record(["embedding"]) as trace:
        model(IDS)
        assert model._watch is not None
    kept = trace["embedding"]
    model(OTHER_IDS)
    assert trace["embedding"] is kept
    assert_nobody_watches(model)


@MODELS
def test_an_exception_inside_the_context_comes_through_and_leaves_nobody_watching(make: Make) -> None:
    model = make()

    def fail(embedding: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_a_pass(model, names=["no.such.name"], edits={"embedding": fail})
    assert_nobody_watches(model)
    record_a_pass(model)


def test_an_edit_acts_only_inside_its_context() -> None:
    model = gpt()
    expected = model(IDS)
    with model.record([], edits={"embedding": torch.zeros_like}):
        assert not torch.allclose(model(IDS), expected)
    assert torch.equal(model(IDS), expected)


def test_a_recording_inside_a_recording_of_the_same_model_raises_and_leaves_the_outer_one_at_work() -> None:
    model = gpt()
    with model.record(["embedding"]) as trace:
        with pytest.raises(RuntimeError, match="already being recorded"), model.record():
            pass
        with pytest.raises(RuntimeError, match="already being recorded"), record(model.blocks[0]):
            pass
        model(IDS)
    assert set(trace) == {"embedding"}
    assert_nobody_watches(model)


def test_two_models_can_be_recorded_at_once() -> None:
    one, other = gpt(), single_head()
    with one.record(["embedding"]) as first, other.record(["norm"]) as second:
        one(IDS)
        other(IDS)
    assert set(first) == {"embedding"}
    assert set(second) == {"norm"}


def test_a_context_without_a_pass_is_empty_and_asks_for_nothing() -> None:
    with gpt().record(["no.such.name"]) as trace:
        pass
    assert len(trace) == 0


def test_recording_adds_nothing_to_the_state_of_the_model() -> None:
    model = gpt()
    before = copy.deepcopy(model.state_dict())
    record_a_pass(model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
