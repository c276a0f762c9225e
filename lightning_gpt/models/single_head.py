"""A single attention head you can inspect completely.

The whole model, for token ids of length T (rows are positions)::

    X = E_tok[ids] + E_pos[0..T−1]          N = LayerNorm(X)
    Q = N W_Q     K = N W_K     V = N W_V   each W in R^{d×d}, without bias
    S = Q Kᵀ / √d                           S_ij = −∞ for j > i
    A = softmax(S)                          Y = X + (A V) W_0
    logits = Y E_tokᵀ                       the unembedding is the token embedding
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_gpt.models.attention.formula import Backend, CausalAttention
from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.attention.mask import columns_counted
from lightning_gpt.models.base import LanguageModel, models
from lightning_gpt.models.context import Context
from lightning_gpt.models.head import OutputHead
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.layer import Embedding, Linear
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.learned import LearnedPositions
from lightning_gpt.models.view import BlockView
from lightning_gpt.options import Length, VocabSize, Width, check_options


@dataclass(frozen=True, kw_only=True)
class SingleHeadConfig:
    """The sizes of a :class:`SingleHeadModel`.

    Args:
        dim: Width d of the embeddings and of the head.
        block_size: The longest sequence that the learned positions cover, in tokens.
        vocab_size: Number of token ids.
        attention_backend: ``manual`` computes the formula, ``sdpa`` uses torch's fused kernel.
    """

    dim: Width = 64
    block_size: Length = 8
    vocab_size: VocabSize = 50257
    attention_backend: Backend = "sdpa"

    def __post_init__(self) -> None:
        check_options(SingleHeadConfig.__init__, vars(self))


class SingleHead(CausalAttention):
    """``softmax(mask(N W_Q (N W_K)ᵀ / √d)) N W_V W_0``.

    Intermediates: ``q``, ``k``, ``v``, ``mask``, ``scores`` (scaled, unmasked), ``pattern`` (A),
    ``head_output`` (A V) and ``output`` (A V W_0).
    """

    def __init__(self, dim: int, backend: Backend) -> None:
        super().__init__(backend)
        self.head_dim = dim
        self.w_q = Linear(dim, dim, bias=False, maps=("stream", "heads"))
        self.w_k = Linear(dim, dim, bias=False, maps=("stream", "heads"))
        self.w_v = Linear(dim, dim, bias=False, maps=("stream", "heads"))
        self.w_0 = Linear(dim, dim, bias=False, maps=("heads", "stream"))

    def forward(self, n: Tensor, context: Context = Context()) -> Tensor:
        """Map ``(batch, time, dim)`` to the same shape."""
        q, k, v = self.see("q", self.w_q(n)), self.see("k", self.w_k(n)), self.see("v", self.w_v(n))
        return self.see("output", self.w_0(self.attend(q, k, v, context)))

    def flops(self, positions: Tensor) -> float:
        """The four products, plus scores and mixed values."""
        return super().flops(positions) + 4 * self.w_0.in_features * columns_counted(self, positions)

    def head_matrices(self) -> HeadMatrices:
        w_q, w_k, w_v, w_0 = (layer.weight.mT[None] for layer in (self.w_q, self.w_k, self.w_v, self.w_0))
        return HeadMatrices(w_q, w_k, w_v, w_0)

    def value_output(self) -> tuple[Tensor, Tensor]:
        return self.w_v.weight.mT[None], self.w_0.weight.mT[None]


@models.register("single_head", SingleHeadConfig)
class SingleHeadModel(LanguageModel):
    """The one-head language model; ``model(ids)`` gives logits ``(batch, time, vocab_size)``.

    Intermediates: ``token_embedding``, ``position_embedding``, ``embedding`` (X), ``norm`` (N), those of
    :class:`SingleHead` under ``attention.``, ``residual`` (Y) and ``logits``.
    """

    config: SingleHeadConfig

    def __init__(self, config: SingleHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.dim)
        self.positions = LearnedPositions(config.dim, config.block_size)
        self.norm = nn.LayerNorm(config.dim)
        self.attention = SingleHead(config.dim, config.attention_backend)
        self.head = OutputHead(config.dim, config.vocab_size, tied_to=self.token_embedding)
        self.init_all()

    def block_views(self) -> list[BlockView]:
        """One block: the norm and the head."""
        parts, names = (self.norm, self.attention), ("residual", None, "norm")
        return [BlockView(0, parts, self.attention, "attention", None, None, *names, self.norm, lambda output: output)]

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens."""
        return Cache([self.attention.new_state(capacity)])

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Tensor:
        """Map token ids ``(batch, time)`` to Y ``(batch, time, dim)``."""
        context = self.context(ids, documents, cache, lengths, losses)
        x = self.embed(ids, context)  # (B, T, d)
        n = self.see("norm", self.norm(x))
        y = self.see("residual", x + self.attention(n, context.at_layer(0)))
        if cache is not None:
            cache.advance(ids.shape[1], lengths)
        return y
