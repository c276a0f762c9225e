"""A training loss against tokens that are alike."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.part_losses import Penalised


class TokenDiversity(Penalised):
    """Adds ``weight · 1/(T(T−1)) Σ_{i≠j} |x_i·x_j| / (‖x_i‖‖x_j‖)`` of the last residual stream to the training loss.

    The patch-wise cosine loss of Gong et al. 2021 (2104.12753). It sees tokens of a row in both directions, as any loss
    may; the model's function is untouched. A ``(time, time)`` matrix of each row is made for it.

    Args:
        weight: What the mean is multiplied by; nothing is computed at 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> None:
        """Look at the stream ``(batch, time, dim)``."""
        time = x.shape[1]
        if self.weight == 0 or not self.in_loss or time < 2:
            return
        direction = F.normalize(x.float() if x.itemsize < 4 else x, dim=-1)
        others = ~torch.eye(time, dtype=torch.bool, device=x.device)
        likeness = (direction @ direction.mT).abs() * others  # (B, T, T)
        self.penalise(self.weight * likeness.sum(dim=(1, 2)).mean() / (time * (time - 1)))
