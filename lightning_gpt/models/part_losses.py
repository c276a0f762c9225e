"""Auxiliary losses that parts of a model add to the training loss, such as load balancing of experts.

Each loss is attached to an activation where it is computed, and receives its gradient when the backward pass reaches
that activation. Nothing has to be collected, so a part of a model can run alone, be recomputed for its gradient, or run
on another device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that divide the tokens of a pass between them."""


@dataclass
class _Pass:
    """One training pass: whether its forward pass is running, whether losses are attached, and its loss's gradient."""

    is_open: bool = True
    has_losses: bool = False
    gradient: Tensor | None = None


@dataclass(frozen=True)
class PartLosses:
    """Attaches the auxiliary losses of the parts in one training pass.

    Args:
        share: Weight of each loss: 1, or less if a row is read in several segments, or for
            a micro-batch of several.
        total: Sums a tensor over the processes that read parts of the same rows; None if this process reads them whole.
    """

    share: float | Tensor = 1.0
    of_pass: _Pass = field(default_factory=_Pass)
    total: Total | None = None

    @property
    def is_first_run(self) -> bool:
        """Whether the forward pass is running; False when a part is recomputed for its gradient."""
        return self.of_pass.is_open

    def attach(self, x: Tensor, term: Tensor) -> Tensor:
        """``x`` unchanged; its backward pass gives the scalar ``term`` the gradient that the pass's loss received."""
        self.of_pass.has_losses = True
        return _Attach.apply(x, term, self.share, self.of_pass)  # type: ignore[no-any-return, no-untyped-call]

    def scaled(self, share: float) -> "PartLosses":
        """The same pass, with losses weighted by a further factor ``share``."""
        return PartLosses(self.share * share, self.of_pass, self.total)

    def of_all(self, counts: Tensor) -> Tensor:
        """Numbers counted in the tokens of this process, without gradient, summed over all tokens of the pass."""
        return counts if self.total is None else self.total(counts)

    def end(self) -> None:
        """End the forward pass; unless :meth:`close` follows a loss, the attached losses have the gradient 1."""
        self.of_pass.is_open = False

    def close(self, loss: Tensor) -> Tensor:
        """``loss`` unchanged; ends the forward pass and lets the attached losses follow this loss's gradient."""
        self.end()
        return _KeepGradient.apply(loss, self.of_pass)  # type: ignore[no-any-return, no-untyped-call]


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor, share: float | Tensor, of_pass: _Pass) -> Tensor:
        ctx.share, ctx.of_pass, ctx.like = share, of_pass, (term.dtype, term.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dtype, device = ctx.like
        given = ctx.of_pass.gradient
        one = torch.ones((), dtype=dtype, device=device) if given is None else given.to(device, dtype)
        return grad_outputs[0], (ctx.share * one).to(dtype), None, None


class _KeepGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, of_pass: _Pass) -> Tensor:
        ctx.of_pass = of_pass
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        ctx.of_pass.gradient = grad_outputs[0]
        return grad_outputs[0], None
