"""One transformer block."""

from torch import Tensor, nn

from lightning_gpt.models.attention import Mask, MultiHeadAttention
from lightning_gpt.models.feedforward import FeedForward
from lightning_gpt.models.watch import Watched


class Block(Watched):
    """``H ← H + MHSA(LN(H))``, then ``H ← H + FFN(LN(H))``: pre-LN, Xiong et al. 2020 (2002.04745), fig. 1b.

    Intermediates: ``attention_norm`` and ``ffn_norm`` (the LayerNorms' outputs), ``after_attention`` and
    ``after_ffn`` (the residual stream after each half), each ``(batch, time, dim)``.
    """

    def __init__(self, attention: MultiHeadAttention, ffn: FeedForward, dim: int, *, bias: bool, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=bias)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(dim, bias=bias)
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """The residual stream ``(batch, time, dim)`` before and after this block; ``mask`` as in the attention."""
        normed = self.see("attention_norm", self.attention_norm(x))
        x = self.see("after_attention", x + self.dropout(self.attention(normed, mask)))
        normed = self.see("ffn_norm", self.ffn_norm(x))
        return self.see("after_ffn", x + self.dropout(self.ffn(normed)))
