"""Massive activations: single entries of the residual stream that are thousands of times larger than the others.

Sun et al. 2024, "Massive Activations in Large Language Models" (2402.17762), section 2: an entry counts if its
magnitude exceeds 100 and is at least about 1,000 times the median magnitude of its layer's stream.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.analysis.streams import residual_streams
from lightning_gpt.models import LanguageModel


@dataclass(frozen=True)
class MassiveActivation:
    """One massive activation.

    Args:
        layer: Layer of the stream: 0 is the embedding, i the output of block i − 1.
        row: Row of the batch.
        position: Position of the token.
        dimension: Dimension of the stream.
        value: The activation.
        ratio: Its magnitude over the median magnitude of its row's stream at that layer.
    """

    layer: int
    row: int
    position: int
    dimension: int
    value: float
    ratio: float


def massive_activations(
    model: LanguageModel, ids: Tensor, least: float = 100.0, times: float = 1000.0
) -> list[MassiveActivation]:
    """All massive activations of ``model`` over ``ids`` ``(batch, time)``: by layer, and the largest first within one.

    Args:
        model: The model.
        ids: The tokens to read.
        least: The magnitude that an activation must exceed.
        times: The multiple of the median magnitude that it must reach; the median is that of one row at one layer.
    """
    return massive_entries(residual_streams(model, ids), least, times)


def massive_entries(streams: Tensor, least: float = 100.0, times: float = 1000.0) -> list[MassiveActivation]:
    """The massive activations of ``streams`` ``(n_layer + 1, batch, time, dim)``."""
    sizes = streams.abs()
    medians = sizes.flatten(-2).median(dim=-1).values[..., None, None]
    found: list[MassiveActivation] = []
    for layer, row, position, dimension in torch.nonzero((sizes > least) & (sizes >= times * medians)).tolist():
        value, median = float(streams[layer, row, position, dimension]), float(medians[layer, row])
        ratio = abs(value) / median if median else float("inf")
        found.append(MassiveActivation(layer, row, position, dimension, value, ratio))
    return sorted(found, key=lambda each: (each.layer, -abs(each.value)))
