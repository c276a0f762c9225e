"""What attention keeps and holds: caches that stay small, and no tensor that grows faster than the kind's formula."""

from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.linear import Sums
from lightning_gpt.models.kv_cache import LOOKAHEAD
from lightning_gpt.models.record import record
from lightning_gpt.models.registry import Given
from tests.models.helpers import TensorSizes, random_ids
from tests.models.layers import CLOSE, DIM, HEADS, make, normal
from tests.models.variants import build

# --- caches ----------------------------------------------------------------------------------------------------

LONG: list[dict[str, Any]] = [
    {"attention": {"kind": "window", "window": 5}},
    {"attention": {"kind": "global_window", "window": 5, "n_global": 3}, "position": "alibi"},
    {"attention": {"kind": "strided", "stride": 6, "n_summary": 2}, "position": "t5"},
    {"attention": "linear", "position": "rotary"},
    {"attention": "differential", "position": "rotary"},
    {"attention": "sink", "position": "alibi"},
    {"attention": [{"kind": "window", "window": 3}, "full"], "position": "none"},
]
long_kinds = pytest.mark.parametrize("changes", [{"position": "rotary", **changes} for changes in LONG], ids=str)


@long_kinds
@pytest.mark.parametrize("pieces", [[1] * 90, [40, *[1] * 10, 30, 10], [2, 1, 50, 1, 36], [90]], ids=len)
def test_a_long_text_read_in_pieces_is_what_it_is_read_at_once(changes: dict[str, Any], pieces: list[int]) -> None:
    """Far beyond what a ring of slots holds, so that it turns over."""
    model, ids = build(changes), random_ids(17, 2, 90)
    cache = model.new_cache(90)
    with torch.no_grad():
        hidden = torch.cat([model.hidden(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(hidden, model.hidden(ids), **CLOSE)


@long_kinds
def test_rows_of_unequal_length_go_on_in_long_pieces_as_if_alone(changes: dict[str, Any]) -> None:
    model, ids, lengths = build(changes), random_ids(17, 3, 50), torch.tensor([50, 2, 31])
    more = random_ids(17, 3, 60, seed=3)
    cache = model.new_cache(110)
    with torch.no_grad():
        model.hidden(ids, cache=cache, lengths=lengths)
        after = torch.cat([model.hidden(piece, cache=cache) for piece in more.split([1, 4, 55], dim=1)], dim=1)
        for row, length in enumerate(lengths.tolist()):
            alone = model.hidden(torch.cat([ids[row, :length], more[row]])[None])
            torch.testing.assert_close(after[row], alone[0, length:], **CLOSE)


@pytest.mark.parametrize("changes", [LONG[0], {"convolution": "canon"}], ids=str)
def test_padding_that_would_be_written_over_what_is_seen_is_refused(changes: dict[str, Any]) -> None:
    model, ids = build({"position": "none", **changes}), random_ids(17, 2, 30)
    cache = model.new_cache(110)
    with torch.no_grad():
        model.hidden(ids, cache=cache, lengths=torch.tensor([30, 29]))
        with pytest.raises(CallError, match="cannot go on with rows of unequal length"):
            model.hidden(ids, cache=cache, lengths=torch.tensor([2, 30]))


def test_rows_of_unequal_length_can_take_back_what_is_beyond_a_length() -> None:
    model, ids, more = build({}), random_ids(17, 2, 12), random_ids(17, 2, 1, seed=3)
    cache = model.new_cache(20)
    with torch.no_grad():
        model.hidden(ids, cache=cache, lengths=torch.tensor([5, 12]))
        cache.truncate(10)
        after = model.hidden(more, cache=cache)
        for row, length in enumerate((5, 10)):
            alone = model.hidden(torch.cat([ids[row, :length], more[row]])[None])
            torch.testing.assert_close(after[row], alone[0, length:], **CLOSE)


@pytest.mark.parametrize("taken_back", range(1, LOOKAHEAD + 1, 3))
def test_a_ring_that_turned_over_can_take_back_a_few_tokens(taken_back: int) -> None:
    for changes in LONG[:2]:
        model, ids = build({"position": "none", **changes}), random_ids(17, 1, 70)
        cache = model.new_cache(90)
        with torch.no_grad():
            model.hidden(ids[:, : 50 - taken_back], cache=cache)
            model.hidden(random_ids(17, 1, taken_back, seed=5), cache=cache)
            cache.truncate(50 - taken_back)
            rest = model.hidden(ids[:, 50 - taken_back :], cache=cache)
            torch.testing.assert_close(rest, model.hidden(ids)[:, 50 - taken_back :], **CLOSE)


def test_what_is_kept_does_not_grow_with_the_text_where_the_formula_needs_no_more() -> None:
    window, global_window, strided, linear = ([_kept(changes, time) for time in (60, 240)] for changes in LONG[:4])
    for short, long in (window, global_window, linear):
        assert short == long
    assert 3 * strided[0] < strided[1]


def _kept(changes: dict[str, Any], time: int) -> int:
    """Numbers in the cache after a text of that length."""
    model = build({"position": "rotary", **changes})
    cache = model.new_cache(time)
    with torch.no_grad():
        model.hidden(random_ids(17, 1, time), cache=cache)
    kept = (value for state in cache.layers for value in vars(state).values())
    return sum(value.numel() for value in kept if isinstance(value, torch.Tensor))


def test_a_sum_cannot_be_taken_back() -> None:
    model = build({"attention": ["linear", "full"]})
    cache = model.new_cache(10)
    assert not cache.can_truncate
    with pytest.raises(CallError, match="tokens cannot be removed"):
        Sums().truncate(3)


# --- cost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "growth"),
    [
        ({"kind": "window", "window": 16}, 2.0),
        ({"kind": "global_window", "window": 16, "n_global": 2}, 2.1),
        ("linear", 2.0),
        ("full", 2.0),
    ],
    ids=str,
)
def test_no_tensor_grows_faster_than_the_text(choice: Given, growth: float) -> None:
    """Forward and backward, the largest of them; plain attention's kernel holds no more either."""
    largest = {time: _largest(choice, time) for time in (512, 1024)}
    assert largest[1024] <= growth * largest[512]


def test_strided_attention_grows_as_time_times_its_root_where_the_stride_is_the_root() -> None:
    by_time = {stride * stride: _largest({"kind": "strided", "stride": stride}, stride * stride) for stride in (16, 32)}
    assert by_time[1024] <= 8.5 * by_time[256]  # 4^1.5 = 8, where 4² = 16
    assert by_time[1024] < 1024**2


def _largest(choice: Given, time: int) -> int:
    layer, x = make(choice).float(), torch.randn(1, time, DIM, requires_grad=True)
    with TensorSizes() as sizes:
        layer(x).sum().backward()
    return sizes.largest


@pytest.mark.parametrize("name", ["linear", "window", "global_window", "full"])
def test_a_long_pattern_is_not_made_unasked(name: str) -> None:
    layer = make(HEADS[name][0]).float()  # a device has no fused kernel for float64
    with TensorSizes() as sizes, record(layer, ["q", "head_output"]):
        layer(normal(1, 300, DIM).float())
    assert sizes.largest < 300 * 300
