"""A learned bias per bucket of distances."""

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.layer import Cut, Matrix
from lightning_gpt.models.positions.scheme import Positions, position_schemes
from lightning_gpt.options import Length, Range


@position_schemes.register("t5")
class T5Positions(Positions):
    """A learned bias per head and bucket of distances: Raffel et al. 2020 (1910.10683), section 2.1.

    Half of the buckets hold one distance each; the bounds of the other half grow geometrically. All distances from
    ``max_distance`` on fall into the last bucket, which begins one ratio earlier: with 32 buckets and 128, at distance
    113. All layers share one table, as in the paper.

    Args:
        n_head: Number of heads.
        n_bucket: Number of buckets.
        max_distance: Distance, in tokens, from which all distances are in the last bucket.
    """

    biases = True

    def __init__(self, n_head: int, n_bucket: Annotated[int, Range(2, 2**16)] = 32, max_distance: Length = 128) -> None:
        super().__init__()
        if max_distance <= n_bucket // 2:
            raise CallError(
                f"position max_distance is {max_distance}; it must be more than half of n_bucket, which is {n_bucket}"
            )
        self.n_bucket, self.max_distance = n_bucket, max_distance
        self.weight = nn.Parameter(torch.empty(n_bucket, n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all to 0: initially distance has no effect."""
        nn.init.zeros_(self.weight)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "position", "score")

    def cut(self) -> Cut | None:
        """By heads."""
        return Cut(along={"weight": 1})

    def bucket(self, distance: Tensor) -> Tensor:
        """Map distances back, 0 or more, to bucket numbers."""
        exact = self.n_bucket // 2
        ratio = (distance.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        grown = exact + (ratio * (self.n_bucket - exact)).long()
        return torch.where(distance < exact, distance, grown.clamp(max=self.n_bucket - 1))

    def bias(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        distance = (rows[..., :, None] - columns[..., None, :]).clamp(min=0)
        return self.weight[self.bucket(distance)].movedim(-1, -3).to(dtype)
