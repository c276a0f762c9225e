"""What a part of a model says of itself, and the layer that holds most weights.

Nobody guesses what a layer is from its name, type or position: who needs to know asks it.

==============================================  =======================================
who asks                                        what the layer says
==============================================  =======================================
initialisation                                  :meth:`Layer.init_weights`
Muon, μP, growth, parallel layouts, export      :meth:`Layer.matrices`
planning, MFU                                   :meth:`Layer.flops`
recording, interventions                        :meth:`Layer.see`, :attr:`Layer.inner`
==============================================  =======================================
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lightning_gpt.models.one_vector import is_one_vector, times_vector

if TYPE_CHECKING:
    from lightning_gpt.models.record import Watch

Space = Literal["vocabulary", "position", "stream", "heads", "hidden", "experts", "score"]
"""What a matrix reads or writes. ``stream``, ``heads`` and ``hidden`` grow with the width of a model."""

HIDDEN_SPACES = ("stream", "heads", "hidden")


@dataclass(frozen=True)
class Matrix:
    """A trained matrix ``(..., rows, columns)`` of a layer: a stack of them where there are more dimensions.

    Args:
        weight: The parameter.
        source: What its columns read.
        target: What its rows write.
        pieces: Names and rows of the matrices that are held as one, from the first row on; empty for a single one.
        bias: What is added to its product.
    """

    weight: Tensor
    source: Space
    target: Space
    pieces: Mapping[str, int] = field(default_factory=dict)
    bias: Tensor | None = None

    def each(self) -> Iterator[Tensor]:
        """The matrix, or each one of a stack."""
        weight = self.weight.detach()
        return iter(weight.flatten(0, -3)) if weight.ndim > 2 else iter([weight])

    @property
    def is_hidden(self) -> bool:
        """Whether it maps hidden states to hidden states."""
        return self.source in HIDDEN_SPACES and self.target in HIDDEN_SPACES


class Layer(nn.Module):
    """A part of a model that answers for itself."""

    inner: str | None = None
    """The child whose intermediates are named as if they were this layer's own: what a wrapper wraps."""
    idle_parameters: int = 0
    """How many of the layer's parameters a token does not meet."""
    made_with: Hashable = None
    """Kind, options and settings that a registry made this layer with; None where none did."""
    _watch: Watch | None = None
    _prefix: str = ""

    def init_weights(self) -> None:
        """Fill the layer's own weights, not its children's, once it stands in a model and on its device."""

    def matrices(self) -> Iterator[Matrix]:
        """The layer's own matrices, not its children's."""
        return iter(())

    def flops(self, positions: Tensor) -> float:
        """Floating-point operations of the matrix products of one token's forward pass, mean over ``positions``."""
        return sum(child.flops(positions) for child in self.children() if isinstance(child, Layer))

    def see(self, name: str, value: Tensor) -> Tensor:
        """Show the intermediate ``value`` to whoever records; returns it, or what an edit made of it."""
        return value if self._watch is None else self._watch(self._prefix + name, value)

    def asked_for(self, *names: str) -> bool:
        """Whether somebody records (or edits) one of these intermediates, so that it must be made."""
        return self._watch is not None and self._watch.wants(self._prefix + name for name in names)


def all_matrices(module: nn.Module) -> Iterator[Matrix]:
    """The matrices of a module and all its parts."""
    for part in module.modules():
        if isinstance(part, Layer):
            yield from part.matrices()


class Linear(nn.Linear, Layer):
    """``x Wᵀ + b``, also fast for a single vector.

    Args:
        n_in: Width of the input.
        n_out: Width of the output.
        bias: Whether there is a b.
        maps: What it reads and writes.
        pieces: Names and rows of the matrices that this one holds, from the first row on.
    """

    def __init__(
        self, n_in: int, n_out: int, *, bias: bool, maps: tuple[Space, Space], pieces: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.maps, self.pieces = maps, pieces or {}

    def init_weights(self) -> None:
        """W ~ N(0, 0.02²), b = 0: Radford et al. 2019 (GPT-2), section 2.3, through its code."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, *self.maps, self.pieces, self.bias)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        if not self.training and is_one_vector(x, self.weight):
            return times_vector(self.weight, x, self.bias)
        return super().forward(x)


class Embedding(nn.Embedding, Layer):
    """A vector for each token id, N(0, 0.02²) at the start.

    Args:
        n_id: Number of token ids.
        width: Width of the vectors.
        target: What they are added to.
    """

    def __init__(self, n_id: int, width: int, target: Space = "stream") -> None:
        super().__init__(n_id, width)
        self.target: Space = target

    def init_weights(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "vocabulary", self.target)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision that products with ``x`` are computed in: autocast's where it is on."""
    device = x.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Inside, products with ``x`` are computed in its own precision.

    Also on the meta device, for which torch has no autocast to switch off: there a model is traced without being run.
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
