"""One transformer block: two branches, and the rule that joins them to the residual stream."""

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LOOKAHEAD, KeyValues, LayerState, WithInputs
from lightning_gpt.models.layer import Layer, all_matrices
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.short_convolution import ShortConvolution

Branch = Callable[[Tensor, Context], Tensor]

blocks: Registry["Block"] = Registry("residual", "attention", "ffn", "norm", "dim", "dropout", "n_layer", "layer")


@blocks.register("pre")
class Block(Layer):
    """``H ← H + MHSA(LN(H))``, then ``H ← H + FFN(LN(H))``: pre-LN, Xiong et al. 2020 (2002.04745), fig. 1b.

    Other residual rules subclass it and override :meth:`mix` and :meth:`feed`. Intermediates, each
    ``(batch, time, dim)``: ``attention_norm`` and ``ffn_norm`` (outputs of the norms), ``after_attention`` and
    ``after_ffn`` (the residual stream after each half; with ``n_stream`` copies, ``(batch, time, n_stream dim)``).

    Args:
        attention: The first branch.
        ffn: The second branch; None for an attention-only block.
        norm: Creates a norm of the stream's width.
        dropout: Probability of dropping an entry of a branch's output in training.
    """

    ends_normed = False
    """Whether the block's output is already normed, so that the model needs no final norm."""
    norms_input = True
    """Whether ``attention_norm`` is what the attention reads, rather than what is made of its output."""
    keeps_stream = True
    """Whether the output is the input plus an update, so that a token may skip the block."""
    adds_updates = True
    """Whether what a block makes is added to the stream, mixed or not, so that an update can be scaled by itself."""
    knows_depth = False
    """Whether the number of layers is in its formula, so that equal weights are another function in a deeper model."""
    zero_branches_pass = True
    """Whether the block is the identity after :meth:`zero_branches`, and leaves the blocks below it as they were."""
    trains_from_zero = True
    """Whether the block trains when its branches' output projections start at 0: without a residual path nothing gets a
    gradient, and behind a norm without ε the first one has no bound."""
    looks_back = False
    """Whether it reads what each earlier block has made, so that it knows its own place and costs more in each."""
    n_stream = 1
    """How many copies of the stream pass from block to block, side by side in its last dimension."""
    around_attention: Callable[[Branch], Branch] | None = None
    """Wraps the first branch when it is called; None to call it directly."""

    def __init__(self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.ffn_norm = None if ffn is None else norm()
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)
        self.attention_convolution: ShortConvolution | None = None
        self.ffn_convolution: ShortConvolution | None = None

    @property
    def unwrapped(self) -> "Block":
        """The block itself; a wrapper returns the block inside it."""
        return self

    def init_branches(self, n_layer: int) -> None:
        """Scale each output projection by 1/√(2·n_layer): the stream sums 2·n_layer branches (GPT-2, section 2.3)."""
        for matrix in all_matrices(self):
            if matrix.target == "stream":
                for one in matrix.each():
                    nn.init.normal_(one, std=0.02 / math.sqrt(2 * n_layer))

    @torch.no_grad()
    def zero_branches(self) -> None:
        """Zero the branches' output projections: the branches then add nothing but still receive gradients."""
        for matrix in all_matrices(self):
            if matrix.target == "stream":
                for parameter in (matrix.weight, matrix.bias):
                    if parameter is not None:
                        parameter.zero_()

    def new_state(self, capacity: int) -> LayerState:
        """Empty state of this block for sequences of up to ``capacity`` tokens."""
        state = self.attention.new_state(capacity)
        convolutions = [part for part in self.modules() if isinstance(part, ShortConvolution)]
        if not convolutions:
            return state
        return WithInputs(state, {each.name: KeyValues(each.width - 1 + LOOKAHEAD) for each in convolutions})

    def widened(self, x: Tensor) -> Tensor:
        """What the first block is given, made of the embeddings ``(..., dim)``: ``(..., n_stream dim)``."""
        return x

    def narrowed(self, x: Tensor) -> Tensor:
        """What the final norm reads of the stream ``(..., n_stream dim)`` after a block: ``(..., dim)``."""
        return x

    def passes_on(self, key: Hashable) -> bool:
        """Whether layers after this one read what is carried under a key; a pipeline does not send on the rest."""
        return True

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The attention's input, from which keys and values are computed."""
        return self.attention_norm(x)  # type: ignore[no-any-return]

    def written(self, output: Tensor) -> Tensor | None:
        """What an output of the attention ``(..., dim)`` adds to the stream; None if that depends on the token."""
        return output

    def read_alone(self, x: Tensor) -> Tensor:
        """What the attention reads of tokens ``(..., dim)``, each as if it were the only one."""
        read = self.attention_input(x, Context())
        if self.attention_convolution is None:
            return read
        alone: Tensor = self.attention_convolution(read.reshape(-1, 1, read.shape[-1]), Context())
        return alone.view_as(read)

    def attended(self, x: Tensor, context: Context) -> Tensor:
        """The first branch's output, dropout included."""
        if self.attention_convolution is not None:
            x = self.attention_convolution(x, context)
        run = self.attention if self.around_attention is None else self.around_attention(self.attention)
        return self.dropout(run(x, context))  # type: ignore[no-any-return]

    def fed(self, x: Tensor, context: Context) -> Tensor:
        """The second branch's output, dropout included."""
        assert self.ffn is not None
        if self.ffn_convolution is not None:
            x = self.ffn_convolution(x, context)
        return self.dropout(self.ffn(x, context))  # type: ignore[no-any-return]

    def ffn_input(self, x: Tensor) -> Tensor:
        """The feed-forward network's input."""
        assert self.ffn_norm is not None
        return self.see("ffn_norm", self.ffn_norm(x))

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map the residual stream ``(batch, time, dim)`` before this block to the stream after it."""
        x = self.see("after_attention", self.mix(x, context))
        return self.see("after_ffn", x if self.ffn is None else self.feed(x, context))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """The stream after the first branch."""
        return x + self.attended(self.see("attention_norm", self.attention_norm(x)), context)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        """The stream after the second branch."""
        return x + self.fed(self.ffn_input(x), context)
