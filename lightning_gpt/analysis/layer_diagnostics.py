"""What depth does to a model: every diagnostic by layer, each defined here under one name.

:mod:`lightning_gpt.analysis.probe` describes how layers are counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_gpt.analysis.attention_statistics import attention_distance, attention_entropy, first_token_share
from lightning_gpt.analysis.layer_measures import (
    Layers,
    block_cka,
    layer_value,
    logit_lens_loss,
    logit_rms,
    of_patterns,
    of_square_patterns,
    of_streams,
    of_updates,
    of_value_projections,
    per_block_energy,
    strongest_head,
)
from lightning_gpt.analysis.outliers import (
    activation_kurtosis,
    largest_activation,
    largest_over_median,
    residual_sink,
)
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.analysis.similarity import (
    activation_rms,
    effective_rank,
    rank_residual,
    token_cosine,
)
from lightning_gpt.analysis.spectral import (
    positive_share,
    second_singular_value,
    spectral_gap,
    spectral_radius,
)
from lightning_gpt.analysis.updates import angular_distance, update_cosine, update_size

Value = float | list[float | None] | None
"""The value of a layer: a number, or a list with one per head; None where there is none or it is not finite."""


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A quantity with one value per layer.

    Args:
        name: Name in tags and files: ``layers/<name>/layer_00``.
        title: Title in charts and tables, with the unit.
        theme: The group of charts it belongs to.
        of: Whether its layers are those of the stream (the first is the embedding) or the blocks.
        by_head: Whether each head has a value; charts then show the mean over the heads.
        low: Lower bound; None if there is none.
        high: Upper bound if it is the same for every model, else None.
        smoothing: The direction in which over-smoothing moves it; None if it is not a sign of over-smoothing.
        meaning: One clause that explains it to a reader.
        measure: Computes it from a probe; None if it is measured at an optimizer step.
        on_request: Whether it is measured only if that is asked for, because it takes many passes.
        runs_model: Whether ``measure`` runs the model, and not only reads what the probe recorded.
    """

    name: str
    title: str
    theme: Literal["over-smoothing", "outliers", "updates", "attention", "induction", "spectra", "training"]
    of: Literal["stream", "blocks"]
    meaning: str
    by_head: bool = False
    low: float | None = 0.0
    high: float | None = None
    smoothing: Literal["higher", "lower"] | None = None
    measure: Callable[[Probe], Layers] | None = None
    on_request: bool = False
    runs_model: bool = False


_ALL = (
    Diagnostic(
        name="token_cosine",
        title="token cosine similarity",
        theme="over-smoothing",
        of="stream",
        meaning="mean cosine of two different tokens: 1 where all point in one direction, 0 where they are orthogonal",
        low=-1.0,
        high=1.0,
        smoothing="higher",
        measure=of_streams(token_cosine),
    ),
    Diagnostic(
        name="rank_residual",
        title="rank-collapse residual",
        theme="over-smoothing",
        of="stream",
        meaning="‖X − 1x̄ᵀ‖/‖X‖: 0 where all tokens are equal",
        high=1.0,
        smoothing="lower",
        measure=of_streams(rank_residual),
    ),
    Diagnostic(
        name="effective_rank",
        title="effective rank",
        theme="over-smoothing",
        of="stream",
        meaning="number of directions the tokens fill: exp of the entropy of the normalised singular values",
        low=1.0,
        smoothing="lower",
        measure=of_streams(effective_rank),
    ),
    Diagnostic(
        name="dirichlet_energy",
        title="Dirichlet energy along attention",
        theme="over-smoothing",
        of="blocks",
        meaning="how much tokens differ from the tokens they attend to, relative to their size",
        by_head=True,
        smoothing="lower",
        measure=per_block_energy,
    ),
    Diagnostic(
        name="cka",
        title="CKA of a block's input and output",
        theme="over-smoothing",
        of="blocks",
        meaning="linear centred kernel alignment: 1 where the block changes nothing but scale and rotation",
        high=1.0,
        measure=block_cka,
    ),
    Diagnostic(
        name="rms",
        title="activation RMS",
        theme="over-smoothing",
        of="stream",
        meaning="root mean square of the residual stream",
        measure=of_streams(activation_rms),
    ),
    Diagnostic(
        name="logit_lens_loss",
        title="logit-lens loss (nats)",
        theme="over-smoothing",
        of="stream",
        meaning="the loss if the output head read this layer",
        measure=logit_lens_loss,
        runs_model=True,
    ),
    Diagnostic(
        name="logit_rms",
        title="logit-lens RMS",
        theme="over-smoothing",
        of="stream",
        meaning="root mean square of the logits if the output head read this layer",
        measure=logit_rms,
        runs_model=True,
    ),
    Diagnostic(
        name="kurtosis",
        title="kurtosis of the stream's dimensions",
        theme="outliers",
        of="stream",
        meaning="1 where all dimensions are equally large, the width where one holds everything",
        measure=of_streams(activation_kurtosis),
    ),
    Diagnostic(
        name="largest_activation",
        title="largest activation",
        theme="outliers",
        of="stream",
        meaning="the largest magnitude in the residual stream",
        measure=of_streams(largest_activation),
    ),
    Diagnostic(
        name="largest_over_median",
        title="largest activation over the median",
        theme="outliers",
        of="stream",
        meaning="the largest magnitude over the median one: massive activations are above 1,000",
        measure=of_streams(largest_over_median),
    ),
    Diagnostic(
        name="residual_sink",
        title="strongest residual sink",
        theme="outliers",
        of="stream",
        meaning="size of the largest dimension in most tokens, over the token's RMS: about 0.7 without a sink",
        measure=of_streams(residual_sink),
    ),
    Diagnostic(
        name="angular_distance",
        title="angle between a block's input and output (half turns)",
        theme="updates",
        of="blocks",
        meaning="near 0 the block hardly turns the stream",
        high=1.0,
        measure=of_updates(angular_distance),
    ),
    Diagnostic(
        name="update_cosine",
        title="cosine of a block's update and its input",
        theme="updates",
        of="blocks",
        meaning="−1 where the block takes away what is there, 0 where it writes a new direction",
        low=-1.0,
        high=1.0,
        measure=of_updates(update_cosine),
    ),
    Diagnostic(
        name="update_size",
        title="size of a block's update relative to its input",
        theme="updates",
        of="blocks",
        meaning="‖y − x‖/‖x‖ of the stream before and after the block",
        measure=of_updates(update_size),
    ),
    Diagnostic(
        name="layer_value",
        title="value of a block (nats)",
        theme="updates",
        of="blocks",
        meaning="how much the loss rises when the block is skipped",
        low=None,
        measure=layer_value,
        runs_model=True,
        on_request=True,
    ),
    Diagnostic(
        name="attention_entropy",
        title="attention entropy (nats)",
        theme="attention",
        of="blocks",
        meaning="mean entropy of a row of attention: 0 where each token attends to a single one",
        by_head=True,
        smoothing="higher",
        measure=of_patterns(attention_entropy),
    ),
    Diagnostic(
        name="attention_distance",
        title="attention distance (tokens)",
        theme="attention",
        of="blocks",
        meaning="mean distance between a token and the tokens it attends to",
        by_head=True,
        measure=of_patterns(attention_distance),
    ),
    Diagnostic(
        name="first_token_share",
        title="attention on the first token",
        theme="attention",
        of="blocks",
        meaning="mean weight on the first token: near 1 means an attention sink",
        by_head=True,
        high=1.0,
        measure=of_patterns(first_token_share),
    ),
    Diagnostic(
        name="induction",
        title="induction score of the strongest head",
        theme="induction",
        of="blocks",
        meaning="attention to what followed a token before, in repeated random tokens: near 1 in an induction head",
        high=1.0,
        measure=strongest_head("induction"),
        runs_model=True,
    ),
    Diagnostic(
        name="previous_token",
        title="previous-token score of the strongest head",
        theme="induction",
        of="blocks",
        meaning="attention to the previous token, in repeated random tokens",
        high=1.0,
        measure=strongest_head("previous_token"),
        runs_model=True,
    ),
    Diagnostic(
        name="spectral_gap",
        title="spectral gap of attention",
        theme="spectra",
        of="blocks",
        meaning="1 − |λ₂| of the attention pattern: 1 where one pass leaves only the mean",
        by_head=True,
        high=1.0,
        smoothing="higher",
        measure=of_square_patterns(spectral_gap),
    ),
    Diagnostic(
        name="second_singular_value",
        title="second singular value of attention",
        theme="spectra",
        of="blocks",
        meaning="σ₂ of the attention pattern: 0 where every token gets the same mixture, at most √(t/2)",
        by_head=True,
        smoothing="lower",
        measure=of_square_patterns(second_singular_value),
    ),
    Diagnostic(
        name="value_positive_share",
        title="amplifying share of the value projection's spectrum",
        theme="spectra",
        of="blocks",
        meaning="Σ|λ| where |1 + λ| > 1, over Σ|λ|, of W_V W_O: above 1/2 attention smooths more than it sharpens",
        by_head=True,
        high=1.0,
        smoothing="higher",
        measure=of_value_projections(positive_share),
    ),
    Diagnostic(
        name="value_radius",
        title="spectral radius of the value projection",
        theme="spectra",
        of="blocks",
        meaning="max |λ| of W_V W_O; the residual connection has 1",
        by_head=True,
        measure=of_value_projections(spectral_radius),
    ),
    Diagnostic(
        name="grad_norm",
        title="gradient norm",
        theme="training",
        of="blocks",
        meaning="norm of the gradient of a block's weights, before clipping",
    ),
    Diagnostic(
        name="update_ratio",
        title="update-to-weight ratio",
        theme="training",
        of="blocks",
        meaning="‖W_new − W‖/‖W‖ of a block's weights in one optimizer step",
    ),
)

DIAGNOSTICS = {diagnostic.name: diagnostic for diagnostic in _ALL}
"""Every diagnostic by name, in display order."""


Figures = dict[str, list[Value]]
"""By the name of a diagnostic, one value per layer, as plain numbers."""


def measure(probe: Probe, requested: bool = False) -> Figures:
    """Every diagnostic that a probe gives; those that are measured on request are among them if ``requested``."""
    return begin(probe, requested)()


def begin(probe: Probe, requested: bool = False) -> Callable[[], Figures]:
    """Measure what must be measured while the model's weights are those that the probe saw.

    Returns:
        What measures the rest, then or later, in this thread or another, and returns what :func:`measure` does.
    """
    asked = [each for each in _ALL if each.measure is not None and (requested or not each.on_request)]
    of_model = _measured(probe, [each for each in asked if each.runs_model])
    _ = probe.value_projections  # the probe keeps them

    def finish() -> Figures:
        figures = of_model | _measured(probe, [each for each in asked if not each.runs_model])
        return {each.name: figures[each.name] for each in asked}

    return finish


def _measured(probe: Probe, diagnostics: list[Diagnostic]) -> Figures:
    found: Figures = {}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for each in diagnostics:
            assert each.measure is not None
            found[each.name] = [_plain(value) for value in each.measure(probe)]
    return found


def _plain(value: Tensor | None) -> Value:
    if value is None:
        return None
    numbers = value.tolist()
    if isinstance(numbers, list):
        return [number if math.isfinite(number) else None for number in numbers]
    return float(numbers) if math.isfinite(numbers) else None


def one_value(value: Value) -> float | None:
    """A single number for a layer: the mean over its heads; None if any of them is missing."""
    if not isinstance(value, list):
        return value
    known = [number for number in value if number is not None]
    return sum(known) / len(known) if value and len(known) == len(value) else None
