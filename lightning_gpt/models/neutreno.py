"""Attention that is pulled back to the first layer's values."""

from torch import Tensor

from lightning_gpt.models.attention import Backend, MultiHeadAttention, attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.registry import Choice


@attentions.register("neutreno")
class NeutrenoAttention(MultiHeadAttention):
    """``y_i = Σ_j A_ij v_j + λ (v⁰_i − v_i)``, v⁰ the values of the first layer: NeuTRENO.

    Nguyen et al. 2023 (2312.00751): softmax attention descends a functional that is least where all tokens are alike;
    what is added penalises the distance from the token that went in. The first layer of this kind that a pass runs
    gives v⁰ and is plain.

    Intermediates: ``head_output`` is ``pattern @ v``, before the term.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight while training.
        backend: How the attention itself is computed.
        qk_norm: The norm of queries and keys.
        n_kv_head: Number of key and value heads; all when None.
        strength: λ; 0 is plain attention.
    """

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        dropout: float,
        backend: Backend,
        qk_norm: Choice = "none",
        n_kv_head: int | None = None,
        strength: float = 0.4,
    ) -> None:
        super().__init__(dim, n_head, bias=bias, dropout=dropout, backend=backend, qk_norm=qk_norm, n_kv_head=n_kv_head)
        self.strength = strength

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        q, k, v = self.heads(x, context)
        mixed = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), context)  # (B, H, T, D)
        first = context.once(("first values", self.n_kv_head), lambda: v)
        back = (first - v).repeat_interleave(self.n_head // self.n_kv_head, dim=1)
        return self.joined(mixed + self.strength * back)
