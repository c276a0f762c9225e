"""The token-mixing part of a block: softmax attention, or any other causal mixer."""

from abc import abstractmethod

from torch import Tensor, nn

from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.registry import Registry

attentions: Registry["Mixer"] = Registry(
    "attention", "dim", "n_head", "bias", "dropout", "backend", "qk_norm", "layer", "positions", "vocab_size"
)
"""Every token mixer: ``(batch, time, dim)`` to the same shape."""


class Mixer(Layer):
    """A layer that passes information from earlier tokens to later ones. It need not have scores, a mask or keys."""

    keeps_keys = False
    """Whether its state is :class:`~lightning_gpt.models.kv_cache.KeyValues`, computed token by token in :meth:`heads`.
    """
    n_head: int = 1
    """Number of heads."""
    head_dim: int
    """Width of a head's queries and keys: the d of ``√d``."""
    has_scores = True
    """Whether its heads score tokens by products of queries and keys."""
    has_pattern = False
    """Whether it can compute ``mask``, ``scores`` and ``pattern`` for recording."""
    can_scale_scores = False
    """Whether :meth:`scale_scores` works: whether its scores follow the weights of queries and keys."""
    mixes_first_layer = False
    """Whether it uses the first layer's values of each token, so that every token must go through both layers."""

    @property
    def scale_width(self) -> float:
        """The d of the ``√d`` that products of queries and keys are divided by."""
        return self.head_dim

    @property
    def needs_whole_rows(self) -> bool:
        """True unless tokens see each other only through the keys that the layer's state keeps."""
        return not self.keeps_keys

    @abstractmethod
    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map ``(batch, time, dim)`` to the same shape."""

    @abstractmethod
    def new_state(self, capacity: int) -> LayerState:
        """Empty state of this layer for sequences of up to ``capacity`` tokens."""

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and keys and values as the state stores them; only for layers that keep keys.

        Each is ``(batch, heads, time, width)``; the values' width may differ from the keys'.
        """
        raise NotImplementedError

    def scale_scores(self, factors: Tensor) -> None:
        """Change the weights so that each head's scores are multiplied by its entry of ``factors`` ``(n_head,)``."""
        raise NotImplementedError

    def query_gains(self) -> list[nn.Parameter]:
        """Parameters that scale all queries, so that a factor on the scores can be folded into them; empty if none."""
        return []

    def head_matrices(self) -> HeadMatrices | None:
        """W_Q, W_K, W_V and W_O of each head; None if the layer computes queries, keys or values otherwise."""
        return None

    def turned(self, x: Tensor, context: Context) -> Tensor:
        """Queries or keys ``(batch, n_head, time, width)`` before their norm, turned as positions turn them."""
        return x

    def value_output(self) -> tuple[Tensor, Tensor] | None:
        """The two factors of each head's value–output product, if its heads are linear in what they mix.

        ``W_V`` ``(n_head, dim, head_dim)`` and ``W_O`` ``(n_head, head_dim, dim)``; heads that share values each have a
        copy. None for a layer without such maps.
        """
        return None
