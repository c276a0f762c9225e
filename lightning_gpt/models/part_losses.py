"""Losses that parts of a model add to the training loss, such as those that balance a mixture of experts.

Each rides on an activation: it is attached where it arises and gets its gradient when the backward pass comes by.
Nothing has to be collected, so a part of a model can be run by itself, again for its gradient, or on another device.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Pass:
    """One training pass: whether its forward pass is under way, whether a loss rides in it, and its loss's gradient."""

    is_open: bool = True
    is_ridden: bool = False
    gradient: Tensor | None = None


@dataclass(frozen=True)
class PartLosses:
    """What the parts of a model attach their losses with, in one training pass.

    Args:
        share: What each loss counts for: 1, or less where a row is read in several segments.
    """

    share: float = 1.0
    of_pass: _Pass = field(default_factory=_Pass)

    @property
    def is_first_run(self) -> bool:
        """Whether the forward pass is under way; False where a part of it runs again for its gradient."""
        return self.of_pass.is_open

    def attach(self, x: Tensor, term: Tensor) -> Tensor:
        """``x`` as it is; its backward pass gives the scalar ``term`` the gradient that the pass's loss was given."""
        self.of_pass.is_ridden = True
        return _Ride.apply(x, term, self.share, self.of_pass)  # type: ignore[no-any-return, no-untyped-call]

    def scaled(self, share: float) -> "PartLosses":
        """The same pass, where a loss counts for ``share`` of what it does here."""
        return PartLosses(self.share * share, self.of_pass)

    def close(self, loss: Tensor) -> Tensor:
        """``loss`` as it is, at the end of a forward pass that losses ride in: they follow its gradient."""
        self.of_pass.is_open = False
        return _Remember.apply(loss, self.of_pass)  # type: ignore[no-any-return, no-untyped-call]


class _Ride(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor, share: float, of_pass: _Pass) -> Tensor:
        ctx.share, ctx.of_pass, ctx.like = share, of_pass, (term.dtype, term.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dtype, device = ctx.like
        given = ctx.of_pass.gradient
        one = torch.ones((), dtype=dtype, device=device) if given is None else given.to(device, dtype)
        return grad_outputs[0], ctx.share * one, None, None


class _Remember(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, of_pass: _Pass) -> Tensor:
        ctx.of_pass = of_pass
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        ctx.of_pass.gradient = grad_outputs[0]
        return grad_outputs[0], None
