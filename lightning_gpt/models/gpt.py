"""The multi-block GPT.

``H⁰ = E_tok + E_pos``; each block adds attention and feed-forward to the residual stream
(:class:`~lightning_gpt.models.block.Block`); a final LayerNorm; an output head without bias. Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.3, is the source of the layout and the initialisation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gpt.errors import CallError
from lightning_gpt.models import residual  # noqa: F401
from lightning_gpt.models.attention import (  # noqa: F401  (their variants are known once they are imported)
    differential,
    linear,
    local,
    neutreno,
    recentred,
    sink,
    value,
)
from lightning_gpt.models.attention.multi_head import Backend, attentions
from lightning_gpt.models.base import LanguageModel, require_choice, require_positive
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.diversity import TokenDiversity
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.memory import segment, tokens  # noqa: F401
from lightning_gpt.models.memory.base import Memory, check_memory, memories
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.record import called
from lightning_gpt.models.registry import Choice, LayerChoice, at_layer
from lightning_gpt.models.wrappers.layer_drop import layer_drops
from lightning_gpt.models.wrappers.token_routing import FullDepth, depths

Checkpointing = Literal["none", "block", "attention"]
"""What is run again for its gradient instead of keeping its activations (Chen et al. 2016, 1604.06174)."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes and choices of a :class:`GPT`.

    Args:
        n_layer: Number of transformer blocks.
        n_head: Attention heads in each block; must divide ``dim``.
        dim: Width of the residual stream.
        block_size: The length of sequence that is trained on, in tokens, and the longest that learned positions cover.
        vocab_size: Number of token ids.
        dropout: Probability of dropping an embedding, an attention weight or a branch's output while training.
        bias: Whether linear layers and LayerNorms have biases (GPT-2's do).
        tie_embeddings: Whether the output head is the token embedding matrix.
        attention_backend: ``sdpa`` uses torch's fused kernel, ``manual`` computes the formula.
        norm: Which norm, for example ``layer`` or ``rms``.
        residual: How branches join the residual stream, for example ``pre``, ``post`` or ``none``.
        position: How the model knows where a token stands, for example ``learned`` or ``rotary``.
        attention: Which attention, or a list that is repeated down the layers: ``[window, window, full]``.
        ffn: Which feed-forward network, or a list.
        qk_norm: Which norm each head's queries and keys go through.
        layer_drop: Which blocks a training step leaves out, for example ``{kind: linear, rate: 0.2}``.
        memory: What goes on from segment to segment of a text, for example ``{kind: segment, length: 128}``.
        depth: Which tokens go through which blocks, for example ``{kind: mixture, capacity: 0.125}``.
        n_unique: How many blocks have weights of their own; layer i runs block i modulo ``n_unique``. All when None.
        diversity: Weight of the loss against token representations that are alike after the last block.
        zero_projections: Whether the last product of each branch starts at 0, so that each block starts as no change
            (Goyal et al. 2017, 1706.02677, section 5.1, for norms' gains; Yang et al. 2022, 2203.03466, appendix D.2).
        checkpointing: What is not kept for the gradient but computed again: ``none``, each ``block`` or ``attention``.

    A variant with options is a mapping: ``{kind: grouped, n_kv_head: 2}``.
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
    norm: Choice = "layer"
    residual: Choice = "pre"
    position: Choice = "learned"
    attention: LayerChoice = "full"
    ffn: LayerChoice = "gelu"
    qk_norm: Choice = "none"
    layer_drop: Choice = "none"
    memory: Choice = "none"
    depth: Choice = "full"
    n_unique: int | None = None
    diversity: float = 0.0
    zero_projections: bool = False
    checkpointing: Checkpointing = "none"

    def __post_init__(self) -> None:
        require_positive(self, "n_layer", "n_head", "dim", "block_size", "vocab_size")
        require_choice(self, "attention_backend", get_args(Backend))
        require_choice(self, "checkpointing", get_args(Checkpointing))
        norms.check(self.norm)
        norms.check(self.qk_norm)
        blocks.check(self.residual)
        position_schemes.check(self.position)
        attentions.check(self.attention)
        ffns.check(self.ffn)
        layer_drops.check(self.layer_drop)
        check_memory(self.memory, self.position, self.layer_drop)
        self._check_shared()
        self.depths()
        if self.dim % self.n_head:
            divisors = [str(n) for n in range(1, min(self.dim, 64) + 1) if self.dim % n == 0]
            raise CallError(
                f"dim {self.dim} is not divisible by n_head {self.n_head}; "
                f"n_head may be {', '.join(divisors)}, or choose another dim"
            )
        if not 0 <= self.dropout < 1:
            raise CallError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if not 0 <= self.diversity < float("inf"):
            raise CallError(f"diversity is {self.diversity}; it must be a number of at least 0")
        if self.zero_projections and self.residual in ("none", "rezero"):
            raise CallError(
                f"zero_projections with residual {self.residual!r} gives every weight a gradient of 0 for good; "
                f"leave one of them out"
            )

    def depths(self) -> FullDepth:
        """Which tokens go through which blocks; refuses what does not go with the other choices."""
        return depths.make(
            self.depth,
            n_layer=self.n_layer,
            n_unique=self.n_unique,
            residual=self.residual,
            attention=self.attention,
        )

    def _check_shared(self) -> None:
        """Blocks that serve several layers cannot be of another kind in each."""
        if self.n_unique is None:
            return
        if not isinstance(self.n_unique, int) or not 1 <= self.n_unique <= self.n_layer:
            raise CallError(f"n_unique is {self.n_unique}; it must be 1 to n_layer, which is {self.n_layer}")
        for part, choices in (("attention", self.attention), ("ffn", self.ffn)):
            if isinstance(choices, list) and self.n_unique % len(choices):
                raise CallError(
                    f"{part} is a pattern of {len(choices)} and n_unique is {self.n_unique}: a shared block is of one "
                    f"kind; n_unique must be a multiple of {len(choices)}"
                )


class GPT(LanguageModel):
    """A stack of transformer blocks; ``model(ids)`` gives logits ``(batch, time, vocab_size)``.

    Intermediates: ``token_embedding``, ``position_embedding``, ``embedding``; under ``blocks.{i}.`` those of
    :class:`~lightning_gpt.models.block.Block`, under ``blocks.{i}.attention.`` those of
    :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`, under ``blocks.{i}.ffn.`` those of
    :class:`~lightning_gpt.models.ffn.dense.FeedForward`; ``final_norm`` and ``logits``. ``i`` counts the layers that
    are run: with ``n_unique``, one block is seen under the name of each layer that it serves, ``blocks`` holds it as
    often, and the state dict has its weights under each of those names. Sharing all layers is the Universal
    Transformer (Dehghani et al. 2018, 1807.03819) without its step embedding and halting; ALBERT (1909.11942).
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.positions = position_schemes.make(
            config.position, dim=config.dim, n_head=config.n_head, block_size=config.block_size
        )
        self.dropout = nn.Dropout(config.dropout)
        own = [self._block(layer) for layer in range(config.n_unique or config.n_layer)]
        self.blocks = nn.ModuleList(own[layer % len(own)] for layer in range(config.n_layer))
        self.layer_drop = layer_drops.make(config.layer_drop, n_layer=config.n_layer)
        self.memory = memories.make(config.memory, dim=config.dim, n_layer=config.n_layer, block_size=config.block_size)
        self.memory.check(self._stack())
        normed = all(block.ends_normed for block in self._stack())
        self.diversity = TokenDiversity(config.diversity)
        self.final_norm = nn.Identity() if normed else self._norm()
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def _norm(self) -> nn.Module:
        return norms.make(self.config.norm, dim=self.config.dim, bias=self.config.bias)

    def _block(self, layer: int) -> Block:
        c = self.config
        attention = attentions.make(
            at_layer(c.attention, layer),
            dim=c.dim,
            n_head=c.n_head,
            bias=c.bias,
            dropout=c.dropout,
            backend=c.attention_backend,
            qk_norm=c.qk_norm,
            layer=layer,
            positions=self.positions,
            vocab_size=c.vocab_size,
        )
        ffn = ffns.make(at_layer(c.ffn, layer), dim=c.dim, bias=c.bias)
        joined = {"attention": attention, "ffn": ffn, "norm": self._norm, "dim": c.dim, "n_layer": c.n_layer}
        block = blocks.make(c.residual, dropout=c.dropout, **joined)
        block.checkpoint_attention = c.checkpointing == "attention"
        block.router = c.depths().router(layer, c.dim)
        return block

    def _stack(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    def _initialise(self) -> None:
        """Weights N(0, 0.02²), biases 0; then each block as its residual rule wants it (GPT-2, section 2.3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in dict.fromkeys(self._stack()):
            block.initialise(self.config.n_layer)
            if self.config.zero_projections:
                for projection in block.projections():
                    nn.init.zeros_(projection.weight)

    @property
    def unembedding(self) -> Tensor:
        return self.token_embedding.weight if self.head is None else self.head.weight

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model can read; with memory any, for positions are of one segment."""
        return None if isinstance(self.memory, Memory) else super().context_limit

    @property
    def trace_limit(self) -> int | None:
        """With memory, a segment."""
        return self.memory.segment

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens."""
        if isinstance(self.memory, Memory):
            return self.memory.new_cache(self, capacity)
        return Cache([block.new_state(capacity) for block in self._stack()])

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``(batch, time)`` to the final norm's output ``(batch, time, dim)``."""
        context = self.context(ids, documents, cache, lengths)
        if isinstance(self.memory, Memory):
            return self.memory.hidden(self, ids, documents, cache, lengths)
        hidden = self.run(self.embedded(ids, context), context)
        if cache is not None:
            cache.advance(ids.shape[1], lengths)
        return hidden

    def embedded(self, ids: Tensor, context: Context) -> Tensor:
        """Token ids ``(batch, time)`` to the stream ``(batch, time, dim)`` before the first layer, dropout included."""
        return self.dropout(self.embed(ids, context))  # type: ignore[no-any-return]

    def run(self, x: Tensor, context: Context, inputs: list[Tensor] | None = None) -> Tensor:
        """The stream before the first layer to the final norm's output; ``inputs`` gets what each layer is given."""
        for layer in range(self.config.n_layer):
            if inputs is not None:
                inputs.append(x)
            x = self.layer(layer, x, context)
        self.diversity(x)
        return self.see("final_norm", self.final_norm(x))

    def layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        """The residual stream ``(batch, time, dim)`` before and after one layer of this pass."""
        block, within, name = self.blocks[layer], context.layered(layer), f"{self._prefix}blocks.{layer}"
        assert isinstance(block, Block)

        def run(x: Tensor, within: Context) -> Tensor:
            if self._watch is not None:
                called(block, name)
            return block(x, within)  # type: ignore[no-any-return]

        def run_again(x: Tensor, within: Context) -> Tensor:  # for its gradient a second time, with the same dropout
            return checkpoint(run, x, within, use_reentrant=False)  # type: ignore[no-any-return]

        again = self.training and self.config.checkpointing == "block" and torch.is_grad_enabled()
        go = run_again if again else run

        def through(x: Tensor) -> Tensor:
            if block.router is None:
                return go(x, within)
            if self._watch is not None:
                called(block, name)
            return block.see("after_ffn", block.router(x, within, block, go))

        return self.layer_drop.join(layer, block, x, through) if self.training else through(x)
