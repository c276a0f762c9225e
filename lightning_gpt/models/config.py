"""The configuration of a GPT: sizes and choices of parts."""

from dataclasses import dataclass
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.formula import Backend
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.block import blocks
from lightning_gpt.models.canon import convolutions
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.registry import Given, GivenByLayer, as_read
from lightning_gpt.models.wrappers.checkpointing import Checkpointing
from lightning_gpt.models.wrappers.layer_drop import layer_drops
from lightning_gpt.models.wrappers.loop import RecurrentDepth, loops
from lightning_gpt.models.wrappers.token_routing import MixtureOfDepths, token_routings
from lightning_gpt.options import (
    Depth,
    Heads,
    Length,
    NotNegative,
    Positive,
    ShareBelowOne,
    VocabSize,
    Width,
    check_options,
)


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes and choices of a :class:`~lightning_gpt.models.gpt.GPT`.

    Args:
        n_layer: Number of transformer blocks.
        n_head: Attention heads per block; must divide ``dim`` unless the attention sets its own ``head_dim``.
        dim: Width of the residual stream.
        block_size: Length of training sequences in tokens; also the longest sequence that learned positions cover.
        vocab_size: Number of token ids.
        dropout: Probability of dropping an embedding, an attention weight or an entry of a branch's output in training.
        bias: Whether linear layers and LayerNorms have biases (GPT-2's do).
        tie_embeddings: Whether the output head shares the token embedding matrix.
        attention_backend: ``sdpa`` uses torch's fused kernel, ``manual`` computes the formula.
        norm: The norm, for example ``layer`` or ``rms``.
        residual: How branches join the residual stream, for example ``pre``, ``post`` or ``none``.
        position: The position scheme, for example ``learned`` or ``rotary``.
        attention: The attention, or a list to repeat down the layers: ``[window, window, full]``.
        ffn: The feed-forward network, or a list; ``none`` for attention-only blocks.
        qk_norm: The norm of each head's queries and keys.
        embedding_norm: The norm of the embeddings before the first block (BigScience 2022, "BLOOM", 2211.05100,
            section 3.2.2).
        embedding_scale: What the token embeddings are multiplied by on their way in, but not in the output head
            (Vaswani et al. 2017, 1706.03762, section 3.4, where it is √dim).
        head_bias: Whether the output head has a bias.
        logit_divisor: What logits are divided by, before they are bounded (Granite; Shen et al. 2024, 2408.13359).
        logit_softcap: c, if logits become ``c tanh(logits / c)`` (Gemma Team 2024, 2408.00118, section 2).
        convolution: Short convolutions over neighbouring tokens, for example ``{kind: canon, places: AC}``.
        logit_scale: Whether each token's logit has a learned factor (nGPT's s_z; Loshchilov et al. 2024, 2410.01131).
        layer_drop: Which blocks a training step skips, for example ``{kind: linear, rate: 0.2}``.
        token_routing: Which tokens go through which blocks, for example ``{kind: mixture_of_depths, capacity: 0.125}``.
        n_unique: Number of blocks with their own weights; layer i runs block i modulo ``n_unique``. ``n_layer`` if
            None.
        loop: Blocks that run several times, for example ``{kind: recurrent_depth, prelude: 1, core: 2, coda: 1}``;
            ``n_layer`` counts executed layers.
        diversity: Weight of a loss that penalises similar token representations after the last block.
        zero_projections: Whether the output projection of each branch starts at 0, so that each block starts as the
            identity (Goyal et al. 2017, 1706.02677, section 5.1, for norms' gains; Yang et al. 2022, 2203.03466,
            appendix D.2).
        checkpointing: What is recomputed in the backward pass instead of storing its activations: ``none``, each
            ``block`` or ``attention``.

    A variant with options is a mapping: ``{kind: grouped, n_kv_head: 2}``. On construction, fields that name variants
    are converted to a :class:`~lightning_gpt.models.registry.Choice` with every option filled in (a tuple of them for
    ``attention`` and ``ffn``), or None for an omitted part.
    """

    n_layer: Depth = 4
    n_head: Heads = 4
    dim: Width = 256
    block_size: Length = 256
    vocab_size: VocabSize = 50257
    dropout: ShareBelowOne = 0.0
    bias: bool = True
    tie_embeddings: bool = True
    attention_backend: Backend = "sdpa"
    norm: Given = "layer"
    residual: Given = "pre"
    position: Given = "learned"
    attention: GivenByLayer = "full"
    ffn: GivenByLayer = "gelu"
    qk_norm: Given = "none"
    embedding_norm: Given = "none"
    embedding_scale: Positive = 1.0
    head_bias: bool = False
    logit_divisor: Positive = 1.0
    logit_softcap: Positive | None = None
    logit_scale: bool = False
    convolution: Given = None
    layer_drop: Given = None
    token_routing: Given = None
    n_unique: Depth | None = None
    loop: Given = None
    diversity: NotNegative = 0.0
    zero_projections: bool = False
    checkpointing: Checkpointing = "none"

    def __post_init__(self) -> None:
        self._read("norm", norms.require(self.norm))
        self._read("qk_norm", norms.require(self.qk_norm, "qk_norm"))
        self._read("embedding_norm", norms.require(self.embedding_norm, "embedding_norm"))
        self._read("residual", blocks.require(self.residual))
        self._read("position", position_schemes.require(self.position))
        self._read("attention", attentions.pattern(self.attention))
        self._read("ffn", ffns.pattern(self.ffn))
        self._read("convolution", convolutions.read(self.convolution))
        self._read("layer_drop", layer_drops.read(self.layer_drop))
        self._read("token_routing", token_routings.read(self.token_routing))
        self._read("loop", loops.read(self.loop))
        check_options(GPTConfig.__init__, vars(self))
        self._check_shared()
        self._check_depth()
        self._check_loop()
        self._check_heads()
        self._check_scale()
        if self.routing() is not None and self.convolution is not None:
            raise CallError(
                "convolution and token_routing cannot be combined, as the neighbours of a token may skip a block: "
                "leave one of them out"
            )
        rule = blocks.get(blocks.require(self.residual).kind)
        if self.zero_projections and not rule.trains_from_zero:
            raise CallError(
                f"zero_projections and residual {self.residual} cannot be combined: it does not train from such a start"
            )
        dropping = layer_drops.read(self.layer_drop)
        if dropping is not None and layer_drops.get(dropping.kind).scales_updates and not rule.adds_updates:
            raise CallError(
                f"layer_drop {dropping.kind} scales what a block adds to the stream, and with residual {self.residual} "
                f"it adds nothing: use layer_drop constant"
            )

    def _read(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def routing(self) -> MixtureOfDepths | None:
        """The token routing, or None; raises a CallError if it cannot be combined with the other choices."""
        return token_routings.make_if_chosen(
            self.token_routing,
            n_layer=self.n_layer,
            n_unique=self.n_unique,
            residual=self.residual,
            attention=self.attention,
        )

    def _check_scale(self) -> None:
        """A head with factors has a matrix of its own, and nothing else."""
        if not self.logit_scale:
            return
        if self.tie_embeddings:
            raise CallError("logit_scale needs an output head of its own: set tie_embeddings to false")
        for option, is_set in {
            "head_bias": self.head_bias,
            "logit_divisor": self.logit_divisor != 1,
            "logit_softcap": self.logit_softcap is not None,
        }.items():
            if is_set:
                raise CallError(f"logit_scale and {option} cannot be combined: leave one of them out")

    def _check_heads(self) -> None:
        """Unless the attention sets ``head_dim``, ``dim`` must be divisible by ``n_head``."""
        own_width = [choice is not None and choice.options.get("head_dim") for choice in as_read(self.attention)]
        if self.dim % self.n_head and not all(own_width):
            divisors = [str(n) for n in range(1, min(self.dim, 64) + 1) if self.dim % n == 0]
            raise CallError(
                f"dim {self.dim} is not divisible by n_head {self.n_head}; "
                f"n_head may be {', '.join(divisors)}, or choose another dim"
            )

    def _check_depth(self) -> None:
        """Blocks that read what every earlier one has made are neither shared nor left out."""
        if not blocks.get(blocks.require(self.residual).kind).looks_back:
            return
        for field, way in (("n_unique", "shared"), ("loop", "shared"), ("layer_drop", "left out")):
            if getattr(self, field) is not None:
                raise CallError(
                    f"{field} and residual {self.residual} cannot be combined: its blocks read what every earlier one "
                    f"has made, so none can be {way}"
                )

    def looping(self) -> RecurrentDepth | None:
        """The loop, or None; raises a CallError if it does not fit the number of layers."""
        return loops.make_if_chosen(self.loop, n_layer=self.n_layer)

    def own_block(self, layer: int) -> int:
        """The number of the block with weights of its own that an executed layer runs."""
        looping = self.looping()
        return layer % (self.n_unique or self.n_layer) if looping is None else looping.block_of(layer)

    def _check_loop(self) -> None:
        """A looped block has one kind of parts, and every loop runs whole on every token."""
        if self.looping() is None:
            return
        for field in ("n_unique", "layer_drop", "token_routing"):
            if getattr(self, field) is not None:
                raise CallError(f"loop and {field} cannot be combined: leave one of them out")
        for part, choices in (("attention", as_read(self.attention)), ("ffn", as_read(self.ffn))):
            if len(choices) > 1:
                raise CallError(f"{part} is a pattern of {len(choices)}, and with loop all layers have one kind")

    def _check_shared(self) -> None:
        """A block shared by several layers must have the same kind of parts in each."""
        if self.n_unique is None:
            return
        if self.n_unique > self.n_layer:
            raise CallError(f"n_unique is {self.n_unique}; it must be from 1 to n_layer, which is {self.n_layer}")
        for part, choices in (("attention", as_read(self.attention)), ("ffn", as_read(self.ffn))):
            if self.n_unique % len(choices):
                raise CallError(
                    f"{part} is a pattern of {len(choices)} and n_unique is {self.n_unique}: a shared block can have "
                    f"only one kind; n_unique must be a multiple of {len(choices)}"
                )
