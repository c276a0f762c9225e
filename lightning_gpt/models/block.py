"""One transformer block: two branches, and the rule that joins them to the residual stream."""

import math
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gpt.models.attention.multi_head import CausalAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.record import Watched
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.wrappers.token_routing import TokenRouter

blocks: Registry["Block"] = Registry("residual", "attention", "ffn", "norm", "dim", "dropout", "n_layer")


@blocks.register("pre")
class Block(Watched):
    """``H ← H + MHSA(LN(H))``, then ``H ← H + FFN(LN(H))``: pre-LN, Xiong et al. 2020 (2002.04745), fig. 1b.

    Other rules derive from it and say their formula in :meth:`forward`. Intermediates: ``attention_norm`` and
    ``ffn_norm`` (the norms' outputs), ``after_attention`` and ``after_ffn`` (the residual stream after each half),
    each ``(batch, time, dim)``.

    Args:
        attention: The first branch.
        ffn: The second.
        norm: Makes a norm of the stream's width.
        dropout: Probability of dropping an entry of a branch's output while training.
    """

    ends_normed = False
    """Whether what the block gives is normed already, so that the model needs no final norm."""
    checkpoint_attention = False
    """Whether attention keeps no activations and is run again for its gradient."""

    def __init__(
        self, attention: CausalAttention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.ffn_norm = norm()
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)
        self.router: TokenRouter | None = None

    def initialise(self, n_layer: int) -> None:
        """Scale what is added to the stream by 1/√(2·n_layer): 2·n_layer branches vary as one (GPT-2, section 2.3)."""
        for projection in self.projections():
            nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * n_layer))

    def projections(self) -> Iterator[nn.Linear]:
        """The last product of each branch (of each expert): what is added to the stream comes out of these."""
        for name, module in self.named_modules():
            if name.endswith("projection") and isinstance(module, nn.Linear):
                yield module

    def new_state(self, capacity: int) -> LayerState:
        """What this block keeps of sequences of up to ``capacity`` tokens."""
        state = self.attention.new_state(capacity)
        return state if self.router is None else self.router.new_state(state)

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """What the attention reads of the stream: what its keys and values are made of."""
        return self.attention_norm(x)  # type: ignore[no-any-return]

    def attended(self, x: Tensor, context: Context) -> Tensor:
        """The first branch's output, dropout included."""
        if self.checkpoint_attention and self.training and x.requires_grad:
            mixed: Tensor = checkpoint(self.attention, x, context, use_reentrant=False)
            return self.dropout(mixed)  # type: ignore[no-any-return]
        return self.dropout(self.attention(x, context))  # type: ignore[no-any-return]

    def fed(self, x: Tensor) -> Tensor:
        """The second branch's output, dropout included."""
        return self.dropout(self.ffn(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """The residual stream ``(batch, time, dim)`` before and after this block."""
        x = self.see("after_attention", x + self.attended(self.see("attention_norm", self.attention_norm(x)), context))
        return self.see("after_ffn", x + self.fed(self.see("ffn_norm", self.ffn_norm(x))))
