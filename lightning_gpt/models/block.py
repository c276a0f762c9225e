"""One transformer block: two branches, and the rule that joins them to the residual stream."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.layer import Layer, all_matrices
from lightning_gpt.models.registry import Registry

Branch = Callable[[Tensor, Context], Tensor]

blocks: Registry["Block"] = Registry("residual", "attention", "ffn", "norm", "dim", "dropout", "n_layer")


@blocks.register("pre")
class Block(Layer):
    """``H ← H + MHSA(LN(H))``, then ``H ← H + FFN(LN(H))``: pre-LN, Xiong et al. 2020 (2002.04745), fig. 1b.

    Other rules derive from it and say their formula in :meth:`mix` and :meth:`feed`. Intermediates: ``attention_norm``
    and ``ffn_norm`` (the norms' outputs), ``after_attention`` and ``after_ffn`` (the residual stream after each half),
    each ``(batch, time, dim)``.

    Args:
        attention: The first branch.
        ffn: The second; None for a block of attention alone, which ends after its first half.
        norm: Makes a norm of the stream's width.
        dropout: Probability of dropping an entry of a branch's output while training.
    """

    ends_normed = False
    """Whether what the block gives is normed already, so that the model needs no final norm."""
    keeps_stream = True
    """Whether the block gives the stream and something more, so that a token may do without it."""
    zero_branches_pass = True
    """Whether a block of :meth:`zero_branches` passes the stream on unchanged."""
    trains_from_zero = True
    """Whether its weights still get gradients where its branches' last products start at 0."""
    around_attention: Callable[[Branch], Branch] | None = None
    """What runs the first branch, where it is not run as it is."""

    def __init__(self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.ffn_norm = None if ffn is None else norm()
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)

    @property
    def unwrapped(self) -> "Block":
        """The block itself, also where a wrapper stands for it."""
        return self

    def init_branches(self, n_layer: int) -> None:
        """Scale what is added to the stream by 1/√(2·n_layer): 2·n_layer branches vary as one (GPT-2, section 2.3)."""
        for matrix in all_matrices(self):
            if matrix.target == "stream":
                for one in matrix.each():
                    nn.init.normal_(one, std=0.02 / math.sqrt(2 * n_layer))

    @torch.no_grad()
    def zero_branches(self) -> None:
        """Let the branches add nothing, with weights that still get a gradient: their last products become 0."""
        for matrix in all_matrices(self):
            if matrix.target == "stream":
                for parameter in (matrix.weight, matrix.bias):
                    if parameter is not None:
                        parameter.zero_()

    def new_state(self, capacity: int) -> LayerState:
        """What this block keeps of sequences of up to ``capacity`` tokens."""
        return self.attention.new_state(capacity)

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """What the attention reads of the stream: what its keys and values are made of."""
        return self.attention_norm(x)  # type: ignore[no-any-return]

    def attended(self, x: Tensor, context: Context) -> Tensor:
        """The first branch's output, dropout included."""
        run = self.attention if self.around_attention is None else self.around_attention(self.attention)
        return self.dropout(run(x, context))  # type: ignore[no-any-return]

    def fed(self, x: Tensor, context: Context) -> Tensor:
        """The second branch's output, dropout included."""
        assert self.ffn is not None
        return self.dropout(self.ffn(x, context))  # type: ignore[no-any-return]

    def ffn_input(self, x: Tensor) -> Tensor:
        """What the feed-forward network reads of the stream."""
        assert self.ffn_norm is not None
        return self.see("ffn_norm", self.ffn_norm(x))

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """The residual stream ``(batch, time, dim)`` before and after this block."""
        x = self.see("after_attention", self.mix(x, context))
        return self.see("after_ffn", x if self.ffn is None else self.feed(x, context))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """The stream after the first branch."""
        return x + self.attended(self.see("attention_norm", self.attention_norm(x)), context)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        """The stream after the second."""
        return x + self.fed(self.ffn_input(x), context)
