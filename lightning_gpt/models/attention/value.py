"""Attention whose values bring something of the input along: the first layer's values, or a table of the tokens'."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Embedding


class MixedValueAttention(MultiHeadAttention, ABC):
    """``y_i = Σ_j A_ij (λ₁ v_j + λ₂ u_j)``: two learned numbers, ½ each at the start; a variant says what u is.

    Intermediates: ``v`` is the mixture, as it is attended to and cached.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.value_shares = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """½ each."""
        nn.init.constant_(self.value_shares, 0.5)

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x, context)
        own, brought = self.value_shares
        return q, k, own * v + brought * self.brought_along(v, context)

    @abstractmethod
    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        """u, of the shape of v: ``(batch, n_kv_head, time, head_dim)``."""


@attentions.register("value_residual")
class ValueResidualAttention(MixedValueAttention):
    """u is the first layer's values: ResFormer, Zhou et al. 2024 (2410.17897), eq. 4, with learned λ.

    The first layer of this kind that a pass runs gives u: there λ₁ + λ₂ is one factor. Layers whose values differ in
    number or width of heads have a first layer each.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    mixes_first_layer = True

    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        return context.shared.first_values(("value_residual", self.n_kv_head, self.head_dim), v)


@attentions.register("value_embedding")
class ValueEmbeddingAttention(MixedValueAttention):
    """u_j is row ``ids_j`` of a table of the layer's own: value embeddings.

    Jordan et al. 2024, "modded-nanogpt" (a record of 124M-parameter runs), which took them from ResFormer (2410.17897):
    what a token is worth to those that attend to it, whatever came before it. A layer of this kind has ``vocab_size ×
    n_kv_head × head_dim`` parameters more, of which a step reads those of the batch's tokens only.

    Args:
        vocab_size: Number of token ids.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, *, vocab_size: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.value_table = Embedding(vocab_size, self.n_kv_head * self.head_dim, target="heads")

    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        if context.ids is None:  # a layer that is run by itself has no tokens to look up
            return torch.zeros_like(v)
        rows: Tensor = self.value_table(context.ids)  # (B, T, H_kv·D)
        return rows.view(*context.ids.shape, self.n_kv_head, self.head_dim).transpose(1, 2)
