"""Attention with a term that pulls values back to those of the first layer."""

from typing import Any

from torch import Tensor

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.options import NotNegative


@attentions.register("neutreno")
class NeutrenoAttention(MultiHeadAttention):
    """``y_i = Σ_j A_ij v_j + λ (v⁰_i − v_i)``, v⁰ the values of the first layer: NeuTRENO.

    Nguyen et al. 2023 (2312.00751): softmax attention descends a functional whose minimum is reached when all tokens
    are alike; the added term penalises the distance from the input tokens. The first layer of this kind in a pass
    provides v⁰ and is itself plain attention. Layers that differ in number or width of value heads each have their own
    first layer.

    Intermediates: ``head_output`` is ``pattern @ v``, without the added term, as are the head's matrices.

    Args:
        strength: λ; 0 is plain attention.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    mixes_first_layer = True

    def __init__(self, *, strength: NotNegative = 0.4, **shared: Any) -> None:
        super().__init__(**shared)
        self.strength = strength

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        q, k, v = self.heads(x, context)
        mixed = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), context)  # (B, H, T, D)
        first = context.shared.first_values(("neutreno", self.n_kv_head, self.head_dim), v)
        back = (first - v).repeat_interleave(self.n_head // self.n_kv_head, dim=1)
        return self.merge_heads(mixed + self.strength * back)
