"""Ablation against edited weights and a plain float64 computation, and activation patching."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis.interventions import (
    LOGITS,
    Ablation,
    Part,
    ablate_each,
    ablated_loss,
    ablation_edits,
    all_parts,
    check_parts,
    patched_logits,
    path_patched_logits,
    text_loss,
)
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from tests.analysis.copying_model import copying_model
from tests.models.helpers import arrays, random_ids, randomise
from tests.models.variants import CONFIGS, build, name_of
from tests.reference import formulas

BATCH, TIME, DIM, VOCAB, HEADS, LAYERS = 2, 5, 8, 11, 2, 3
WIDTH = DIM // HEADS
IDS, OTHER = random_ids(VOCAB, BATCH, TIME), random_ids(VOCAB, BATCH, TIME, seed=2)
PARTS = [Part(layer, head) for layer in range(LAYERS) for head in (0, 1, None)]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def gpt(**options: Any) -> GPT:
    config = GPTConfig(n_layer=LAYERS, n_head=HEADS, dim=DIM, block_size=6, vocab_size=VOCAB, **options)
    return randomise(GPT(config).double()).eval()


def single_head() -> SingleHeadModel:
    return randomise(SingleHeadModel(SingleHeadConfig(dim=DIM, block_size=6, vocab_size=VOCAB)).double()).eval()


def columns(part: Part) -> slice:
    assert part.head is not None
    return slice(part.head * WIDTH, (part.head + 1) * WIDTH)


def silence(model: GPT, part: Part) -> None:
    """Edit the weights so that ``part`` adds nothing."""
    block = model.blocks[part.layer]
    with torch.no_grad():
        if part.head is None:
            block.ffn.down.weight.zero_()
            block.ffn.down.bias.zero_()
        else:
            block.attention.w_o.weight[:, columns(part)] = 0


def edited(model: LanguageModel, edits: dict[str, Any], ids: Tensor = IDS) -> Tensor:
    with torch.no_grad(), model.record([], edits):
        return model(ids)


# --- parts -------------------------------------------------------------------------------------------------------


def test_all_parts_of_a_gpt_and_of_the_one_head_model() -> None:
    assert all_parts(gpt()) == PARTS
    assert all_parts(single_head()) == [Part(0, 0)]


@pytest.mark.parametrize(("text", "part"), [("3.2", Part(3, 2)), ("3.10", Part(3, 10)), (" 0.ffn ", Part(0, None))])
def test_a_part_is_read_as_it_is_written(text: str, part: Part) -> None:
    assert Part.parse(text) == part
    assert Part.parse(str(part)) == part


@pytest.mark.parametrize(
    "text", ["", "3", "3.", ".2", "3.x", "-1.0", "3.2.1", "3.FFN", "3:2", "0." + "9" * 5000, "9" * 5000 + ".0"]
)
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(CallError, match=r"is not a part of a model; allowed: LAYER\.HEAD such as 3\.2"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["3.0", "0.2", "3.ffn"])
def test_a_part_that_the_model_does_not_have_is_refused(text: str) -> None:
    expected = rf"the model has no part {text}; it has 3 layers with 2 heads \(allowed: 0\.0 to 2\.1, or LAYER\.ffn\)"
    with pytest.raises(CallError, match=expected):
        check_parts(gpt(), [Part(0, 0), Part.parse(text)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ffn": "none"}, r"3 layers with 2 heads and no FFN \(allowed: 0\.0 to 2\.1\)"),
        ({"ffn": ["gelu", "none", "none"]}, r"3 layers with 2 heads \(allowed: 0\.0 to 2\.1, or 0\.ffn\)"),
    ],
)
def test_what_the_model_has_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError, match=said):
        check_parts(gpt(**options), [Part(1, None)])


@pytest.mark.parametrize("text", ["0.1", "1.0", "0.ffn"])
def test_the_one_head_model_has_one_part(text: str) -> None:
    with pytest.raises(CallError, match=r"it has 1 layer with 1 head and no FFN \(allowed: 0\.0\)"):
        check_parts(single_head(), [Part.parse(text)])


# --- ablation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"attention_backend": "manual"}, {"residual": "post"}], ids=str)
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_zero_ablation_of_every_part_equals_editing_its_weights(part: Part, options: dict[str, Any]) -> None:
    model = gpt(**options)
    without = copy.deepcopy(model)
    silence(without, part)
    ablated = edited(model, ablation_edits(model, [part]))
    torch.testing.assert_close(ablated, without(IDS), **CLOSE)
    assert not torch.allclose(ablated, model(IDS))
    assert ablated_loss(model, IDS, [part]) == pytest.approx(text_loss(without, IDS), rel=1e-12)


def test_ablating_many_parts_together_equals_editing_the_weights_of_all() -> None:
    model, parts = gpt(), [Part(0, 0), Part(1, 0), Part(1, 1), Part(1, None), Part(2, 1)]
    without = copy.deepcopy(model)
    for part in parts:
        silence(without, part)
    torch.testing.assert_close(edited(model, ablation_edits(model, parts)), without(IDS), **CLOSE)


def reference_with_means(model: GPT, part: Part) -> np.ndarray:
    """Logits ``(batch, time, vocab)`` with ``part``'s output replaced by its mean over IDS, written out in NumPy."""
    state = arrays(model)

    def run(ids: np.ndarray, instead: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and the part's own output; ``instead`` takes that output's place."""
        h, output = formulas.embedding(state, ids), np.empty(0)
        for layer in range(LAYERS):
            block = formulas.below(state, f"blocks.{layer}")
            n = formulas.layer_norm(h, block["attention_norm.weight"], block["attention_norm.bias"])
            qkv = formulas.linear(n, block["attention.qkv.weight"], block["attention.qkv.bias"])
            heads = []
            for head in range(HEADS):
                q, k, v = (qkv[:, i * DIM + head * WIDTH : i * DIM + (head + 1) * WIDTH] for i in range(3))
                mixed = formulas.attention(q, k, v)
                if part == Part(layer, head):
                    output = mixed
                    mixed = mixed if instead is None else np.tile(instead, (len(ids), 1))
                heads.append(mixed)
            joined = np.concatenate(heads, axis=1)
            h = h + formulas.linear(joined, block["attention.w_o.weight"], block["attention.w_o.bias"])
            n = formulas.layer_norm(h, block["ffn_norm.weight"], block["ffn_norm.bias"])
            fed = formulas.feed_forward(n, formulas.below(block, "ffn"))
            if part == Part(layer, None):
                output = fed
                fed = fed if instead is None else np.tile(instead, (len(ids), 1))
            h = h + fed
        h = formulas.layer_norm(h, state["final_norm.weight"], state["final_norm.bias"])
        return h @ state["token_embedding.weight"].T, output

    outputs = np.concatenate([run(row, None)[1] for row in IDS.numpy()])  # every position of every row
    mean = outputs.sum(axis=0) / (BATCH * TIME)
    return np.stack([run(row, mean)[0] for row in IDS.numpy()])


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_mean_ablation_of_every_part_equals_a_plain_computation(part: Part) -> None:
    model = gpt()
    ablated = edited(model, ablation_edits(model, [part], "mean", IDS))
    np.testing.assert_allclose(ablated.numpy(), reference_with_means(model, part), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ablated, edited(model, ablation_edits(model, [part])))


def test_the_means_of_parts_ablated_together_are_those_of_the_untouched_run() -> None:
    model, parts = gpt(), [Part(0, 1), Part(2, 0), Part(2, None)]
    edits = ablation_edits(model, parts, "mean", IDS)
    names = ["blocks.0.attention.head_output", "blocks.2.attention.head_output", "blocks.2.ffn.output"]
    with torch.no_grad(), model.record(names) as clean:
        model(IDS)
    with torch.no_grad(), model.record(names, edits) as ablated:
        model(IDS)
    mean = clean[names[1]].mean(dim=(0, 2))[0]
    torch.testing.assert_close(ablated[names[1]][:, 0], mean.expand(BATCH, TIME, -1), **CLOSE)
    torch.testing.assert_close(ablated[names[2]], clean[names[2]].mean(dim=(0, 1)).expand(BATCH, TIME, -1), **CLOSE)
    # head 1 of layer 2 stays its own, which follows what was done to layer 0
    assert not torch.allclose(ablated[names[1]][:, 1], clean[names[1]][:, 1])


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_the_one_head_model_without_its_head(kind: Ablation) -> None:
    model = single_head()
    without = copy.deepcopy(model)
    with torch.no_grad(), model.record(["attention.head_output"]) as trace:
        model(IDS)
    if kind == "zero":
        without.attention.w_0.weight.data.zero_()
        expected = without(IDS)
    else:
        mean = trace["attention.head_output"].mean(dim=(0, 1), keepdim=True).expand(BATCH, TIME, -1)
        expected = edited(model, {"attention.head_output": mean})
    torch.testing.assert_close(edited(model, ablation_edits(model, [Part(0, 0)], kind, IDS)), expected, **CLOSE)


def test_a_mean_needs_something_to_be_the_mean_of() -> None:
    with pytest.raises(CallError, match="needs reference_ids to take the mean over"):
        ablation_edits(gpt(), [Part(0, 0)], "mean")


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablating_each_gives_every_part_its_change(kind: Ablation) -> None:
    model = gpt()
    changes = dict(ablate_each(model, IDS, kind))
    assert list(changes) == PARTS
    for part, change in changes.items():
        assert change == pytest.approx(ablated_loss(model, IDS, [part], kind) - text_loss(model, IDS), abs=1e-12)
    assert len({round(change, 9) for change in changes.values()}) == len(PARTS)


def test_the_loss_of_a_text_is_the_reference_cross_entropy() -> None:
    model = gpt()
    state = arrays(model)
    logits = [formulas.gpt(state, row, n_layer=LAYERS, n_head=HEADS)[:-1] for row in IDS.numpy()]
    losses = [formulas.cross_entropy(z, row[1:]) for z, row in zip(logits, IDS.numpy(), strict=True)]
    assert text_loss(model, IDS) == pytest.approx(sum(losses) / BATCH, rel=1e-10)
    with pytest.raises(CallError, match="the text has 1 token and a loss needs 2"):
        text_loss(model, IDS[:, :1])


def test_nothing_is_left_behind_and_dropout_is_off_meanwhile() -> None:
    model = gpt(dropout=0.5).train()
    assert ablated_loss(model, IDS, [Part(1, 0)], "mean") == ablated_loss(model, IDS, [Part(1, 0)], "mean")
    assert model.training
    assert model.eval()(IDS).isfinite().all()


# of their own: an edit of shared blocks is one of several layers, and NeuTRENO adds to the heads' outputs
OF_THEIR_OWN = [c for c in CONFIGS if not {"n_unique", "loop"} & set(c) and "neutreno" not in name_of(c)]


@pytest.mark.parametrize("changes", OF_THEIR_OWN, ids=name_of)
def test_every_variant_loses_the_same_by_its_edited_output_projection(changes: dict[str, Any]) -> None:
    """Each part of layer 1 by itself: its head's columns of the projection at 0, or its FFN's output."""
    model = build(changes)
    ids = random_ids(17, 2, model.trace_limit or 8)
    for part in (part for part in all_parts(model) if part.layer == 1):
        without = copy.deepcopy(model)
        block = without.blocks[1].unwrapped
        if part.head is None:
            block.ffn.forward = lambda x, context: torch.zeros_like(x)
        else:
            weight = block.attention.w_o.weight.data
            width = weight.shape[1] // block.attention.n_head
            weight[:, part.head * width : (part.head + 1) * width] = 0
        ablated = edited(model, ablation_edits(model, [part]), ids)
        torch.testing.assert_close(ablated, without(ids).detach(), **CLOSE)


# --- patching ----------------------------------------------------------------------------------------------------

MODELS = pytest.mark.parametrize("make", [gpt, single_head])
Make = Callable[[], LanguageModel]


@MODELS
def test_patching_everything_of_a_text_into_itself_changes_nothing(make: Make) -> None:
    model = make()
    torch.testing.assert_close(patched_logits(model, IDS, IDS, "*"), model(IDS).detach(), **CLOSE)
    torch.testing.assert_close(patched_logits(model, IDS, IDS, "*", [0, 3]), model(IDS).detach(), **CLOSE)


@MODELS
def test_patching_the_embedding_gives_the_logits_of_the_other_text(make: Make) -> None:
    model = make()
    torch.testing.assert_close(patched_logits(model, OTHER, IDS, "embedding"), model(OTHER).detach(), **CLOSE)
    assert not torch.allclose(model(OTHER), model(IDS))


@MODELS
def test_patching_a_position_of_the_embedding_changes_that_token(make: Make) -> None:
    model, mixed = make(), IDS.clone()
    mixed[:, 2] = OTHER[:, 2]
    patched = patched_logits(model, OTHER, IDS, ["embedding"], [2])
    torch.testing.assert_close(patched, model(mixed).detach(), **CLOSE)
    torch.testing.assert_close(patched[:, :2], model(IDS).detach()[:, :2], **CLOSE)


def test_patching_a_position_works_between_texts_of_unequal_length() -> None:
    model, mixed = gpt(), IDS.clone()
    mixed[:, 1] = OTHER[:, 1]
    torch.testing.assert_close(
        patched_logits(model, OTHER[:, :3], IDS, "embedding", [1]), model(mixed).detach(), **CLOSE
    )


def test_patching_the_stream_after_the_last_block_gives_the_other_text_at_those_positions() -> None:
    model = gpt()
    patched = patched_logits(model, OTHER, IDS, f"blocks.{LAYERS - 1}.after_ffn", [0, 4])
    for position in range(TIME):
        expected = OTHER if position in (0, 4) else IDS
        torch.testing.assert_close(patched[:, position], model(expected).detach()[:, position], **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: patched_logits(m, OTHER[:, :3], IDS, "embedding"), "3 and 5 tokens; .*give positions"),
        (
            lambda m: patched_logits(m, OTHER[:, :3], IDS, "embedding", [3]),
            r"position 3 is outside one of the texts .*0 to 2\)",
        ),
        (
            lambda m: patched_logits(m, OTHER[:1], IDS, "embedding", [1]),
            r"the texts have shapes \(1, 5\) and \(\d, 5\); each text is patched from the one in its row",
        ),
        (lambda m: patched_logits(m, OTHER[:1], IDS, "embedding"), r"the texts have shapes \(1, 5\) and \(\d, 5\)"),
        (lambda m: patched_logits(m, OTHER, IDS, "embeding"), r"no intermediate is named 'embeding'.*embedding"),
        (
            lambda m: patched_logits(m, OTHER[:, :3], IDS, "blocks.0.attention.pattern", [1]),
            "'blocks.0.attention.pattern' has rows of 3 and 5",
        ),
    ],
)
def test_what_cannot_be_patched_is_refused(call: Callable[[GPT], Tensor], message: str) -> None:
    with pytest.raises(CallError, match=message):
        call(gpt())


def test_patching_no_position_changes_nothing() -> None:
    model = gpt()
    torch.testing.assert_close(patched_logits(model, OTHER, IDS, "blocks.*", []), model(IDS).detach(), **CLOSE)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize(("time", "said"), [(1, "1 token and"), (0, "0 tokens and")])
def test_a_text_without_a_second_token_has_no_loss(kind: Ablation, time: int, said: str) -> None:
    with pytest.raises(CallError, match=f"the text has {said} a loss needs 2"):
        ablated_loss(gpt(), IDS[:, :time], [Part(0, 0)], kind)


@pytest.mark.parametrize("positions", [[1], None])
def test_what_an_expert_reads_cannot_be_patched(positions: list[int] | None) -> None:
    """Its rows are the tokens that chose it."""
    model = gpt(ffn={"kind": "moe", "n_expert": 3, "top_k": 1, "hidden": 6})
    said = "has no row for each position" if positions else r"is \(\d+, 6\) in one run and \(\d+, 6\) in the other"
    with pytest.raises(CallError, match=said):
        patched_logits(model, OTHER, IDS, "blocks.*.ffn.experts.*.hidden", positions)


@pytest.mark.parametrize("n_unique", [None, 1], ids=["own", "shared"])
def test_connections_between_copies_are_patched_by_position(n_unique: int | None) -> None:
    """A shared block is found under the name of each of its layers."""
    model = gpt(residual="hyper_connections", n_unique=n_unique)
    names = [f"blocks.{layer}.{half}_connection.*" for layer in range(LAYERS) for half in ("attention", "ffn")]
    patched = patched_logits(model, OTHER, IDS, ["embedding", *names], [3])
    torch.testing.assert_close(patched[:, :3], model(IDS).detach()[:, :3], **CLOSE)


# --- path patching -----------------------------------------------------------------------------------------------

LATER = [Part(1, 0), Part(1, 1)]


def two_layers(**options: Any) -> GPT:
    config = GPTConfig(n_layer=2, n_head=HEADS, dim=DIM, block_size=6, vocab_size=VOCAB, ffn="none", **options)
    return randomise(GPT(config).double()).eval()


def test_all_paths_together_are_the_patched_activation() -> None:
    model, sender = two_layers(), Part(0, 1)
    with torch.no_grad(), model.record("blocks.0.attention.head_output") as source:
        model(OTHER)

    def replace(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, 1] = source["blocks.0.attention.head_output"][:, 1]
        return changed

    expected = edited(model, {"blocks.0.attention.head_output": replace})
    patched = path_patched_logits(model, OTHER, IDS, sender, [*LATER, LOGITS])
    torch.testing.assert_close(patched, expected, **CLOSE)
    assert not torch.allclose(patched, model(IDS))


def test_a_path_is_the_one_from_the_sender_to_the_receiver_alone() -> None:
    """From the weights: head 0 of layer 1 reads the stream with the sender's other output, everything else does not."""
    model = two_layers(residual="pre")
    with torch.no_grad(), model.record() as source:
        model(OTHER)
    with torch.no_grad(), model.record() as target:
        model(IDS)
    first, second = model.blocks
    with torch.no_grad():
        name = "attention.head_output"
        moved = (source[name, 0][:, 1] - target[name, 0][:, 1]) @ first.attention.w_o.weight[:, columns(Part(0, 1))].T
        stream = target["after_ffn", 0]
        with model.record(["blocks.1.attention.head_output"]) as reading:
            second.attention(second.attention_norm(stream + moved))
        change = (reading[name, 1][:, 0] - target[name, 1][:, 0]) @ second.attention.w_o.weight[
            :, columns(Part(1, 0))
        ].T
        after = target["after_ffn", 1]
        expected = model.head(model.final_norm(after + change))
        direct = model.head(model.final_norm(after + moved))
    torch.testing.assert_close(path_patched_logits(model, OTHER, IDS, Part(0, 1), [Part(1, 0)]), expected, **CLOSE)
    torch.testing.assert_close(path_patched_logits(model, OTHER, IDS, Part(0, 1), [LOGITS]), direct, **CLOSE)
    assert (change.abs().amax(dim=-1) > 1e-6).all()


def test_a_path_into_an_ffn_and_out_of_one() -> None:
    model = gpt()
    with torch.no_grad(), model.record() as source:
        model(OTHER)
    with torch.no_grad(), model.record() as target:
        model(IDS)
        moved = source["ffn.output", 0] - target["ffn.output", 0]
    last = model.blocks[2]
    with torch.no_grad():
        entering = target["after_attention", 2] + moved
        change = last.ffn(last.ffn_norm(entering)) - target["ffn.output", 2]
        expected = model.head(model.final_norm(target["after_ffn", 2] + change))
    patched = path_patched_logits(model, OTHER, IDS, Part(0, None), [Part(2, None)])
    torch.testing.assert_close(patched, expected, **CLOSE)


def test_no_receiver_and_the_same_text_change_nothing() -> None:
    model = gpt()
    for source, receivers in ((OTHER, []), (IDS, [Part(1, 0), Part(2, None), LOGITS])):
        patched = path_patched_logits(model, source, IDS, Part(0, 0), receivers)  # type: ignore[arg-type]
        torch.testing.assert_close(patched, model(IDS), **CLOSE)


def test_the_induction_head_reads_the_previous_token_head() -> None:
    """In a text that repeats, the copying stops if the induction head reads another text's previous tokens."""
    model, repeated = copying_model(), torch.arange(12)[None] % 6
    other = (torch.arange(12)[None] % 6 + 20).flip(1)
    other[:, :] = torch.where(torch.arange(12) < 6, other, repeated)
    follows = repeated.roll(-1, 1)[0, 6:11]
    plain = model(repeated)[0, 6:11].argmax(dim=-1)
    assert torch.equal(plain, follows)
    patched = path_patched_logits(model, other, repeated, Part(0, 0), [Part(1, 0)])[0, 6:11].argmax(dim=-1)
    assert not (patched == follows).any()
    directly = path_patched_logits(model, other, repeated, Part(0, 0), [LOGITS])[0, 6:11].argmax(dim=-1)
    assert torch.equal(directly, follows)


@pytest.mark.parametrize(
    ("sender", "receivers", "said"),
    [
        (Part(1, 0), [Part(0, 0)], r"no path leads from 1\.0 to 0\.0"),
        (Part(1, 0), [Part(1, 1)], r"no path leads from 1\.0 to 1\.1"),
        (Part(1, None), [Part(1, None)], r"no path leads from 1\.ffn to 1\.ffn"),
        (Part(0, 0), [Part(3, 0)], r"the model has no part 3\.0"),
        (Part(0, 5), [LOGITS], r"the model has no part 0\.5"),
    ],
)
def test_paths_that_do_not_exist_are_refused(sender: Part, receivers: list[Any], said: str) -> None:
    with pytest.raises(CallError, match=said):
        path_patched_logits(gpt(), OTHER, IDS, sender, receivers)


def test_paths_between_texts_of_other_shapes_are_refused() -> None:
    with pytest.raises(CallError, match=r"the texts have shapes \(2, 4\) and \(2, 5\)"):
        path_patched_logits(gpt(), OTHER[:, :4], IDS, Part(0, 0), [LOGITS])
