"""How much a block changes the residual stream.

Every function takes the stream before and after a block, ``(..., dim)``, and returns the mean over all tokens.
"""

import math

from torch import Tensor

from lightning_gpt.analysis.tiny import TINY


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle between two vectors ``(..., dim)``; 0 if one of them is 0."""
    sizes = x.norm(dim=-1) * y.norm(dim=-1)
    cosine: Tensor = (x * y).sum(dim=-1) / sizes.clamp(min=TINY)
    return cosine.clamp(-1, 1)


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """The angle between a token's stream before and after the block, in half turns: ``arccos(cos(x, y)) / π``.

    Range: 0 (same direction) to 1 (opposite). A block near 0 changes little that a norm after it would keep. Source:
    Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers" (2403.17887), section 3.2, there of the
    last token. ShortGPT's block influence (2403.03853) is ``1 − cos(x, y)`` of the same two vectors.
    """
    return (_cosine(before, after).acos() / math.pi).mean()


def update_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of what the block adds and the stream it is added to: ``cos(y − x, x)``.

    Range: −1 (it takes away from what is there) to 1 (it only scales); 0 where it writes a new direction.
    """
    return _cosine(after - before, before).mean()


def update_size(before: Tensor, after: Tensor) -> Tensor:
    """Size of what the block adds, relative to the stream it is added to: ``‖y − x‖ / ‖x‖``. Range: at least 0.

    In pre-LN models it falls with depth, because the stream grows: Sun et al. 2025, "The Curse of Depth in Large
    Language Models" (2502.05795), section 2.
    """
    sizes: Tensor = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=TINY)
    return sizes.mean()
