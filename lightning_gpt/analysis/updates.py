"""How much a block changes the residual stream.

Every function takes the stream before and after a block, ``(..., dim)``, and returns the mean over all tokens. All are
computed in float64: an angle near 0 is the difference of two numbers that fp32 rounds to the same.
"""

import math

import torch
from torch import Tensor

from lightning_gpt.analysis.tiny import over
from lightning_gpt.models.double import double


def _unit(x: Tensor) -> Tensor:
    """Vectors ``(..., dim)`` of float64, divided by their length; 0 where they are 0."""
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return unit


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle between two vectors ``(..., dim)``; 0 if one of them is 0."""
    return (_unit(x) * _unit(y)).sum(dim=-1).clamp(-1, 1)


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """The angle between two vectors ``(..., dim)`` in half turns; a half if one of them alone is 0, and 0 if both are.

    ``2 atan2(‖u − v‖, ‖u + v‖)`` of their unit vectors is exact where the arccos of their product is not: at its ends.
    """
    first, second = _unit(x), _unit(y)
    return 2 * torch.atan2((first - second).norm(dim=-1), (first + second).norm(dim=-1)) / math.pi


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """The angle between a token's stream before and after the block, in half turns: ``arccos(cos(x, y)) / π``.

    Range: 0 (same direction) to 1 (opposite). A block near 0 changes little that a norm after it would keep. Source:
    Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers" (2403.17887), section 3.2, there of the
    last token. ShortGPT's block influence (2403.03853) is ``1 − cos(x, y)`` of the same two vectors.
    """
    return _angle(double(before), double(after)).mean().to(before)


def update_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of what the block adds and the stream it is added to: ``cos(y − x, x)``.

    Range: −1 (it shortens the stream) to 1 (it lengthens it), both without turning it; 0 where it writes at a right
    angle to the stream, or nothing.
    """
    x, y = double(before), double(after)
    return _cosine(y - x, x).mean().to(before)


def update_size(before: Tensor, after: Tensor) -> Tensor:
    """Size of what the block adds, relative to the stream it is added to: ``‖y − x‖ / ‖x‖``.

    Range: at least 0; infinite where the stream of a token is 0 and the block adds to it.

    In pre-LN models it falls with depth, because the stream grows: Sun et al. 2025, "The Curse of Depth in Large
    Language Models" (2502.05795), section 2.
    """
    x, y = double(before), double(after)
    return over((y - x).norm(dim=-1), x.norm(dim=-1)).mean().to(before)
