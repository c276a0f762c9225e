"""Every position scheme against its formula, alone and within attention; sequences longer than were trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.positions.alibi import AlibiPositions
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.positions.t5 import T5Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.training.optim import adamw
from tests.models.helpers import property_test, randomise
from tests.models.slopes import Array, assert_equals_reference
from tests.reference import attention_kinds, parts


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    )


class Positioned(MultiHeadAttention):
    """Attention with its scheme, so that the parameters of both are looked at."""

    def __init__(self, choice: Given, n_head: int = 2, dim: int = 12) -> None:
        super().__init__(dim, n_head, bias=False, dropout=0.0, backend="sdpa")
        self.scheme = position_schemes.make(choice, dim=dim, n_head=n_head, block_size=16)

    def forward(self, x: torch.Tensor, context: Context = Context()) -> torch.Tensor:
        return super().forward(x, Context(scheme=self.scheme))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": 100.0},
        {"factor": 4.0},
        {"factor": 4.0, "extension": "ntk"},
        {"factor": 2.5, "base": 50.0},
        {"share": 0.7},
        {"share": 0.4, "base": 100.0},
        {"share": 0.8, "factor": 4.0, "extension": "ntk"},
    ],
    ids=str,
)
def test_attention_with_rotary_positions_equals_the_formula(options: dict[str, Any]) -> None:
    layer = randomise(Positioned({"kind": "rotary", **options})).double()
    of_pairs = {name: value for name, value in options.items() if name != "share"}
    rotated = 2 * round(6 * options.get("share", 1) // 2)  # of the 6 dimensions of a head
    precise = _precise(rotated, **of_pairs)
    layer.scheme.frequencies = lambda width, device: precise if width == rotated else None

    def turn(q: Array) -> Array:
        return np.concatenate([parts.rotated(q[:, :rotated], **of_pairs), q[:, rotated:]], axis=1)

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        return attention_kinds.layer(x, state, 2, attention_kinds.softmax_head(), turn=turn)

    assert_equals_reference(layer, reference, normal(2, 9, 12))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])  # of 6 dimensions: 0, 1 and 3
def test_a_share_that_leaves_no_pairs_is_refused(share: float) -> None:
    with pytest.raises(CallError, match=rf"share {share} of a head's width 6 is {int(6 * share)} dimensions; it must"):
        GPT(GPTConfig(n_head=2, dim=12, position={"kind": "rotary", "share": share}))


def _precise(width: int, base: float = 10000.0, factor: float = 1.0, extension: str = "linear") -> torch.Tensor:
    """The frequencies in double precision; the scheme's are single, and checked against these here."""
    held = RotaryPositions(base, factor, extension).frequencies(width, torch.get_default_device())
    if extension == "ntk":
        base, factor = base * factor ** (width / (width - 2)), 1.0
    precise = torch.tensor([base ** (-2 * i / width) / factor for i in range(width // 2)], dtype=torch.float64)
    torch.testing.assert_close(held, precise.float(), rtol=1e-6, atol=0)
    return precise


@pytest.mark.parametrize("n_head", [1, 2, 3, 6, 12])
def test_attention_with_alibi_equals_the_formula(n_head: int) -> None:
    """Given the slopes in single precision, as the scheme has them; the next test checks these."""
    layer = randomise(Positioned("alibi", n_head=n_head)).double()
    slopes = torch.tensor(parts.alibi_slopes(n_head), dtype=torch.float32).tolist()

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        bias = parts.alibi_bias(len(x), slopes)
        return attention_kinds.layer(x, state, n_head, attention_kinds.softmax_head(bias=bias))

    assert_equals_reference(layer, reference, normal(2, 7, 12))


@pytest.mark.parametrize("n_head", range(1, 40))
def test_the_slopes_of_alibi_are_the_papers(n_head: int) -> None:
    np.testing.assert_allclose(alibi_slopes(n_head), parts.alibi_slopes(n_head), rtol=1e-6)


def test_the_slopes_of_eight_heads_are_one_half_to_one_in_256() -> None:
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]


def alibi_slopes(n_head: int) -> list[float]:
    """What a distance of one takes off each head's scores."""
    return (-AlibiPositions(n_head).bias(torch.tensor([1]), torch.tensor([0]), torch.float64)).flatten().tolist()


@property_test
@given(n_bucket=st.integers(2, 40), more=st.integers(1, 300), head=st.integers(1, 3))
def test_t5_puts_a_distance_in_the_bucket_that_the_definition_gives(n_bucket: int, more: int, head: int) -> None:
    limit = n_bucket // 2 + more
    found = T5Positions(head, n_bucket, limit).bucket(torch.arange(2 * limit))
    begins = [
        (n_bucket // 2) * (limit / (n_bucket // 2)) ** (b / (n_bucket - n_bucket // 2)) for b in range(n_bucket + 1)
    ]
    for distance, bucket in enumerate(found.tolist()):
        if min(abs(distance - begin) for begin in begins) > 1e-3:  # on an edge itself rounding may decide
            assert bucket == parts.t5_bucket(distance, n_bucket, limit)


def test_the_default_buckets_of_t5_are_32_the_last_from_distance_128_on() -> None:
    scheme = T5Positions(1)
    found = scheme.bucket(torch.arange(2000)).tolist()
    assert found[:16] == list(range(16))
    assert sorted(set(found)) == list(range(32))
    assert found == sorted(found)
    assert set(found[128:]) == {31}


@pytest.mark.parametrize(("n_bucket", "max_distance"), [(4, 5), (6, 20), (32, 128)])
def test_attention_with_t5_buckets_equals_the_formula_also_in_the_gradient_of_its_table(
    n_bucket: int, max_distance: int
) -> None:
    layer = randomise(Positioned({"kind": "t5", "n_bucket": n_bucket, "max_distance": max_distance}), std=1.0).double()

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        bias = parts.t5_bias(len(x), state["scheme.weight"], max_distance)
        return attention_kinds.layer(x, state, 2, attention_kinds.softmax_head(bias=bias))

    assert_equals_reference(layer, reference, normal(2, 9, 12))


def test_sinusoids_are_the_papers_times_their_scale() -> None:
    scheme = position_schemes.make({"kind": "sinusoidal", "scale": 0.5}, dim=8, n_head=2, block_size=4)
    expected = 0.5 * parts.sinusoids(50, 8)
    made = scheme.embedding(50, None)
    assert made is not None
    np.testing.assert_allclose(made.numpy(force=True), expected, atol=1e-5)
    some = scheme.embedding(2, torch.tensor([[3, 4], [40, 41]]))
    assert some is not None
    np.testing.assert_allclose(some.numpy(force=True), expected[[[3, 4], [40, 41]]], atol=1e-5)


@property_test
@given(
    first=st.integers(0, 500),
    distance=st.integers(0, 500),
    shift=st.integers(0, 500),
    extension=st.sampled_from(["linear", "ntk"]),
)
def test_under_rotary_positions_a_score_depends_on_the_distance_alone(
    first: int, distance: int, shift: int, extension: str
) -> None:
    scheme = RotaryPositions(factor=2.0, extension=extension)
    q, k = normal(1, 1, 1, 8, seed=2), normal(1, 1, 1, 8, seed=3)

    def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
        return Context(positions=torch.tensor([position]), scheme=scheme).rotate(x)

    scores = [rotated(q, start + distance) @ rotated(k, start).mT for start in (first, first + shift)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("position", ["rotary", "alibi", "none"])
def test_a_model_trained_at_64_tokens_reads_256(position: str) -> None:
    """ALiBi, made for it, loses nothing at four times the length; the others stay within sense."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 4, "dim": 32, "block_size": 64, "vocab_size": 13}
    model = GPT(GPTConfig(**sizes, position=position))
    optimizer = adamw(model, lr=1e-2)
    for step in range(60):
        rows = _text(8, 65, seed=step)
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    rows = _text(32, 257, seed=10_000)
    with torch.no_grad():
        short, long = (float(model.loss(rows[:, :time], rows[:, 1 : time + 1])) for time in (64, 256))
    blind = float(np.log(13))
    assert short < 0.85 * blind, "something was learnt"
    assert long < blind
    if position == "alibi":
        assert long < 1.02 * short


def _text(rows: int, time: int, seed: int) -> torch.Tensor:
    """Each token is one more than the one before it (6 in 10), the one two before it (2 in 10), or chance."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    ids = torch.randint(13, (rows, time), generator=generator)
    dice = torch.rand(rows, time, generator=generator)
    for t in range(2, time):
        ids[:, t] = torch.where(dice[:, t] < 0.6, (ids[:, t - 1] + 1) % 13, ids[:, t])
        ids[:, t] = torch.where(dice[:, t] > 0.8, ids[:, t - 2], ids[:, t])
    return ids


STRETCHED = ({"kind": "yarn", "factor": 4.0}, {"kind": "llama3", "factor": 4.0, "base": 100.0})


@pytest.mark.parametrize(
    "position",
    [*position_schemes.names, *STRETCHED, *({**given, "original": 8} for given in STRETCHED)],
    ids=str,
)
def test_a_scheme_says_whether_the_block_size_is_part_of_what_it_computes(position: Given) -> None:
    """Weights trained at one block size then compute the same at another, where it is not."""
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "dim": 16, "vocab_size": 17, "position": position}
    long, short = (randomise(GPT(GPTConfig(**sizes, block_size=size))).double().eval() for size in (64, 12))
    if position == "learned":
        assert long.knows_length
        assert long.positions.weight.shape != short.positions.weight.shape
        return
    short.load_state_dict(long.state_dict())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        same = torch.allclose(long(ids), short(ids), rtol=0, atol=1e-12)
    if isinstance(position, dict):
        assert same is ("original" in position)
    assert same or long.knows_length
