"""Eight-bit weights for generation, where the time per token is the time to read the weights once.

Only weights are quantised (``W8A16``): each row of a matrix becomes integers from −127 to 127 times its own scale, as
in Dettmers et al. 2022 (2208.07339), section 2.1 (absmax, by row). Activations are bfloat16.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.layer import Layer, Linear

_FEW_ROWS = 8
"""Up to this many rows, the integer kernel is faster than dequantising first."""
_VECTOR = 16
"""The integer kernel reads this many columns at once, and beyond the end of a matrix whose width is not a multiple."""


class Int8Linear(nn.Module):
    """``x Wᵀ + b`` with ``W ≈ scale · W8``, row by row.

    Args:
        weight: ``(out, in)``, quantised here.
        bias: ``(out,)`` or None.
        pieces: The matrices that it concatenates along its rows, by name, and their lengths.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, pieces: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.pieces = pieces or {}
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.filling = -weight.shape[1] % _VECTOR
        self.register_buffer("weight", F.pad((weight / scale[:, None]).round().to(torch.int8), (0, self.filling)))
        self.register_buffer("scale", scale.to(torch.bfloat16))
        self.register_buffer("bias", None if bias is None else bias.to(torch.bfloat16))

    @property
    def applied(self) -> Tensor:
        """The weight that a pass applies, ``(out, in)`` in bfloat16."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        return weight[:, : weight.shape[1] - self.filling].to(torch.bfloat16) * scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``, bfloat16."""
        weight, scale, bias = self.get_buffer("weight"), self.get_buffer("scale"), self._buffers["bias"]
        rows = F.pad(x.to(torch.bfloat16).reshape(-1, x.shape[-1]), (0, self.filling))
        if len(rows) <= _FEW_ROWS:
            out = torch._weight_int8pack_mm(rows, weight, scale)
            out = out if bias is None else out + bias
        else:
            out = F.linear(rows, weight.to(torch.bfloat16) * scale[:, None], bias)
        return out.view(*x.shape[:-1], -1)


class Int8Logits(nn.Module):
    """An eight-bit output head: hidden states to logits, in fp32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = Int8Linear(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., vocab_size)``."""
        logits: Tensor = self.linear(hidden)
        return logits.float()


class Int8Experts(Layer):
    """The experts of a mixture in eight bits, run one after another; replaces :class:`Experts` in generation."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.activate = experts.kind.activate
        ups, downs = (_each(*pair) for pair in ((experts.up, experts.up_bias), (experts.down, experts.down_bias)))
        self.up, self.down = nn.ModuleList(ups), nn.ModuleList(downs)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Map ``(choices, dim)``, sorted by expert, to the same shape; ``counts`` ``(n_expert,)`` rows for each."""
        parts = zip(self.up, self.down, torch.split(x, counts.tolist()), strict=True)
        outputs = [down(self.activate(up(rows))) for up, down, rows in parts if len(rows)]
        return torch.cat(outputs) if outputs else x


def _each(weight: Tensor, bias: Tensor | None) -> list[Int8Linear]:
    biases = [None] * len(weight) if bias is None else list(bias)
    return [Int8Linear(one.float(), of_one) for one, of_one in zip(weight, biases, strict=True)]


def int8(model: LanguageModel) -> LanguageModel:
    """A copy of ``model`` for generation only: matrices and output head in eight bits, the rest in bfloat16.

    The token embedding stays in bfloat16. If it is also the unembedding, the head gets its own quantised copy.
    """
    small = copy.deepcopy(model).to(torch.bfloat16).requires_grad_(False).eval()
    small.head.rounded = Int8Logits(model.unembedding.detach().float())
    small.head.linear = None
    for parent in list(small.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, Int8Linear(child.applied.detach().float(), child.bias, child.pieces))
            elif isinstance(child, Experts):
                setattr(parent, name, Int8Experts(child))
    return small
