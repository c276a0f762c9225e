"""The multi-block GPT.

``H⁰ = E_tok + E_pos``; each block adds attention and feed-forward to the residual stream
(:class:`~lightning_gpt.models.block.Block`); a final LayerNorm; an output head without bias. Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.3, is the source of the layout and the initialisation.
"""

import math
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention import Backend, Mask, MultiHeadAttention, document_block_mask, document_mask
from lightning_gpt.models.base import LanguageModel, require_choice, require_positive
from lightning_gpt.models.block import Block
from lightning_gpt.models.feedforward import FeedForward


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes and choices of a :class:`GPT`.

    Args:
        n_layer: Number of transformer blocks.
        n_head: Attention heads in each block; must divide ``dim``.
        dim: Width of the residual stream.
        block_size: The longest sequence that the learned positions cover, in tokens.
        vocab_size: Number of token ids.
        dropout: Probability of dropping an embedding, an attention weight or a branch's output while training.
        bias: Whether linear layers and LayerNorms have biases (GPT-2's do).
        tie_embeddings: Whether the output head is the token embedding matrix.
        attention_backend: ``sdpa`` uses torch's fused kernel, ``manual`` computes the formula.
    """

    n_layer: int = 4
    n_head: int = 4
    dim: int = 256
    block_size: int = 256
    vocab_size: int = 50257
    dropout: float = 0.0
    bias: bool = True
    tie_embeddings: bool = True
    attention_backend: Backend = "sdpa"

    def __post_init__(self) -> None:
        require_positive(self, "n_layer", "n_head", "dim", "block_size", "vocab_size")
        require_choice(self, "attention_backend", get_args(Backend))
        if self.dim % self.n_head:
            divisors = [str(n) for n in range(1, min(self.dim, 64) + 1) if self.dim % n == 0]
            raise CallError(
                f"dim {self.dim} is not divisible by n_head {self.n_head}; "
                f"n_head may be {', '.join(divisors)}, or choose another dim"
            )
        if not 0 <= self.dropout < 1:
            raise CallError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


class GPT(LanguageModel):
    """A stack of pre-LN transformer blocks; ``model(ids)`` gives logits ``(batch, time, vocab_size)``.

    Intermediates: ``token_embedding``, ``position_embedding``, ``embedding``; under ``blocks.{i}.`` those of
    :class:`~lightning_gpt.models.block.Block`, under ``blocks.{i}.attention.`` those of
    :class:`~lightning_gpt.models.attention.MultiHeadAttention`, under ``blocks.{i}.ffn.`` those of
    :class:`~lightning_gpt.models.feedforward.FeedForward`; ``final_norm`` and ``logits``.
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.block_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.dim, bias=config.bias)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def _block(self) -> Block:
        c = self.config
        attention = MultiHeadAttention(c.dim, c.n_head, bias=c.bias, dropout=c.dropout, backend=c.attention_backend)
        return Block(attention, FeedForward(c.dim, bias=c.bias), c.dim, bias=c.bias, dropout=c.dropout)

    def _initialise(self) -> None:
        """Weights N(0, 0.02²), biases 0; what is added to the residual stream is scaled by 1/√(2·n_layer).

        The scaling keeps the variance of the sum of 2·n_layer branches that of one (GPT-2, section 2.3).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(".projection")
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def mask_between(self, documents: Tensor) -> Mask:
        """The mask that keeps documents apart: blocks for ``flex_attention`` on a GPU, booleans elsewhere."""
        # the block kernel has neither dropout nor anything to show
        plain = self.config.attention_backend == "sdpa" and self.config.dropout == 0 and self._watch is None
        return document_block_mask(documents) if documents.is_cuda and plain else document_mask(documents)

    @property
    def unembedding(self) -> Tensor:
        return self.token_embedding.weight if self.head is None else self.head.weight

    def hidden(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Token ids ``(batch, time)`` to the final LayerNorm's output ``(batch, time, dim)``."""
        x = self.dropout(self.embed(ids, self.token_embedding, self.position_embedding, documents))  # (B, T, d)
        mask = None if documents is None else self.mask_between(documents)
        for block in self.blocks:
            x = block(x, mask)
        return self.see("final_norm", self.final_norm(x))
