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
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.analysis.similarity import (
    activation_rms,
    dirichlet_energy,
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
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.head import IGNORED

Value = float | list[float | None] | None
"""The value of a layer: a number, or a list with one per head; None where there is none or it is not finite."""

Layers = list[Tensor | None]
"""The same as tensors: ``()`` or ``(n_head,)`` per layer."""


# --- from a probe to a value per layer -------------------------------------------------------------------------


def _of_streams(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of each stream, averaged over the batch."""
    return lambda probe: [formula(stream).mean() for stream in probe.streams]


def _of_patterns(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of each block's patterns by head, averaged over the batch."""
    return lambda probe: [None if pattern is None else formula(pattern).mean(dim=0) for pattern in probe.patterns]


def _of_square_patterns(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """The same, using only the tokens' attention to each other."""
    return _of_patterns(lambda pattern: formula(pattern[..., -pattern.shape[-2] :]))


def _of_value_projections(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of the eigenvalues of each block's value projections, by head."""
    return lambda probe: [None if found is None else formula(found) for found in probe.value_spectra]


def _dirichlet_energy(probe: Probe) -> Layers:
    entering = probe.streams[:-1, :, None]  # (n_layer, B, 1, T, d)
    return [
        None if pattern is None else dirichlet_energy(x, pattern[..., -pattern.shape[-2] :]).mean(dim=0)
        for x, pattern in zip(entering, probe.patterns, strict=True)
    ]


def _cka(probe: Probe) -> Layers:
    return list(cka_matrix(probe).diagonal(1))


def cka_matrix(probe: Probe) -> Tensor:
    """Linear CKA between every two layers of the stream, ``(n_layer + 1, n_layer + 1)``.

    Computed from Gram matrices, ``⟨K, L⟩ / (‖K‖ ‖L‖)`` with ``K = XXᵀ`` of the centred X, which equals
    :func:`~lightning_gpt.analysis.similarity.linear_cka` of each pair: Kornblith et al. 2019 (1905.00414), eq. 1.
    """
    tokens = probe.streams.flatten(1, 2)
    centred = tokens - tokens.mean(dim=1, keepdim=True)
    grams = (centred @ centred.mT).flatten(1)
    unit: Tensor = grams / grams.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return unit @ unit.mT


def logit_lens_loss(probe: Probe) -> Layers:
    """The loss in nats if the output head read each layer of the stream directly.

    ``−mean log softmax(norm_f(h_l) Uᵀ)[target]``. Range: at least 0; the last layer gives the model's own loss. Source:
    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    model, kept = probe.model, probe.targets != IGNORED
    losses: Layers = []
    with evaluating(model), torch.autocast(probe.targets.device.type, enabled=False):
        for stream in probe.streams:
            hidden = model.read_out(stream.to(model.unembedding))
            losses.append(model.head.token_nll(hidden, probe.targets).sum() / kept.sum())
    return losses


def logit_rms(probe: Probe) -> Layers:
    """Root mean square of the logits if the output head read each layer of the stream directly.

    Computed without the logits: ``Σ_v (u_v·h)² = hᵀ(UᵀU)h``. Range: at least 0; the last layer gives that of the
    model's own logits.
    """
    model = probe.model
    sizes: Layers = []
    with evaluating(model), torch.autocast(probe.targets.device.type, enabled=False):
        gram = (model.unembedding.mT @ model.unembedding).cpu() / len(model.unembedding)
        for stream in probe.streams:
            hidden = model.read_out(stream.to(model.unembedding)).to(gram)
            sizes.append(((hidden @ gram) * hidden).sum(dim=-1).mean().sqrt())
    return sizes


# --- the table of diagnostics ----------------------------------------------------------------------------------


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
    """

    name: str
    title: str
    theme: Literal["over-smoothing", "attention", "spectra", "training"]
    of: Literal["stream", "blocks"]
    meaning: str
    by_head: bool = False
    low: float | None = 0.0
    high: float | None = None
    smoothing: Literal["higher", "lower"] | None = None
    measure: Callable[[Probe], Layers] | None = None


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
        measure=_of_streams(token_cosine),
    ),
    Diagnostic(
        name="rank_residual",
        title="rank-collapse residual",
        theme="over-smoothing",
        of="stream",
        meaning="‖X − 1x̄ᵀ‖/‖X‖: 0 where all tokens are equal",
        high=1.0,
        smoothing="lower",
        measure=_of_streams(rank_residual),
    ),
    Diagnostic(
        name="effective_rank",
        title="effective rank",
        theme="over-smoothing",
        of="stream",
        meaning="number of directions the tokens fill: exp of the entropy of the normalised singular values",
        low=1.0,
        smoothing="lower",
        measure=_of_streams(effective_rank),
    ),
    Diagnostic(
        name="dirichlet_energy",
        title="Dirichlet energy along attention",
        theme="over-smoothing",
        of="blocks",
        meaning="how much tokens differ from the tokens they attend to, relative to their size",
        by_head=True,
        smoothing="lower",
        measure=_dirichlet_energy,
    ),
    Diagnostic(
        name="cka",
        title="CKA of a block's input and output",
        theme="over-smoothing",
        of="blocks",
        meaning="linear centred kernel alignment: 1 where the block changes nothing but scale and rotation",
        high=1.0,
        measure=_cka,
    ),
    Diagnostic(
        name="rms",
        title="activation RMS",
        theme="over-smoothing",
        of="stream",
        meaning="root mean square of the residual stream",
        measure=_of_streams(activation_rms),
    ),
    Diagnostic(
        name="logit_lens_loss",
        title="logit-lens loss (nats)",
        theme="over-smoothing",
        of="stream",
        meaning="the loss if the output head read this layer",
        measure=logit_lens_loss,
    ),
    Diagnostic(
        name="logit_rms",
        title="logit-lens RMS",
        theme="over-smoothing",
        of="stream",
        meaning="root mean square of the logits if the output head read this layer",
        measure=logit_rms,
    ),
    Diagnostic(
        name="attention_entropy",
        title="attention entropy (nats)",
        theme="attention",
        of="blocks",
        meaning="mean entropy of a row of attention: 0 where each token attends to a single one",
        by_head=True,
        smoothing="higher",
        measure=_of_patterns(attention_entropy),
    ),
    Diagnostic(
        name="attention_distance",
        title="attention distance (tokens)",
        theme="attention",
        of="blocks",
        meaning="mean distance between a token and the tokens it attends to",
        by_head=True,
        measure=_of_patterns(attention_distance),
    ),
    Diagnostic(
        name="first_token_share",
        title="attention on the first token",
        theme="attention",
        of="blocks",
        meaning="mean weight on the first token: near 1 means an attention sink",
        by_head=True,
        high=1.0,
        measure=_of_patterns(first_token_share),
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
        measure=_of_square_patterns(spectral_gap),
    ),
    Diagnostic(
        name="second_singular_value",
        title="second singular value of attention",
        theme="spectra",
        of="blocks",
        meaning="σ₂ of the attention pattern: 0 where every token gets the same mixture, at most √(t/2)",
        by_head=True,
        smoothing="lower",
        measure=_of_square_patterns(second_singular_value),
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
        measure=_of_value_projections(positive_share),
    ),
    Diagnostic(
        name="value_radius",
        title="spectral radius of the value projection",
        theme="spectra",
        of="blocks",
        meaning="max |λ| of W_V W_O; the residual connection has 1",
        by_head=True,
        measure=_of_value_projections(spectral_radius),
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


def measure(probe: Probe) -> dict[str, list[Value]]:
    """Every diagnostic that a probe gives, by name: one value per layer, as plain numbers."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return {
            name: [_plain(value) for value in diagnostic.measure(probe)]
            for name, diagnostic in DIAGNOSTICS.items()
            if diagnostic.measure is not None
        }


def _plain(value: Tensor | None) -> Value:
    if value is None:
        return None
    numbers = value.tolist()
    if isinstance(numbers, list):
        return [number if math.isfinite(number) else None for number in numbers]
    return float(numbers) if math.isfinite(numbers) else None


def layer_value(value: Value) -> float | None:
    """A single number for a layer: the mean over its heads; None if any of them is missing."""
    if not isinstance(value, list):
        return value
    known = [number for number in value if number is not None]
    return sum(known) / len(known) if value and len(known) == len(value) else None
