"""The multi-block GPT.

``H⁰ = E_tok + E_pos``; each block adds attention and feed-forward outputs to the residual stream
(:class:`~lightning_gpt.models.block.Block`); then a final LayerNorm and an output head without bias. Layout and
initialisation follow Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

from collections.abc import Hashable

from torch import Tensor, nn

from lightning_gpt.models import (  # noqa: F401  (imported to register their variants)
    attention_residuals,
    constrained_connections,
    depth_factors,
    hyper_connections,
    residual,
    spherical,
)
from lightning_gpt.models.adjusted_head import AdjustedHead
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.base import LanguageModel, models
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.canon import convolutions
from lightning_gpt.models.config import GPTConfig
from lightning_gpt.models.context import Context
from lightning_gpt.models.diversity import TokenDiversity
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.head import OutputHead
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.layer import Absent, Embedding
from lightning_gpt.models.norms import NoNorm, Norm, norms
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.registry import at_layer
from lightning_gpt.models.scaled_head import ScaledHead
from lightning_gpt.models.view import BlockView
from lightning_gpt.models.wrappers.layers import run_layers
from lightning_gpt.models.wrappers.token_routing import RoutedBlock


@models.register("gpt", GPTConfig)
class GPT(LanguageModel):
    """A stack of transformer blocks; ``model(ids)`` gives logits ``(batch, time, vocab_size)``.

    Intermediates: ``token_embedding``, ``position_embedding``, ``embedding``; ``blocks.{i}.`` plus the names in
    :class:`~lightning_gpt.models.block.Block`, its attention's under ``blocks.{i}.attention.``, its feed-forward
    network's under ``blocks.{i}.ffn.``; ``final_norm`` and ``logits``. ``i`` counts executed layers. With ``n_unique``,
    a shared block appears in ``blocks`` and in the state dict once per layer that uses it. Sharing all layers gives the
    Universal Transformer (Dehghani et al. 2018, 1807.03819) without its step embedding and halting; see also ALBERT
    (1909.11942).
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.dim)
        self.embedding_scale = config.embedding_scale
        self.positions = position_schemes.make(
            config.position, dim=config.dim, n_head=config.n_head, block_size=config.block_size
        )
        self.embedding_norm = norms.make(config.embedding_norm, dim=config.dim, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        looping = config.looping()
        n_own = config.n_unique or config.n_layer if looping is None else looping.n_own
        own = [self._block(layer) for layer in range(n_own)]
        self.blocks = nn.ModuleList(own[config.own_block(layer)] for layer in range(config.n_layer))
        self.injection = None if looping is None else looping.make_injection(config.dim)
        self.layers = run_layers(self, config, self.each_block(), self.injection)
        if config.layer_drop is not None:
            self.same_each_step = False
        self._add_parts()
        self.diversity = TokenDiversity(config.diversity) if config.diversity else None
        self.final_norm = NoNorm() if all(block.ends_normed for block in own) else self._norm()
        self.head = self._head()
        self.init_all()

    def each_block(self) -> list[Block | RoutedBlock]:
        """The block of each layer; a shared block is listed once per layer."""
        return list(self.blocks)  # type: ignore[arg-type]

    def _add_parts(self) -> None:
        """Create the parts that a subclass adds; called before weights are initialised."""

    def _head(self) -> OutputHead:
        c, tied_to = self.config, self.token_embedding if self.config.tie_embeddings else None
        if c.logit_scale:
            return ScaledHead(c.dim, c.vocab_size)
        if not c.head_bias and c.logit_softcap is None and c.logit_divisor == 1:
            return OutputHead(c.dim, c.vocab_size, tied_to)
        return AdjustedHead(
            c.dim, c.vocab_size, tied_to, bias=c.head_bias, softcap=c.logit_softcap, divisor=c.logit_divisor
        )

    def _norm(self) -> Norm:
        return norms.make(self.config.norm, dim=self.config.dim, bias=self.config.bias)

    def _block(self, layer: int) -> Block | RoutedBlock:
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
        ffn = ffns.make_if_chosen(at_layer(c.ffn, layer), dim=c.dim, bias=c.bias)
        joined = {"attention": attention, "ffn": ffn, "norm": self._norm, "dim": c.dim, "dropout": c.dropout}
        block, routing = blocks.make(c.residual, **joined, n_layer=c.n_layer, layer=layer), c.routing()
        if c.convolution is not None:
            convolutions.make(c.convolution, dim=c.dim, layer=layer).add_to(block)
        return block if routing is None else routing.wrap(block, layer, c.dim)

    def init_all(self) -> None:
        """Weights N(0, 0.02²), biases 0; then each block applies its residual rule's scaling (GPT-2, section 2.3)."""
        super().init_all()
        for block in dict.fromkeys(self.each_block()):
            block.init_branches(self.config.n_layer)
            if self.config.zero_projections:
                block.zero_branches()

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens."""
        return Cache([block.new_state(capacity) for block in self.each_block()])

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Tensor:
        """Map token ids ``(batch, time)`` to the final norm's output ``(batch, time, dim)``."""
        context = self.context(ids, documents, cache, lengths, losses)
        hidden = self.run(self.embed(ids, context), context)
        if cache is not None:
            cache.advance(ids.shape[1], lengths)
        return hidden

    def embed(self, ids: Tensor, context: Context) -> Tensor:
        """Map token ids ``(batch, time)`` to the input of the first layer, dropout included: the widened stream."""
        return self.widened(self.dropout(super().embed(ids, context)))

    def widened(self, stream: Tensor) -> Tensor:
        return self.blocks[0].unwrapped.widened(stream)  # type: ignore[no-any-return, union-attr, operator]

    def narrowed(self, stream: Tensor) -> Tensor:
        return self.blocks[-1].unwrapped.narrowed(stream)  # type: ignore[no-any-return, union-attr, operator]

    def normed_embedding(self, x: Tensor) -> Tensor:
        return self.embedding_norm(x)  # type: ignore[no-any-return]

    def run(self, x: Tensor, context: Context) -> Tensor:
        """Map the input of the first layer to the final norm's output."""
        for layer in range(self.config.n_layer):
            x = self.layer(layer, x, context)
        return self.finish(x, context)

    def finish(self, x: Tensor, context: Context) -> Tensor:
        """Map the last layer's output to the final norm's output."""
        x = self.narrowed(x)
        if self.diversity is not None:
            x = self.diversity(x, context)
        return self.see("final_norm", self.final_norm(x))

    def layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        """Run layer ``layer`` on the residual stream ``(batch, time, n_stream dim)``; the shape is unchanged."""
        return self.layers[layer](x, context if context.cache is None else context.at_layer(layer))

    def entering(self, layer: int, x: Tensor, context: Context) -> Tensor:
        """What the block of ``layer`` is given: the stream itself, or what a loop that begins there makes of it."""
        looping = self.config.looping()
        step = None if looping is None else looping.begins(layer)
        return x if step is None else self.injection.begin(x, context, step)  # type: ignore[union-attr]

    def passed_on(self, layer: int, context: Context) -> dict[Hashable, Tensor]:
        """What has been carried so far, without what no later layer reads."""
        passes_on = self.each_block()[layer].unwrapped.passes_on
        return {key: value for key, value in context.shared.carried.items() if passes_on(key)}

    def block_views(self) -> list[BlockView]:
        """One view per executed layer that this process holds; layers may share a block."""
        views = []
        for layer, block in enumerate(self.each_block()):
            if isinstance(block, Absent):
                continue
            name, inside = f"blocks.{layer}", block.unwrapped
            ffn_name, half = (None, None) if inside.ffn is None else (f"{name}.ffn", f"{name}.after_attention")
            mixer = inside.attention, f"{name}.attention"
            read = f"{name}.attention_norm" if inside.norms_input else None
            if inside.attention_convolution is not None:
                read = f"{name}.attention_convolution.output"
            ends = inside.read_alone, block.written
            ffn = inside.ffn, ffn_name
            views.append(BlockView(layer, (block,), *mixer, *ffn, f"{name}.after_ffn", half, read, *ends))
        return views

    def read_out(self, stream: Tensor) -> Tensor:
        """Apply the final norm to a residual stream ``(..., dim)``."""
        return self.final_norm(stream)  # type: ignore[no-any-return]

    def read_out_share(self, part: Tensor, stream: Tensor) -> Tensor:
        """The final norm's share of ``part``."""
        return self.final_norm.share(part, stream)

    def flops(self, positions: Tensor) -> float:
        """Sum over the executed layers, counting a shared block once per layer, plus the head."""
        injected = 0.0 if self.injection is None else self.injection.flops(positions)
        return sum(block.flops(positions) for block in self.each_block()) + injected + self.head.flops(positions)
