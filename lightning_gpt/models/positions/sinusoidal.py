"""Waves of fixed wavelengths, added to the embeddings."""

import torch
from torch import Tensor

from lightning_gpt.models.positions.scheme import Positions, frequencies, position_schemes, require_even
from lightning_gpt.options import NotNegative


@position_schemes.register("sinusoidal")
class SinusoidalPositions(Positions):
    """``sin(p / 10000^(2i/d))`` interleaved with ``cos`` of the same: Vaswani et al. 2017 (1706.03762), section 3.5.

    Args:
        dim: Width of the stream; must be even.
        scale: Factor on the waves, so that they do not dominate embeddings initialised at 0.02.
    """

    is_absolute = True

    def __init__(self, dim: int, scale: NotNegative = 0.02) -> None:
        super().__init__()
        require_even(dim, "sinusoidal positions", "dim")
        self.dim, self.scale = dim, scale
        # empty: it only tracks the model's device and dtype, which the result takes
        self.register_buffer("like", torch.empty(0), persistent=False)

    def reset_parameters(self) -> None:
        """Does nothing: the buffer is empty."""

    def embedding(self, time: int, positions: Tensor | None) -> Tensor:
        like = self.get_buffer("like")
        if positions is None:
            positions = torch.arange(time, device=like.device)
        waves = frequencies(self.dim, 10000.0, positions.device).to(torch.promote_types(like.dtype, torch.float32))
        angles = positions[..., None] * waves  # (..., T, d/2)
        return (self.scale * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)).to(like.dtype)
