"""Query heads that share key and value heads."""

from typing import Any

from lightning_gpt.models.attention.formula import Backend
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.options import Heads, Width


@attentions.register("grouped")
class GroupedQueryAttention(MultiHeadAttention):
    """Groups of query heads share a key and value head: Ainslie et al. 2023 (2305.13245), section 2.2."""

    def __init__(self, *, n_kv_head: Heads, **shared: Any) -> None:
        super().__init__(n_kv_head=n_kv_head, **shared)


@attentions.register("multi_query")
class MultiQueryAttention(MultiHeadAttention):
    """All query heads share one key and value head: Shazeer 2019 (1911.02150), section 3."""

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        dropout: float,
        backend: Backend,
        qk_norm: Given,
        positions: Positions,
        head_dim: Width | None = None,
    ) -> None:
        given = {"bias": bias, "dropout": dropout, "backend": backend, "qk_norm": qk_norm, "positions": positions}
        super().__init__(dim, n_head, n_kv_head=1, head_dim=head_dim, **given)  # type: ignore[arg-type]
