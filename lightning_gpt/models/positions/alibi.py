"""A distance penalty whose slope differs between heads."""

import math

import torch
from torch import Tensor

from lightning_gpt.models.layer import Cut
from lightning_gpt.models.positions.scheme import Positions, position_schemes


@position_schemes.register("alibi")
class AlibiPositions(Positions):
    """Adds ``−m_h (i − j)`` to the scores, the slopes ``m`` a geometric series: Press et al. 2022 (2108.12409), eq. 1.

    The slopes are ``2^(−8h/n)`` for ``n`` heads, n a power of two. For other numbers of heads they are, as in the
    paper's code, those of the next lower power followed by every other one of the next higher.
    """

    biases = True

    def __init__(self, n_head: int) -> None:
        super().__init__()
        lower = 2 ** int(math.log2(n_head))
        self.slopes = [2 ** (-8 * h / lower) for h in range(1, lower + 1)]
        self.slopes += [2 ** (-4 * h / lower) for h in range(1, 2 * (n_head - lower), 2)]

    def cut(self) -> Cut | None:
        """By heads."""
        return Cut(lists=("slopes",))

    def bias(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=rows.device).to(wide)
        distance = rows[..., :, None] - columns[..., None, :]  # (..., rows, columns)
        return (-slopes[:, None, None] * distance.unsqueeze(-3)).to(dtype)
