"""A causal convolution over a few tokens, which each channel goes through by itself."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, Matrix


class ShortConvolution(Layer):
    """``y_t = x_t + Σ_l w_l ⊙ x_{t−l}``, l from 0 to ``width − 1``, within one document.

    Before the first token of a text, x is 0. A cache keeps the last inputs of each row. Intermediate: ``output``
    ``(batch, time, channels)``.

    Args:
        channels: Number of channels.
        width: Number of tokens that it covers, the current one included; at least 2.
        name: Tells it from the other convolutions of its block.
    """

    sees_rows = True

    def __init__(self, channels: int, width: int, name: str) -> None:
        super().__init__()
        self.width, self.name = width, name
        self.weight = nn.Parameter(torch.empty(channels, width))  # that of the current token comes last
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """0, until :meth:`init_weights`."""
        nn.init.zeros_(self.weight)

    def init_weights(self) -> None:
        """Uniform within ±1/√width, as torch starts such a convolution."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))

    def matrices(self) -> Iterator[Matrix]:
        """One row per channel, over a few positions."""
        yield Matrix(self.weight, "position", "hidden")

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map ``(batch, time, channels)`` to the same shape."""
        time, documents = x.shape[1], context.documents
        if context.recent is not None:
            x = torch.cat([self._before(x, context), x], dim=1)
            if documents is not None:  # what is before the row belongs to its first document
                documents = torch.cat([documents[:, :1].expand(-1, self.width - 1), documents], dim=1)
        mixed: Tensor = _Mixed.apply(x, self.weight.to(x.dtype), documents)  # type: ignore[no-untyped-call]
        return self.see("output", mixed[:, -time:])

    def _before(self, x: Tensor, context: Context) -> Tensor:
        """The inputs of the ``width − 1`` tokens before those of the pass, 0 where there are none."""
        assert context.recent is not None
        before = self.width - 1
        inputs, _, columns = context.recent[self.name].append(x, x[..., :0], context.positions, context.lengths)
        if columns is None:
            columns = torch.arange(inputs.shape[1], device=x.device)
        first = context.numbered(x.shape[1], x.device)[..., :1]
        wanted = first - torch.arange(before, 0, -1, device=x.device)  # (before,) or (B, before)
        found = (columns[..., None, :] == wanted[..., :, None]) & (wanted >= 0)[..., None]  # an empty slot says −1
        place = found.int().argmax(dim=-1).expand(len(x), before)
        earlier = inputs.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        return torch.where(found.any(dim=-1)[..., None], earlier, 0)


class _Mixed(torch.autograd.Function):
    """``x_t + Σ_l w_l ⊙ x_{t−l}`` over the tokens of t's document, of x ``(batch, time, channels)``.

    Every term is added in place, a product of whole rows. The convolution kernels of a CPU take four times as long,
    because each channel is one of its own to them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, documents: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, documents)
        by_lag = weight.t().flip(0).contiguous()
        mixed = torch.addcmul(x, x, by_lag[0])
        for lag in range(1, min(len(by_lag), x.shape[1])):
            mixed[:, lag:].addcmul_(_within(x[:, :-lag], documents, lag), by_lag[lag])
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, documents = ctx.saved_tensors
        (gradient,) = grad_outputs
        by_lag = weight.t().flip(0).contiguous()
        of_x, of_lags = torch.addcmul(gradient, gradient, by_lag[0]), torch.zeros_like(by_lag)
        of_lags[0] = (gradient * x).sum(dim=(0, 1))
        for lag in range(1, min(len(by_lag), x.shape[1])):
            late = _within(gradient[:, lag:], documents, lag)
            of_x[:, :-lag].addcmul_(late, by_lag[lag])
            of_lags[lag] = (late * x[:, :-lag]).sum(dim=(0, 1))
        return of_x, of_lags.flip(0).t(), None


def _within(part: Tensor, documents: Tensor | None, lag: int) -> Tensor:
    """``part`` ``(batch, time − lag, channels)``, 0 where a token and the one ``lag`` after it are of two documents."""
    if documents is None:
        return part
    return torch.where((documents[:, :-lag] == documents[:, lag:])[..., None], part, 0)
