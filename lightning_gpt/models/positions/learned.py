"""A learned vector for each position."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_gpt.models.layer import Matrix
from lightning_gpt.models.positions.scheme import Positions, position_schemes


@position_schemes.register("learned")
class LearnedPositions(Positions):
    """A learned vector for each position up to ``block_size``, as in GPT-2: ``X = E_tok[ids] + E_pos[0..T−1]``."""

    is_absolute = True
    knows_length = True

    def __init__(self, dim: int, block_size: int) -> None:
        super().__init__()
        self.limit = block_size
        self.weight = nn.Parameter(torch.empty(block_size, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "position", "stream")

    def embedding(self, time: int, positions: Tensor | None) -> Tensor:
        return self.weight[:time] if positions is None else self.weight[positions]
