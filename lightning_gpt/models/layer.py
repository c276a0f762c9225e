"""How each part of a model describes itself, and the layers that hold most weights.

Code outside a layer does not infer what it is from its name, type or position; it asks. Initialisation calls
:meth:`Layer.init_weights`; Muon, μP, growth and export call :meth:`Layer.matrices`; planning and MFU call
:meth:`Layer.flops`; parallel layouts call :meth:`Layer.cut`; recording and interventions use :meth:`Layer.see` and
:attr:`Layer.inner`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.one_vector import is_one_vector, times_vector

if TYPE_CHECKING:
    from lightning_gpt.models.record import Watch

Space = Literal["vocabulary", "position", "stream", "heads", "hidden", "experts", "score"]
"""What a matrix reads or writes. ``stream``, ``heads`` and ``hidden`` grow with the model's width."""

HIDDEN_SPACES = ("stream", "heads", "hidden")


@dataclass(frozen=True)
class Matrix:
    """A trained matrix of a layer, or a stack of matrices, ``(..., rows, columns)``.

    Args:
        weight: The parameter.
        source: What its columns read.
        target: What its rows write.
        pieces: If it concatenates several matrices along its rows, their names and row counts in order; else empty.
        bias: The bias added to its product, if any.
        starts_by_width: Whether its first weights are the smaller the more inputs it has, by 1/√inputs.
    """

    weight: Tensor
    source: Space
    target: Space
    pieces: Mapping[str, int] = field(default_factory=dict)
    bias: Tensor | None = None
    starts_by_width: bool = False

    def each(self) -> Iterator[Tensor]:
        """The matrix, or each matrix of a stack."""
        weight = self.weight.detach()
        return iter(weight.flatten(0, -3)) if weight.ndim > 2 else iter([weight])

    def each_piece(self) -> Iterator[tuple[str, Tensor]]:
        """Each matrix of :meth:`each`, or each of those that it concatenates, with its name; "" if it is only one."""
        for matrix in self.each():
            pieces = dict(self.pieces) or {"": len(matrix)}
            yield from zip(pieces, torch.split(matrix, list(pieces.values())), strict=True)

    @property
    def is_hidden(self) -> bool:
        """Whether it maps hidden states to hidden states."""
        return self.source in HIDDEN_SPACES and self.target in HIDDEN_SPACES


@dataclass(frozen=True)
class Cut:
    """How a layer is divided over devices by its units, such as heads: each device computes with its own units.

    The parts of every name are an attribute of the layer, or of one of its children, as in ``value_table.weight``.

    Args:
        units: Counts of units, which each device divides by the number of devices; each must be divisible.
        lists: Lists with an item per unit.
        into: The linear layer that maps the input to the units, divided along its output, piece by piece.
        out: The linear layer that maps the units to the output, divided along its input: the devices' products add up.
        along: Other parameters with entries for each unit, and the dimension along which those are.
        pieces: For a parameter in ``along`` that concatenates several matrices: their names and lengths.
        whole: Parameters, or layers with parameters, that every device uses whole, on its own units only.
        once: Parameters added to the output of all devices together, once.
        alike: Parameters, or layers with parameters, used before or after the units, equally on every device.
        parts: Children that are divided as they themselves describe.
        adds_up: Whether the layer's outputs on all devices add up, if there is no ``out`` whose products do.
    """

    units: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    into: str | None = None
    out: str | None = None
    along: Mapping[str, int] = field(default_factory=dict)
    pieces: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    adds_up: bool = False


class Layer(nn.Module):
    """A part of a model that describes itself."""

    sees_rows: bool = False
    """Whether its output for a token depends on other tokens without being attention, so that it needs whole rows."""

    same_each_step: bool = True
    """Whether its passes run the same kernels whatever the data and the random numbers are, so that a CUDA graph can
    repeat them."""

    no_mup: str = ""
    """Why μP cannot start or train it at another width, as the end of a sentence about the model; empty if it can."""

    inner: str | None = None
    """Name of the wrapped child, whose intermediates are recorded under the wrapper's own name."""
    idle_parameters: int = 0
    """Number of the layer's parameters that any one token does not use."""
    made_with: Hashable = None
    """The kind, options and settings a registry built this layer with; None if it was built directly."""
    _watch: Watch | None = None
    _prefix: str = ""

    @property
    def needs_whole_rows(self) -> bool:
        """Whether a token's result depends on other tokens of its row in other ways than through the keys that
        attention keeps, so that processes cannot divide a row between them."""
        return self.sees_rows

    def init_weights(self) -> None:
        """Initialise the layer's own weights, not its children's, once the model is complete and on its device."""

    def matrices(self) -> Iterator[Matrix]:
        """The layer's own matrices, excluding its children's."""
        return iter(())

    def cut(self) -> Cut | None:
        """How the layer is divided over devices; None if it cannot be."""
        return None

    def convolve(self, make: Callable[[int], Layer]) -> bool:
        """Convolve the layer's first product, as wide as the argument of ``make``, over neighbouring tokens.

        Returns:
            Whether it can; it did nothing if not.
        """
        return False

    def flops(self, positions: Tensor) -> float:
        """FLOPs of the matrix products in one token's forward pass, averaged over ``positions``."""
        return sum(child.flops(positions) for child in self.children() if isinstance(child, Layer))

    def see(self, name: str, value: Tensor) -> Tensor:
        """Offer the intermediate ``value`` for recording; returns it, or its edited replacement."""
        return value if self._watch is None else self._watch(self._prefix + name, value)

    def position_axis(self, name: str) -> int | None:
        """The dimension of the intermediate ``name`` that has an entry for each position; None if none has."""
        return -2

    def asked_for(self, *names: str) -> bool:
        """Whether one of these intermediates is being recorded or edited, so that it must be computed."""
        return self._watch is not None and self._watch.wants(self._prefix + name for name in names)


class Absent(nn.Module):
    """Stands for a part of a model that another process holds.

    Args:
        name: The part, for a message.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise CallError(f"{self.name} is on another device: stages of a pipeline compute loss and token_nll only")


def all_matrices(module: nn.Module) -> Iterator[Matrix]:
    """The matrices of a module and all its submodules."""
    for part in module.modules():
        if isinstance(part, Layer):
            yield from part.matrices()


class Linear(nn.Linear, Layer):
    """``x Wᵀ + b``, with a fast path for a single vector.

    Args:
        n_in: Width of the input.
        n_out: Width of the output.
        bias: Whether to add b.
        maps: What it reads and what it writes.
        pieces: Names and row counts of the matrices concatenated in W, in order.
    """

    def __init__(
        self, n_in: int, n_out: int, *, bias: bool, maps: tuple[Space, Space], pieces: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.maps, self.pieces = maps, pieces or {}

    @property
    def applied(self) -> Tensor:
        """The matrix that it multiplies by, ``(n_out, n_in)``, with all that is added to W."""
        return self.weight

    def init_weights(self) -> None:
        """W ~ N(0, 0.02²), b = 0, as in the code of GPT-2 (Radford et al. 2019, section 2.3)."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, *self.maps, self.pieces, self.bias)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., n_in)`` to ``(..., n_out)``."""
        if not self.training and is_one_vector(x, self.weight):
            return times_vector(self.weight, x, self.bias)
        return super().forward(x)


class Embedding(nn.Embedding, Layer):
    """Vectors of ``width`` for ``n_id`` token ids, initialised N(0, 0.02²); ``target`` is what they are added to."""

    def __init__(self, n_id: int, width: int, target: Space = "stream") -> None:
        super().__init__(n_id, width)
        self.target: Space = target

    def init_weights(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "vocabulary", self.target)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision in which products with ``x`` are computed: autocast's if it is enabled."""
    device = x.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Disable autocast for products with ``x``; does nothing on devices without autocast, such as meta."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
