"""A causal convolution over a few tokens, which each channel goes through by itself."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
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
        padded = torch.cat([self._before(x, context), x], dim=1)  # (B, width − 1 + T, C)
        if context.documents is None:
            mixed = F.conv1d(padded.mT, self.weight[:, None], groups=len(self.weight)).mT
        else:
            mixed = self._apart(padded, context.documents)
        return self.see("output", x + mixed)

    def _before(self, x: Tensor, context: Context) -> Tensor:
        """The inputs of the ``width − 1`` tokens before those of the pass, 0 where there are none."""
        before = self.width - 1
        if context.recent is None:
            return x.new_zeros(len(x), before, x.shape[2])
        inputs, _, columns = context.recent[self.name].append(x, x[..., :0], context.positions, context.lengths)
        if columns is None:
            columns = torch.arange(inputs.shape[1], device=x.device)
        first = context.numbered(x.shape[1], x.device)[..., :1]
        wanted = first - torch.arange(before, 0, -1, device=x.device)  # (before,) or (B, before)
        found = (columns[..., None, :] == wanted[..., :, None]) & (wanted >= 0)[..., None]  # an empty slot says −1
        place = found.int().argmax(dim=-1).expand(len(x), before)
        earlier = inputs.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        return torch.where(found.any(dim=-1)[..., None], earlier, 0)

    def _apart(self, padded: Tensor, documents: Tensor) -> Tensor:
        """``Σ_l w_l ⊙ x_{t−l}`` over the tokens of t's document; what is before the row belongs to its first one."""
        time, before = documents.shape[1], self.width - 1
        weight = self.weight.to(padded.dtype)
        documents = torch.cat([documents[:, :1].expand(-1, before), documents], dim=1)
        mixed = padded[:, before:] * weight[:, -1]
        for lag in range(1, self.width):
            place = slice(before - lag, before - lag + time)
            same = documents[:, place] == documents[:, before:]
            mixed = mixed + torch.where(same[..., None], padded[:, place], 0) * weight[:, -1 - lag]
        return mixed
