"""Softmax attention whose output is gated by its input."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context


@attentions.register("gated")
class GatedAttention(MultiHeadAttention):
    """``y = (A V ⊙ σ(X W_g)) W_O``: a gate for each entry of each head's output, computed from the layer's input X.

    Qiu et al. 2025, "Gated Attention for Large Language Models" (2505.06708), eq. 5, at the position G₁ that they
    recommend, elementwise and for each head. A head can be silent without attending to a token that says nothing, so
    attention sinks and massive activations do not form.

    Intermediates: ``gate`` ``(batch, n_head, time, head_dim)``, after the sigmoid; ``head_output`` is ``A V``, without
    the gate.
    """

    def pieces_of(self, rows: int, kv_rows: int) -> dict[str, int]:
        return {**super().pieces_of(rows, kv_rows), "gate": rows}

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        q, k, v, gate = self._split(x, context)
        q, k = self.place(q, self.q_norm, context), self.place(k, self.k_norm, context)
        mixed = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), context)  # (B, H, T, D)
        return self.merge_heads(mixed * self.see("gate", gate.sigmoid()))

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _ = self._split(x, context)
        return self.place(q, self.q_norm, context), self.place(k, self.k_norm, context), v

    def _split(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and gates before the sigmoid, ``(batch, heads, time, head_dim)``."""
        parts = self._by_head(self.projected(x, context))
        q, k, v, gate = torch.split(parts, [self.n_head, self.n_kv_head, self.n_kv_head, self.n_head], dim=1)
        return q, k, v, gate

    def head_matrices(self) -> HeadMatrices:
        return replace(super().head_matrices(), no_ov="it gates each head's output before W_O")

    def value_output(self) -> None:
        """None: what a head writes is not linear in what it mixes."""
