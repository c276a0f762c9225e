"""Attention whose values also include part of the input: the first layer's values, or a table lookup per token."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut, Embedding


class MixedValueAttention(MultiHeadAttention, ABC):
    """``y_i = Σ_j A_ij (λ₁ v_j + λ₂ u_j)`` with two learned scalars, initially ½ each; subclasses define u.

    Intermediates: ``v`` is the mixture, as attended to and cached.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.value_shares = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set both to ½."""
        nn.init.constant_(self.value_shares, 0.5)

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x, context)
        own, brought = self.value_shares
        return q, k, own * v + brought * self.brought_along(v, context)

    @property
    def own_share(self) -> Tensor:
        """The factor of the layer's own values, λ₁."""
        return self.value_shares[0]

    def head_matrices(self) -> HeadMatrices:
        """W_V and its bias with their factor."""
        found, own = super().head_matrices(), self.own_share
        return replace(found, w_v=own * found.w_v, b_v=None if found.b_v is None else own * found.b_v)

    def value_output(self) -> tuple[Tensor, Tensor] | None:
        """The factors of the layer's own values, W_V with its factor."""
        factors = super().value_output()
        return None if factors is None else (self.own_share * factors[0], factors[1])

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, whole=(*cut.whole, "value_shares"))

    @abstractmethod
    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        """u, with the shape of v: ``(batch, n_kv_head, time, head_dim)``."""


@attentions.register("value_residual")
class ValueResidualAttention(MixedValueAttention):
    """u is the first layer's values: ResFormer, Zhou et al. 2024 (2410.17897), eq. 4, with learned λ.

    The first layer of this kind in a pass provides u; there λ₁ + λ₂ acts as one factor. Layers that differ in number or
    width of value heads each have their own first layer.

    Args:
        layer: The layer's index, from 0.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    mixes_first_layer = True

    def __init__(self, *, layer: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.is_first = layer == 0

    @property
    def own_share(self) -> Tensor:
        """The factor of the layer's own values: λ₁, or λ₁ + λ₂ in the model's first layer, whose values are also u.

        Where a model's first layer is of another kind, the factor of the first of this kind is λ₁ + λ₂, too, which it
        does not know. A block that several layers share has λ₁ + λ₂ in its first layer only; this is that layer's.
        """
        return self.value_shares.sum() if self.is_first else self.value_shares[0]

    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        return context.shared.first_values(("value_residual", self.n_kv_head, self.head_dim), v)


@attentions.register("value_embedding")
class ValueEmbeddingAttention(MixedValueAttention):
    """u_j is row ``ids_j`` of the layer's own table: value embeddings.

    Jordan et al. 2024, "modded-nanogpt" (a record of 124M-parameter runs), adapted from ResFormer (2410.17897). The
    table gives each token a value that does not depend on the tokens before it. It adds
    ``vocab_size × n_kv_head × head_dim`` parameters per layer; a step reads only the rows of the batch's tokens.

    Args:
        vocab_size: Number of token ids.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, *, vocab_size: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.value_table = Embedding(vocab_size, self.n_kv_head * self.head_dim, target="heads")

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, along={"value_table.weight": 1})

    def brought_along(self, v: Tensor, context: Context) -> Tensor:
        if context.ids is None:  # a layer run on its own has no token ids to look up
            return torch.zeros_like(v)
        rows: Tensor = self.value_table(context.ids)  # (B, T, H_kv·D)
        return rows.view(*context.ids.shape, self.n_kv_head, self.head_dim).transpose(1, 2)
