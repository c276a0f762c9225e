"""Fused weights by their pieces: several matrices that are multiplied as one, each cut over the tensor axis on its own.

The rows of a fused weight are those of its pieces one after another, such as Q, K and V. Cut in equal parts it would
give one process the queries and another the values. So each piece becomes a parameter of its own, cut by its own rows,
and the parts that a process holds are concatenated for the product.
"""

from collections.abc import Mapping

from torch import nn


class Packed(nn.Module):
    """A layer that holds fused parameters as pieces."""

    joined: Mapping[str, tuple[str, ...]]
    """The names of the pieces, in order, by the name of the fused parameter."""

    def rows_dim(self, fused: str) -> int:
        """The dimension along which the pieces of a fused parameter are concatenated."""
        return 0
