"""Low-rank adapters: what is trained of a linear layer whose weights stay as they are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.layer import Linear
from lightning_gpt.options import Positive, Range, ShareBelowOne, check_options

Part = Literal["attention", "ffn"]

A, B = "adapter_a", "adapter_b"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adaptation: Hu et al. 2021 (2106.09685), section 4.1.

    Args:
        rank: Width r of the path through each adapter.
        alpha: Scale α: an adapter's output is multiplied by α / r.
        dropout: Probability of dropping an entry of an adapter's input in training.
        parts: Which parts of each block get adapters.
    """

    rank: Annotated[int, Range(1, 2**16)] = 8
    alpha: Positive = 16.0
    dropout: ShareBelowOne = 0.0
    parts: tuple[Part, ...] = ("attention", "ffn")

    def __post_init__(self) -> None:
        check_options(LoRA.__init__, vars(self))
        if not self.parts:
            raise CallError("lora.parts is empty; allowed: attention, ffn, or both")

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank

    def described(self) -> dict[str, Any]:
        """The options as plain values, for a checkpoint."""
        return {**vars(self), "parts": list(self.parts)}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "LoRA":
        """The options that :meth:`described` has made values of."""
        return cls(**{**described, "parts": tuple(described["parts"])})


class AdaptedLinear(Linear):
    """``x Wᵀ + b + (α / r) dropout(x) Aᵀ Bᵀ``, of which A ``(r, n_in)`` and B ``(n_out, r)`` are trained.

    Where W concatenates several matrices, they share A and have the rows of B that are theirs.

    Args:
        linear: The layer that is adapted, whose parameters this one takes over under their names.
        lora: The options.
    """

    def __init__(self, linear: Linear, lora: LoRA) -> None:
        with torch.device("meta"):
            super().__init__(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                maps=linear.maps,
                pieces=linear.pieces,
            )
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.adapter_dropout = lora.scale, lora.dropout
        self.adapter_a = nn.Parameter(linear.weight.new_empty(lora.rank, linear.in_features))
        self.adapter_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, lora.rank))
        # as in the paper's code: U(−1/√n_in, 1/√n_in), and zero, so that training starts at the model as it is
        nn.init.kaiming_uniform_(self.adapter_a, a=math.sqrt(5))

    @property
    def applied(self) -> Tensor:
        return self.weight + self.scale * (self.adapter_b @ self.adapter_a)

    def flops(self, positions: Tensor) -> float:
        return super().flops(positions) + 2.0 * (self.adapter_a.numel() + self.adapter_b.numel())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., n_in)`` to ``(..., n_out)``."""
        narrow = F.linear(F.dropout(x, self.adapter_dropout, self.training), self.adapter_a)
        return super().forward(x) + self.scale * F.linear(narrow, self.adapter_b)


def adapt(model: LanguageModel, lora: LoRA) -> None:
    """Freeze a model and put an adapter beside every linear layer of the chosen parts, in place.

    Which layers those are they say themselves: a :class:`~lightning_gpt.models.layer.Linear` is always called, so one
    that adds an adapter's output can stand in its place. Experts, routers and tables are none.

    Args:
        model: The model.
        lora: The options.

    Raises:
        CallError: A chosen part has no linear layer.
    """
    model.requires_grad_(False)
    for view in model.block_views():
        for part, layer in (("attention", view.mixer), ("ffn", view.ffn)):
            if part not in lora.parts or layer is None:
                continue
            found = [
                (parent, name, child)
                for parent in layer.modules()
                for name, child in parent.named_children()
                if isinstance(child, Linear)
            ]
            if not found:
                raise CallError(
                    f"lora puts adapters beside linear layers, and the {part} of layer {view.layer} has none: choose "
                    f"other lora.parts"
                )
            for parent, name, child in found:
                if not isinstance(child, AdaptedLinear):  # layers may share a block
                    setattr(parent, name, AdaptedLinear(child, lora))


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the adapters' weights among the model's."""
    adapted = ((name, part) for name, part in model.named_modules(remove_duplicate=False))
    return {f"{name}.{own}" for name, part in adapted if isinstance(part, AdaptedLinear) for own in (A, B)}


def adapters_in(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The adapters in a state dict: the name of the weight that each is beside, A and B."""
    for name, tensor in state.items():
        stem, dot, own = name.rpartition(".")
        if own == A:
            yield f"{stem}.weight", tensor, state[stem + dot + B]


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state dict of the plain model that computes the same: ``W + (α / r) B A``, computed in float64.

    Args:
        state: That of an adapted model.
        scale: α / r.
    """
    plain = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in (A, B)}
    for name, a, b in adapters_in(state):
        weight = state[name]
        plain[name] = (weight.double() + scale * (b.double() @ a.double())).to(weight.dtype)
    return plain
