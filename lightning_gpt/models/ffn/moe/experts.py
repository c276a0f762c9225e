"""The experts of a mixture: networks of one kind and size, with stacked weights."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.ffn.dense import FeedForward
from lightning_gpt.models.layer import Cut, Layer, Matrix, compute_dtype

_GROUPED = torch.bfloat16  # for other dtypes torch's grouped product loops and waits for every count
_ALIGNED = 8  # half-precision rows are then multiples of 16 bytes, as the grouped product requires


class DividedExperts(Protocol):
    """Where processes divide the experts of a mixture between them: each holds equally many, in their order."""

    first: int
    """The first expert that this process holds."""

    def own(self, weights: Tensor) -> Tensor:
        """This process's experts of a parameter ``(n_expert, ...)``."""

    def bring(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Exchange rows for those of this process's experts.

        Takes the arguments of :meth:`Experts.forward`; returns the rows of all processes for this one's experts,
        sorted by expert, their counts, and what takes results of such rows back to the processes they came from.
        """


class Experts(Layer):
    """``n_expert`` feed-forward networks, each applied to the tokens routed to it.

    On an accelerator in bf16, each of the two products is one grouped product over all experts, without a device–host
    synchronisation for the counts; widths that are not multiples of 8 are zero-padded. On a CPU, and in other
    precisions, the experts run one after another.

    Intermediates: ``{i}.hidden`` ``(choices, hidden)`` and ``{i}.output`` ``(choices, dim)`` of each expert.

    Args:
        kind: The class of each expert.
        dim: Width of the residual stream.
        hidden: Hidden width of an expert.
        n_expert: Number of experts.
        bias: Whether the experts' products have biases.
    """

    same_each_step = False  # the rows of each expert are counted anew

    divided: DividedExperts | None = None
    """Exchanges rows if processes divide the experts; None where one process holds all of them."""

    def __init__(self, kind: type[FeedForward], dim: int, hidden: int, n_expert: int, *, bias: bool) -> None:
        super().__init__()
        self.kind, self.n_expert, self.hidden = kind, n_expert, hidden
        self.is_even = False  # planning, which has no tokens to route, gives each expert an equal share
        rows = len(kind.pieces) * hidden
        self.up = nn.Parameter(torch.empty(n_expert, rows, dim))
        self.up_bias = nn.Parameter(torch.empty(n_expert, rows)) if bias else None
        self.down = nn.Parameter(torch.empty(n_expert, dim, hidden))
        self.down_bias = nn.Parameter(torch.empty(n_expert, dim)) if bias else None
        self.reset_parameters()

    def position_axis(self, name: str) -> int | None:
        """None: each row is a token that chose the expert."""
        return None

    def reset_parameters(self) -> None:
        """Initialise as ``torch.nn.Linear`` does, expert by expert; a model then calls :meth:`init_weights`."""
        for expert in range(self.n_expert):
            for weight, bias in ((self.up, self.up_bias), (self.down, self.down_bias)):
                nn.init.kaiming_uniform_(weight.detach()[expert], a=math.sqrt(5))
                if bias is not None:
                    bound = 1 / math.sqrt(weight.shape[-1])
                    nn.init.uniform_(bias.detach()[expert], -bound, bound)

    def init_weights(self) -> None:
        """Matrices N(0, 0.02²), expert by expert; biases 0."""
        for expert in range(self.n_expert):
            nn.init.normal_(self.up.detach()[expert], std=0.02)
            nn.init.normal_(self.down.detach()[expert], std=0.02)
        for bias in (self.up_bias, self.down_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.up, "stream", "hidden", dict.fromkeys(self.kind.pieces, self.hidden), self.up_bias)
        yield Matrix(self.down, "hidden", "stream", bias=self.down_bias)

    def cut(self) -> Cut | None:
        """By the hidden units of each expert."""
        pieces, biased = dict.fromkeys(self.kind.pieces, self.hidden), self.up_bias is not None
        along = {"up": 1, "down": 2, **({"up_bias": 1} if biased else {})}
        of_up = {name: pieces for name in along if name != "down"} if len(pieces) > 1 else {}
        once = ("down_bias",) if biased else ()
        return Cut(units=("hidden",), along=along, pieces=of_up, once=once, adds_up=True)

    @property
    def parameters_of_one(self) -> int:
        """Number of parameters of one expert."""
        return sum(parameter.numel() for parameter in self.parameters()) // self.n_expert

    def flops_of_one(self) -> float:
        """FLOPs per token of one expert."""
        return 2.0 * (self.up[0].numel() + self.down[0].numel())

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Map ``(choices, dim)`` to the same shape: the first ``counts[0]`` rows by the first expert, and so on.

        Args:
            x: Rows sorted by expert.
            counts: Number of rows of each expert, ``(n_expert,)``.
        """
        if self.divided is None:
            return self._through(x, counts, self._stacks)
        stacks = self._stacks.each(self.divided.own)
        # in the precision of the products, which has half the bytes where autocast is on
        x, counts, take_back = self.divided.bring(x.to(compute_dtype(x)), counts)
        return take_back(self._through(x, counts, stacks, self.divided.first))

    def _through(self, x: Tensor, counts: Tensor, stacks: "_Stacks", first: int = 0) -> Tensor:
        """Run the experts from ``first`` on, whose weights are ``stacks``."""
        if x.device.type != "cpu" and compute_dtype(x) == _GROUPED and self._watch is None:
            return self._grouped(x, counts, stacks)
        up, down = stacks.up.unbind(), stacks.down.unbind()
        outputs = []
        for place, rows in enumerate(torch.split(x, self._rows(len(x), counts))):
            if len(rows) == 0 and not torch.is_grad_enabled():
                continue
            expert = first + place
            up_bias = None if stacks.up_bias is None else stacks.up_bias[place]
            down_bias = None if stacks.down_bias is None else stacks.down_bias[place]
            hidden = self.see(f"{expert}.hidden", self.kind.activate(F.linear(rows, up[place], up_bias)))
            outputs.append(self.see(f"{expert}.output", F.linear(hidden, down[place], down_bias)))
        return torch.cat(outputs) if outputs else x

    @property
    def _stacks(self) -> "_Stacks":
        return _Stacks(self.up, self.up_bias, self.down, self.down_bias)

    def _rows(self, choices: int, counts: Tensor) -> list[int]:
        """Number of rows of each expert."""
        if not self.is_even:
            return counts.tolist()
        return [choices // len(counts) + (expert < choices % len(counts)) for expert in range(len(counts))]

    def _grouped(self, x: Tensor, counts: Tensor, stacks: "_Stacks") -> Tensor:
        """The same, with one grouped product per matrix."""
        ends = counts.cumsum(0, dtype=torch.int32)
        hidden = self.kind.activate(_grouped_linear(x, stacks.up, stacks.up_bias, counts, ends))
        return _grouped_linear(hidden, stacks.down, stacks.down_bias, counts, ends)


class _Stacks(NamedTuple):
    """The weights of several experts, stacked."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> "_Stacks":
        """The weights, each changed."""
        up_bias, down_bias = (None if bias is None else change(bias) for bias in (self.up_bias, self.down_bias))
        return _Stacks(change(self.up), up_bias, change(self.down), down_bias)


def _grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor, ends: Tensor) -> Tensor:
    """Map ``(choices, in)`` to ``(choices, out)`` using each row's expert in ``weight`` ``(n_expert, out, in)``."""
    dtype, n_out = compute_dtype(x), weight.shape[1]
    to_columns, to_rows = -weight.shape[2] % _ALIGNED, -n_out % _ALIGNED
    x, weight = x.to(dtype), weight.to(dtype)
    if to_columns or to_rows:
        x, weight = F.pad(x, (0, to_columns)), F.pad(weight, (0, to_columns, 0, to_rows))
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)[:, :n_out]
    if bias is None:
        return y
    return y + bias.to(dtype).repeat_interleave(counts, dim=0, output_size=len(x))
