"""The slot of a block that mixes tokens: softmax attention, or anything else that is causal."""

from abc import abstractmethod

from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.registry import Registry

attentions: Registry["Mixer"] = Registry(
    "attention", "dim", "n_head", "bias", "dropout", "backend", "qk_norm", "layer", "positions", "vocab_size"
)
"""Every layer that mixes tokens: ``(batch, time, dim)`` to the same."""


class Mixer(Layer):
    """A layer in which a token hears of the tokens before it. It need not have scores, a mask or keys."""

    keeps_keys = False
    """Whether its state is :class:`~lightning_gpt.models.kv_cache.KeyValues`, made token by token by :meth:`heads`."""
    n_head: int = 1
    """Number of heads."""
    head_dim: int
    """Width of a head: of its queries and keys, the d of ``√d``."""
    has_scores = True
    """Whether its heads score tokens by products of queries and keys."""
    has_pattern = False
    """Whether it makes ``mask``, ``scores`` and ``pattern`` when they are recorded."""
    mixes_first_layer = False
    """Whether it mixes in what the first layer made of each token, so that every token must go through both."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """``(batch, time, dim)`` to the same."""

    @abstractmethod
    def new_state(self, capacity: int) -> LayerState:
        """What this layer keeps of sequences of up to ``capacity`` tokens."""

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and keys and values as the state keeps them, of a layer that keeps keys.

        ``(batch, heads, time, width)`` each; the values' width may differ from the keys'.
        """
        raise NotImplementedError

    def query_gains(self) -> list[nn.Parameter]:
        """Parameters that scale all queries, so that a factor on the scores can be folded into them; else empty."""
        return []

    def value_output(self) -> tuple[Tensor, Tensor] | None:
        """The two factors of each head's value–output product, of a layer whose heads are linear in what they mix.

        ``W_V`` ``(n_head, dim, head_dim)`` and ``W_O`` ``(n_head, head_dim, dim)``, heads that share values with a copy
        each; None for a layer without such maps.
        """
        return None


def require_whole(kind: str, option: str, value: int, least: int, most: int | None = None) -> None:
    """Refuse an option of a mixer that is not a whole number of at least ``least``, and at most ``most``."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise CallError(f"attention {kind} has {option} {value!r}; it must be a whole number {allowed}")
