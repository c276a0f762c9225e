"""YaRN against its formula, against the paper's ramp, and against another implementation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.positions.yarn import YarnPositions
from tests.models.helpers import randomise
from tests.models.slopes import Array, assert_equals_reference
from tests.models.variants import SIZES, build
from tests.reference import attention_kinds, yarn

DEVICE = torch.get_default_device()
SETTINGS = [
    # width, base, factor, original, beta_fast, beta_slow
    (64, 10000.0, 16.0, 4096, 32.0, 1.0),
    (128, 10000.0, 4.0, 4096, 32.0, 1.0),
    (64, 150000.0, 32.0, 4096, 32.0, 1.0),
    (128, 1000000.0, 4.0, 32768, 32.0, 1.0),
    (64, 10000.0, 2.0, 256, 8.0, 2.0),
    (32, 10000.0, 8.0, 20, 32.0, 1.0),  # the fastest pair makes fewer turns than beta_fast
    (8, 100.0, 3.0, 100000, 32.0, 1.0),  # the slowest makes more than beta_slow
    (2, 10000.0, 4.0, 64, 32.0, 1.0),
]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def scheme_of(setting: tuple[Any, ...]) -> YarnPositions:
    _, base, factor, original, fast, slow = setting
    return YarnPositions(16, base, factor, original, fast, slow)


@every_setting
def test_frequencies_are_those_of_the_formula(setting: tuple[Any, ...]) -> None:
    found = scheme_of(setting).frequencies(setting[0], DEVICE)
    np.testing.assert_allclose(found.numpy(force=True), yarn.frequencies(*setting), rtol=2e-6)


@every_setting
def test_what_is_kept_or_interpolated_in_full_is_the_papers(setting: tuple[Any, ...]) -> None:
    """The paper's ramp rises with the turns, the code's with the index; they have the same two ends."""
    width, base, _, original, fast, slow = setting
    for pair, kept in enumerate(scheme_of(setting).kept(width, DEVICE).tolist()):
        turns = yarn.turns(pair, width, base, original)
        expected = yarn.ramp_of_the_paper(turns, fast, slow)
        if expected in (0.0, 1.0):
            assert kept == expected, pair
        else:
            assert 0 <= kept <= 1


@every_setting
def test_frequencies_and_temperature_are_those_of_transformers(setting: tuple[Any, ...]) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    width, base, factor, original, fast, slow = setting
    config = transformers.LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": fast,
            "beta_slow": slow,
        },
    )
    theirs, magnitude = rope.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    scheme = scheme_of(setting)
    torch.testing.assert_close(scheme.frequencies(width, DEVICE), theirs.to(DEVICE), rtol=2e-6, atol=0)
    assert scheme.magnitude == pytest.approx(magnitude)


@pytest.mark.parametrize("options", [{}, {"beta_fast": 2.0, "beta_slow": 0.25, "base": 100.0}], ids=str)
def test_attention_with_yarn_equals_the_formula(options: dict[str, float]) -> None:
    scheme = YarnPositions(block_size=16, factor=4.0, **options)
    given = (scheme.base, scheme.factor, 16, scheme.beta_fast, scheme.beta_slow)
    scheme.frequencies = lambda width, device: torch.tensor(  # type: ignore[method-assign]
        yarn.frequencies(width, *given), dtype=torch.float64
    )
    layer = randomise(MultiHeadAttention(12, 2, bias=False, dropout=0.0, backend="sdpa")).double()

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        head = attention_kinds.softmax_head()
        return attention_kinds.layer(x, state, 2, head, turn=lambda q: yarn.rotated(q, *given))

    x = torch.randn(2, 9, 12, generator=torch.Generator(torch.get_default_device()).manual_seed(1), dtype=torch.float64)
    assert_equals_reference(layer, reference, x, lambda x: layer(x, Context(scheme=scheme)))


def test_a_factor_of_one_is_rotary_positions() -> None:
    positions = torch.arange(50)
    for one, other in zip(
        YarnPositions(16).rotation(8, positions, torch.float64),
        RotaryPositions().rotation(8, positions, torch.float64),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_the_original_length_is_the_block_size_unless_it_is_given() -> None:
    ids = torch.arange(17)[None]
    by_default = build({"position": {"kind": "yarn", "factor": 2.0}})
    given = build({"position": {"kind": "yarn", "factor": 2.0, "original": SIZES["block_size"]}})
    other = build({"position": {"kind": "yarn", "factor": 2.0, "original": 5000}})
    assert torch.equal(by_default(ids), given(ids))
    assert not torch.equal(by_default(ids), other(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.5}, "position factor is 0.5; it must be a number from 1 to 1,000,000"),
        ({"original": 0}, "position original is 0; it must be a whole number from 1 to 16,777,216"),
        ({"beta_fast": 1.0}, "position beta_slow is 1.0; it must be below beta_fast, which is 1.0"),
        ({"beta_slow": 0.0}, "position beta_slow is 0.0; it must be a number from 1e-06 to 1,000,000"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPT(GPTConfig(**{**SIZES, "position": {"kind": "yarn", **options}}))
    assert message in str(refused.value)


def test_unit_vectors_carry_the_temperature_too() -> None:
    """``spherical`` norms queries and keys; each then has the factor, and scores have its square."""
    scores = []
    for magnitude in (1.0, 2.0):
        model = build({"attention": "spherical", "position": {"kind": "yarn", "factor": 2.0, "magnitude": magnitude}})
        with torch.no_grad(), model.record("blocks.0.attention.scores") as trace:
            model(torch.arange(9)[None])
        scores.append(trace["blocks.0.attention.scores"])
    finite = scores[0].isfinite()
    torch.testing.assert_close(scores[1][finite], 4 * scores[0][finite], rtol=1e-9, atol=1e-9)
