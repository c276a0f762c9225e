"""A training loss that penalises similar tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer


class TokenDiversity(Layer):
    """Adds ``weight · 1/(T(T−1)) Σ_{i≠j} |x_i·x_j| / (‖x_i‖‖x_j‖)`` of the last residual stream to the training loss.

    The patch-wise cosine loss of Gong et al. 2021 (2104.12753). The loss compares tokens in both directions, but the
    model's output stays causal. It computes a ``(time, time)`` matrix per row.

    Args:
        weight: Factor on the mean.
    """

    sees_rows = True

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The stream ``(batch, time, dim)`` unchanged; in training the loss is attached to it."""
        time = x.shape[1]
        if context.losses is None or time < 2:
            return x
        direction = F.normalize(x.float() if x.itemsize < 4 else x, dim=-1)
        others = ~torch.eye(time, dtype=torch.bool, device=x.device)
        likeness = (direction @ direction.mT).abs() * others  # (B, T, T)
        return context.losses.attach(x, self.weight * likeness.sum(dim=(1, 2)).mean() / (time * (time - 1)))
