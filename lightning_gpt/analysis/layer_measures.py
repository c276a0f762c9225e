"""From a probe to one value per layer: how each diagnostic's formula is applied to what was recorded."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.analysis.layer_values import rises
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.analysis.similarity import dirichlet_energy
from lightning_gpt.analysis.tiny import TINY
from lightning_gpt.models.double import double
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.head import IGNORED
from lightning_gpt.models.record import Edit

Layers = list[Tensor | None]
"""The value of each layer, ``()`` or ``(n_head,)``; None where there is none."""


def of_streams(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of each stream, averaged over the batch."""
    return lambda probe: [formula(stream).mean() for stream in probe.streams]


def of_patterns(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of each block's patterns by head, averaged over the batch."""
    return lambda probe: [None if pattern is None else formula(pattern).mean(dim=0) for pattern in probe.patterns]


def of_square_patterns(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """The same, using only the tokens' attention to each other."""
    return of_patterns(lambda pattern: formula(pattern[..., -pattern.shape[-2] :]))


def of_value_projections(formula: Callable[[Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of the eigenvalues of each block's value projections, by head."""
    return lambda probe: [None if found is None else formula(found) for found in probe.value_spectra]


def of_updates(formula: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Probe], Layers]:
    """``formula`` of the stream before and after each block."""
    return lambda probe: [formula(x, y) for x, y in itertools.pairwise(probe.streams)]


def strongest_head(score: str) -> Callable[[Probe], Layers]:
    """The largest score on repeated random tokens among each block's heads: a mean would hide a single head."""

    def measure(probe: Probe) -> Layers:
        scores = probe.head_scores
        if scores is None:
            return [None] * len(probe.patterns)
        return [None if of_heads is None else of_heads.max() for of_heads in getattr(scores, score)]

    return measure


def per_block_energy(probe: Probe) -> Layers:
    """The Dirichlet energy of each block's input along its attention, by head."""
    entering = probe.streams[:-1, :, None]  # (n_layer, B, 1, T, d)
    return [
        None if pattern is None else dirichlet_energy(x, pattern[..., -pattern.shape[-2] :]).mean(dim=0)
        for x, pattern in zip(entering, probe.patterns, strict=True)
    ]


def block_cka(probe: Probe) -> Layers:
    """CKA of the stream before and after each block."""
    return list(cka_matrix(probe).diagonal(1))


def cka_matrix(probe: Probe) -> Tensor:
    """Linear CKA between every two layers of the stream, ``(n_layer + 1, n_layer + 1)``.

    Computed from Gram matrices, ``⟨K, L⟩ / (‖K‖ ‖L‖)`` with ``K = XXᵀ`` of the centred X, which equals
    :func:`~lightning_gpt.analysis.similarity.linear_cka` of each pair: Kornblith et al. 2019 (1905.00414), eq. 1.
    """
    tokens = probe.streams.flatten(1, 2)
    centred = tokens - tokens.mean(dim=1, keepdim=True)
    grams = (centred @ centred.mT).flatten(1)
    unit: Tensor = grams / grams.norm(dim=1, keepdim=True).clamp(min=TINY)
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


def layer_value(probe: Probe) -> Layers:
    """The rise in loss in nats when each block is skipped: see :mod:`~lightning_gpt.analysis.layer_values`."""
    model, ids, kept = probe.model, probe.ids, probe.targets != IGNORED
    if ids is None:
        return [None] * len(probe.patterns)

    def loss(edits: dict[str, Edit]) -> float:
        with evaluating(model), torch.autocast(ids.device.type, enabled=False), model.record([], edits):
            return float(double(model.token_nll(ids, probe.targets, probe.documents)).sum()) / int(kept.sum())

    return [torch.tensor(value, dtype=torch.float64) for value in rises(model, loss)]


def logit_rms(probe: Probe) -> Layers:
    """Root mean square of the logits if the output head read each layer of the stream directly.

    Computed without the logits: ``Σ_v (u_v·h)² = hᵀ(UᵀU)h``, and so before the bias, the divisor and the softcap of a
    head that has them. Range: at least 0; the last layer gives that of the model's own logits, but for these.
    """
    model = probe.model
    sizes: Layers = []
    with evaluating(model), torch.autocast(probe.targets.device.type, enabled=False):
        gram = (model.unembedding.mT @ model.unembedding).cpu() / len(model.unembedding)
        for stream in probe.streams:
            hidden = model.read_out(stream.to(model.unembedding)).to(gram)
            sizes.append(((hidden @ gram) * hidden).sum(dim=-1).mean().sqrt())
    return sizes
