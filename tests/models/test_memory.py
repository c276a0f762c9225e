"""Memory from segment to segment: its formulas, what it hands on and what it does not, and what is refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models import MemoryGPT
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.speculative import sample_speculatively
from lightning_gpt.models.memory.base import Memory, State
from tests.models.helpers import random_ids
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SEGMENTS, SIZES, TOKENS, build, fresh
from tests.reference import memory as plain

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
KINDS: dict[str, dict[str, Any]] = {
    "segment": {"memory": SEGMENTS, "position": "rotary"},
    "segment, long": {"memory": {"kind": "segment", "segment": 4, "length": 11}, "position": "alibi"},
    "segment, places": {
        "memory": SEGMENTS,
        "position": "none",
        "attention": [{"kind": "global_window", "window": 3, "n_global": 2}, "value_embedding"],
    },
    "tokens": {"memory": TOKENS, "position": "rotary"},
    "tokens, learned": {"memory": TOKENS},
}
every_kind = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


class OfStream(MemoryGPT):
    """A GPT with memory that is given its stream: token i of every row is the i-th vector of it."""

    stream: Tensor

    def embed(self, ids: Tensor, context: Any) -> Tensor:
        return self.stream.gather(1, ids[..., None].expand(*ids.shape, self.stream.shape[-1]))

    def of(self, stream: Tensor) -> Tensor:
        """Hidden states of a stream ``(batch, time, dim)``."""
        self.stream = stream
        return self.hidden(torch.arange(stream.shape[1]).expand(len(stream), -1))


def model_of_stream(memory: dict[str, Any]) -> tuple[OfStream, nn.Module, Tensor]:
    """The model, the module of the parameters that work on the stream, and a stream of three and a half segments."""
    whole = build({"memory": memory, "position": "none", "vocab_size": 30, "block_size": 16})
    assert isinstance(whole, MemoryGPT)
    model = OfStream(whole.config).double().eval()
    model.load_state_dict(whole.state_dict())
    parts = nn.ModuleDict({"blocks": model.blocks, "final_norm": model.final_norm, "memory": model.memory})
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter *= 0.5  # less curved, so that differences tell the slope
    return (
        model,
        parts,
        torch.randn(2, 14, SIZES["dim"], generator=torch.Generator(torch.get_default_device()).manual_seed(2)).double(),
    )


@pytest.mark.parametrize("length", [2, 4, 6])
def test_segment_recurrence_equals_its_formula_and_its_gradient_stops_at_the_segment(length: int) -> None:
    model, parts, x = model_of_stream({"kind": "segment", "segment": 4, "length": length})
    at = {name: parameter.numpy(force=True) for name, parameter in parts.named_parameters()}
    frozen = {row.tobytes(): plain.segment_recurrence(row, at, 4, 4, length)[1] for row in x.numpy(force=True)}
    memories = list(frozen.values())
    calls = 0

    def reference(row: Array, state: Mapping[str, Array]) -> Array:
        nonlocal calls
        kept = memories[calls % len(memories)]  # the rows come in turn; their memory stays as it was
        calls += 1
        return plain.segment_recurrence(row, state, 4, 4, length, kept)[0]

    for row, hidden in zip(x.numpy(force=True), model.of(x).numpy(force=True), strict=True):
        np.testing.assert_allclose(hidden, plain.segment_recurrence(row, at, 4, 4, length)[0], **CLOSE)
    assert_equals_reference(parts, reference, x, model.of)


def test_memory_tokens_equal_their_formula_and_are_learnt_through_all_segments_of_a_row() -> None:
    model, parts, x = model_of_stream({"kind": "tokens", "segment": 4, "n_memory": 3})
    assert_equals_reference(parts, lambda row, state: plain.memory_tokens(row, state, 4, 4), x, model.of)


@every_kind
def test_going_on_from_a_state_is_reading_as_one(changes: dict[str, Any]) -> None:
    """Over rows that begin their documents at different times; nothing of the document before is left."""
    model, ids = build(changes), random_ids(17, 3, 24)
    memory = model.memory
    assert isinstance(memory, Memory)
    begins = torch.tensor([[True, False, False], [True, False, True], [True, True, False]])
    state, hidden = memory.new_state(3, model.token_embedding.weight), []
    with torch.no_grad():
        for step, piece in enumerate(ids.split(8, dim=1)):
            state = state.started(begins[:, step])
            with memory.carried(state):
                hidden.append(model.hidden(piece))
        read = torch.cat(hidden, dim=1)
        for row, starts in enumerate(begins):
            places = [8 * step for step in range(3) if starts[step]]
            for begin, end in zip(places, [*places[1:], 24], strict=True):
                torch.testing.assert_close(read[row, begin:end], model.hidden(ids[row, None, begin:end])[0], **CLOSE)
    assert state.read.tolist() == [24, 8, 16]


@every_kind
def test_what_was_read_long_ago_still_matters_and_later_tokens_never_do(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 1, 22)
    logits = model(ids)
    for position in (1, 3, 4, 9):
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % 17
        change = (model(changed) - logits).abs().amax(dim=-1)[0]
        assert (change[:position] < 1e-12).all()
        assert change[4 * (position // 4 + 1)] > 1e-9, "the next segment hears of it"
    if changes["memory"]["kind"] == "tokens":
        assert change[21] > 1e-12


@every_kind
def test_no_gradient_flows_into_the_state(changes: dict[str, Any]) -> None:
    model = build(changes)
    memory = model.memory
    assert isinstance(memory, Memory)
    state = memory.new_state(2, model.token_embedding.weight)
    for seed in (1, 2):
        with memory.carried(state):
            model.loss(random_ids(17, 2, 8, seed=seed), random_ids(17, 2, 8, seed=seed + 1)).backward()
        assert not any(tensor.requires_grad for tensor in vars(state).values())


@every_kind
def test_a_row_of_many_segments_counts_the_parts_losses_once(changes: dict[str, Any]) -> None:
    """The load-balancing loss of a row is the mean of its segments'."""
    changes = {**changes, "ffn": {"kind": "moe", "n_expert": 4}}
    model, row = build(changes).train(), random_ids(17, 1, 4)
    gradients = []
    for ids in (row, row.repeat(1, 4)):
        model.zero_grad()
        model.loss(ids, torch.full_like(ids, -100)).backward()  # the parts' losses alone
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    assert gradients[0] > 0
    assert 0.2 * gradients[0] < gradients[1] < 2 * gradients[0]


def test_a_row_alone_leaves_the_state_as_it_was() -> None:
    state = State(torch.zeros(3, 2), torch.zeros(3, 0), torch.tensor([1, 2, 3]))
    state.row(1).read += 5
    one = state.row(1)
    one.read = one.read + 1
    assert state.started(torch.tensor([True, False, False])).read.tolist() == [0, 7, 3]
    assert state.read.tolist() == [1, 7, 3]


@pytest.mark.parametrize("length", [6, 40])
def test_the_cache_stays_as_long_as_the_memory(length: int) -> None:
    model, ids = build(KINDS["segment"]), random_ids(17, 1, 200)
    cache = model.new_cache(200)
    with torch.no_grad():
        for piece in ids.split(length, dim=1):
            last = model.hidden(piece, cache=cache)
        torch.testing.assert_close(last, model.hidden(ids)[:, -last.shape[1] :], **CLOSE)
    assert all(state.k.shape[-2] <= 4 + 6 + 16 for state in cache.layers)  # type: ignore[union-attr]


def test_speculative_decoding_goes_with_segments_and_not_with_tokens() -> None:
    segments, tokens, draft = build(KINDS["segment"]), build(KINDS["tokens"]), build({"n_layer": 1}, block_size=64)
    ids, greedy = random_ids(17, 1, 5), Sampling(temperature=0)
    drawn = torch.stack(list(sample_speculatively(segments, draft, ids, 20, greedy)), dim=1)
    assert drawn.tolist() == segments.generate(ids, 20, temperature=0)[:, 5:].tolist()
    with pytest.raises(CallError, match="or memory tokens; use no draft"):
        next(sample_speculatively(tokens, draft, ids, 20, greedy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"memory": "segment"},
            "position 'learned' only encodes positions within a segment; use position alibi, llama3, none, rot",
        ),
        (
            {"memory": {"kind": "segment"}, "position": {"kind": "sinusoidal"}},
            "use position alibi, llama3, none, rotary, t5, yarn",
        ),
        (
            {"memory": {"kind": "tokens", "n_memory": 2}, "layer_drop": {"kind": "constant", "rate": 0.1}},
            "use layer_drop",
        ),
        ({"memory": "tokens"}, "memory 'tokens' needs the option 'n_memory'"),
        (
            {"memory": {"kind": "tokens", "n_memory": 0}},
            "memory n_memory is 0; it must be a whole number from 1 to 16,777,216",
        ),
        (
            {"memory": {"kind": "tokens", "n_memory": 2, "segment": 7}},
            "memory segment is 7; it must divide block_size, w",
        ),
        ({**KINDS["segment"], "memory": {"kind": "segment", "length": -3}}, "memory length is -3; it must be"),
        (
            {**KINDS["tokens"], "attention": ["full", "linear"]},
            "memory needs attention that keeps keys and values, which 'linear' does not; use attention full",
        ),
        (
            {**KINDS["tokens"], "token_routing": "mixture_of_depths"},
            "but token_routing skips some; use token_routing none",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        fresh(changes)
    assert message in str(refused.value)


@every_kind
def test_what_cannot_be_done_with_a_memory_is_refused(changes: dict[str, Any]) -> None:
    model, ids = build(changes), random_ids(17, 2, 9)
    memory = model.memory
    assert isinstance(memory, Memory)
    with pytest.raises(CallError, match="exit_confidence and memory cannot be combined"):
        EarlyExit(model, 0.5)
    with model.record(["final_norm"]) as trace:
        model(ids[:, : model.trace_limit])
    assert trace["final_norm"].shape == (2, 4, 16)
    with (
        pytest.raises(CallError, match="can record only one segment of 4 tokens at a time"),
        model.record(["final_norm"]),
    ):
        model(ids)
    state = memory.new_state(2, model.token_embedding.weight)
    with pytest.raises(CallError, match="in whole segments of 4 tokens; the input has 9"), memory.carried(state):
        model(ids)
    cache = model.new_cache(20)
    with torch.no_grad():
        model.hidden(ids, cache=cache)
        with pytest.raises(CallError, match="cannot continue with unequal lengths"):
            model.hidden(ids, cache=cache, lengths=torch.tensor([9, 2]))
