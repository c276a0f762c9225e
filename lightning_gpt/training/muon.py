"""Muon: momentum whose update of each hidden matrix is made orthogonal; AdamW for all else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.options import NotNegative, Positive, Range, ShareBelowOne, check_options
from lightning_gpt.parallel.norms import local
from lightning_gpt.parallel.whole import own_part, whole_like

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic: steep at 0, so that small singular values grow fast; it brings them near 1, not to 1."""


@dataclass(frozen=True, kw_only=True)
class MuonOptions:
    """How hidden matrices are trained under ``optimizer: muon``; embeddings, head and vectors go by AdamW's options.

    Args:
        lr: Peak learning rate: the spectral norm of an update, times √(rows / columns) where a matrix is tall.
        momentum: Decay rate of the mean of gradients.
        nesterov: Whether the gradient of this step is mixed in once more.
        newton_schulz_steps: Iterations that make the update orthogonal.
        weight_decay: Decoupled decay.
    """

    lr: Positive = 0.02
    momentum: ShareBelowOne = 0.95
    nesterov: bool = True
    newton_schulz_steps: Annotated[int, Range(1, 100)] = 5
    weight_decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_options(MuonOptions.__init__, vars(self), "muon.")


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """``U p(Σ) Vᵀ`` of each ``U Σ Vᵀ`` in ``(batch, rows, columns)``, where p(σ) is about 1.

    The Newton–Schulz iteration ``X ← a X + (b X Xᵀ + c (X Xᵀ)²) X`` from ``X / ‖X‖``: Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks", with its coefficients. After 5 steps p(σ) is between 0.68 and 1.21
    for every singular value of at least 0.002 of the norm; smaller ones are still on their way. Computed in the
    precision of ``matrices``.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


def hidden_matrices(model: LanguageModel) -> dict[tuple[int, ...], list[Tensor]]:
    """Trained matrices that map hidden states to hidden states, by the rows of each matrix that one holds.

    Every layer says which those are (:meth:`~lightning_gpt.models.layer.Layer.matrices`). Fused queries, keys and
    values are three, ``(dim, dim, dim)``; a gated network's first product is two. A parameter that is a single matrix,
    or a stack of them, is under ``()``. Tables of tokens or positions, the output head and what scores experts or
    tokens are not among them. Of a model that a layout spreads over processes, ask before it is spread.
    """
    found: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for matrix in all_matrices(model):
        if not matrix.is_hidden or not matrix.weight.requires_grad:
            continue
        if isinstance(matrix.weight, DTensor) or matrix.weight.ndim < 2:
            raise CallError(
                "optimizer muon needs whole matrices and this strategy shards them: divide the model by "
                "--parallel.shard instead, or use strategy ddp, or optimizer adamw"
            )
        rows = tuple(matrix.pieces.values())
        found[rows if len(rows) > 1 else ()].append(matrix.weight)
    return dict(found)


@dataclass(frozen=True)
class _Update:
    """A matrix, or a batch of them, and where it is to go before it is made orthogonal."""

    matrices: Tensor
    direction: Tensor
    lr: float


class Muon(torch.optim.Optimizer):
    """Muon over hidden matrices and AdamW over the rest, as one optimizer with the parameter groups of both.

    For a gradient G: ``B ← μ B + (1 − μ) G``, ``D = μ B + (1 − μ) G`` with Nesterov, else B, and
    ``W ← (1 − η λ) W − η √max(1, rows / columns) orthogonalised(D)``.

    ``torch.optim.Muon`` does one matrix at a time, takes a fused product of queries, keys and values for a single
    matrix, knows matrices only, and always computes in bf16, which not every CPU is fast in. Here matrices of equal
    shape go through the iteration as one batch. Of parameters that a layout spreads over processes, the directions are
    gathered, and every process makes all of them orthogonal and keeps its part of the move.

    Args:
        matrices: What :func:`hidden_matrices` gives.
        options: Of Muon.
        rest: The optimizer of all other parameters; its groups come first and keep their options.
        dtype: Of the iteration; each matrix's own when None.
    """

    def __init__(
        self,
        matrices: dict[tuple[int, ...], list[Tensor]],
        options: MuonOptions,
        rest: torch.optim.AdamW,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._rest = rest
        self._dtype = dtype
        groups: list[dict[str, Any]] = [
            {
                "params": parameters,
                "rows": rows,
                "lr": options.lr,
                "momentum": options.momentum,
                "nesterov": options.nesterov,
                "newton_schulz_steps": options.newton_schulz_steps,
                "weight_decay": options.weight_decay,
            }
            for rows, parameters in matrices.items()
        ]
        super().__init__([*rest.param_groups, *groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; a parameter without a gradient stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # groups and state are new objects after a checkpoint was loaded, so AdamW is given them each time
        self._rest.param_groups = [group for group in self.param_groups if "rows" not in group]
        self._rest.state = self.state
        self._rest.step()
        self._spread: list[tuple[DTensor, Tensor]] = []
        by_shape: dict[tuple[Any, ...], list[_Update]] = defaultdict(list)
        for group in self.param_groups:
            if "rows" in group:
                for update in self._updates(group):
                    by_shape[(*update.matrices.shape[-2:], group["newton_schulz_steps"])].append(update)
        for (rows, columns, steps), updates in by_shape.items():
            self._apply(updates, rows, columns, steps)
        for parameter, move in self._spread:
            local(parameter).add_(own_part(move, parameter))
        self._spread = []
        return loss

    def _updates(self, group: dict[str, Any]) -> Iterable[_Update]:
        """Decay the weights, take the gradients into the momentum, and say where each matrix is to go."""
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            mean = local(state["momentum"])
            mean.lerp_(local(gradient), 1 - group["momentum"])
            direction = local(gradient).lerp(mean, group["momentum"]) if group["nesterov"] else mean
            local(parameter).mul_(1 - group["lr"] * group["weight_decay"])
            whole: Tensor = parameter
            if isinstance(parameter, DTensor):  # no process has a whole matrix: each makes all of them orthogonal
                direction = whole_like(direction, parameter)
                whole = torch.zeros_like(direction)
                self._spread.append((parameter, whole))
            rows = list(group["rows"])
            if sum(rows) != whole.shape[-2]:  # a single matrix, or a piece that a layout keeps by itself
                rows = [whole.shape[-2]]
            pieces = zip(torch.split(whole, rows, dim=-2), torch.split(direction, rows, dim=-2), strict=True)
            yield from (_Update(matrices, towards, group["lr"]) for matrices, towards in pieces)

    def _apply(self, updates: list[_Update], rows: int, columns: int, steps: int) -> None:
        """Move matrices of one shape, all of them orthogonalised as one batch."""
        batch = torch.cat([update.direction.reshape(-1, rows, columns) for update in updates])
        moves = orthogonalised(batch if self._dtype is None else batch.to(self._dtype), steps)
        counts = [update.direction.numel() // (rows * columns) for update in updates]
        for update, move in zip(updates, torch.split(moves, counts), strict=True):
            scale = update.lr * math.sqrt(max(1.0, rows / columns))
            update.matrices.add_(move.view_as(update.matrices), alpha=-scale)
