"""How the weights are trained: the options, and the optimizer and learning rates that they ask for."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.training.muon import Muon, MuonOptions, hidden_matrices
from lightning_gpt.training.mup import MuP, learning_rates
from lightning_gpt.training.schedules import DecayShape, Schedule, decayed, warmed_up

OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are trained.

    Args:
        optimizer: ``adamw`` for all, or ``muon`` for hidden matrices and AdamW for the rest.
        lr: Peak learning rate.
        weight_decay: Decoupled decay (Loshchilov & Hutter 2019, 1711.05101), on matrices only.
        betas: Decay rates of AdamW's two moments.
        muon: What Muon does with hidden matrices, where it is chosen.
        warmup: Share of all optimizer steps over which the learning rate rises linearly from 0 to ``lr``.
        schedule: What follows the warm-up: half a cosine, a line, no change, or ``wsd``: no change, then a decay.
        stable: Share of all optimizer steps at ``lr`` under ``wsd``; what is left after them is the decay.
        decay_shape: The decay of ``wsd``: a line, or 1 − √ of the share of it that is done.
        final_lr: Where a decay ends at the last step, as a share of ``lr``.
        mup: The narrow model whose learning rate this is; the model's starts and rates are then scaled by μP.
        z_loss: Coefficient of log²Z beside each token's cross-entropy, Z the sum of the exponentials of its logits
            (Chowdhery et al. 2022, 2204.02311, section 5, has 1e-4). ``train/loss`` has it in, ``val/loss`` has not.
        batch_warmup: Share of all optimizer steps over which the batch grows to all of ``accumulate_grad_batches``,
            from one micro-batch on.
    """

    optimizer: OptimizerName = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    muon: MuonOptions = field(default_factory=MuonOptions)
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    stable: float = 0.75
    decay_shape: DecayShape = "linear"
    final_lr: float = 0.1
    mup: MuP | None = None
    z_loss: float = 0.0
    batch_warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise CallError(f"lr is {self.lr}; it must be a positive number")
        if self.weight_decay < 0:
            raise CallError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise CallError(f"betas are {self.betas}; each must be at least 0 and below 1")
        if not 0 <= self.warmup < 1:
            raise CallError(f"warmup is {self.warmup}; it is a share of the steps: at least 0 and below 1")
        if not 0 <= self.stable <= 1:
            raise CallError(f"stable is {self.stable}; it is a share of the steps: at least 0 and at most 1")
        if self.schedule == "wsd" and self.warmup + self.stable > 1:
            raise CallError(
                f"warmup {self.warmup} and stable {self.stable} are shares of the steps and are more than 1 together"
            )
        if not 0 <= self.final_lr <= 1:
            raise CallError(f"final_lr is {self.final_lr}; it is a share of lr: at least 0 and at most 1")
        if not 0 <= self.z_loss < math.inf:
            raise CallError(f"z_loss is {self.z_loss}; it must be at least 0")
        if not 0 <= self.batch_warmup < 1:
            raise CallError(f"batch_warmup is {self.batch_warmup}; it is a share of the steps: at least 0 and below 1")

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The learning rate of optimizer step ``step`` (0 is the first) of ``total_steps``, as a share of ``lr``."""
        warmup_steps = math.ceil(self.warmup * total_steps)
        if step < warmup_steps:
            return warmed_up(step, warmup_steps)
        if self.schedule == "constant":
            return 1.0
        stable_steps = round(self.stable * total_steps) if self.schedule == "wsd" else 0
        start = warmup_steps + stable_steps
        progress = min(1.0, max(0, step - start) / max(1, total_steps - 1 - start))
        return decayed(progress, self.decay_shape if self.schedule == "wsd" else self.schedule, self.final_lr)


def adamw(
    model: nn.Module,
    lr: float = 3e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """AdamW over the parameters of ``model``: matrices decay, biases and norms do not.

    Args:
        model: Whose trainable parameters are optimised.
        lr: Learning rate.
        weight_decay: Decoupled decay of the matrices.
        betas: Decay rates of the two moments.
        fused: Update all parameters in one pass, on CPU in a fifth of the time; where it can be when omitted.
    """
    return _adamw(model.parameters(), lr, weight_decay, betas, fused)


def _adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool | None,
    rates: Mapping[Tensor, float] = {},
) -> torch.optim.AdamW:
    """AdamW over ``parameters``, the learning rate of each multiplied by its one of ``rates``."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    alike: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in trained:
        alike[parameter.ndim >= 2, rates.get(parameter, 1.0)].append(parameter)
    groups: list[dict[str, Any]] = [
        # decay is lr × weight_decay, and how much of a weight a step forgets must not depend on the width
        {"params": members, "lr": lr * rate, "weight_decay": weight_decay / rate if decays else 0.0}
        for (decays, rate), members in sorted(alike.items(), key=lambda item: (not item[0][0], -item[0][1]))
    ]
    if fused is None:
        fused = all(p.device.type in ("cpu", "cuda", "mps") for p in trained)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def optimizer(
    model: LanguageModel, optimization: Optimization, fused: bool | None = None, dtype: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """The optimizer that ``optimization`` asks for.

    Args:
        model: Whose trainable parameters are optimised.
        optimization: The options.
        fused: As in :func:`adamw`.
        dtype: In which Muon makes its updates orthogonal; each matrix's own when None.
    """
    o = optimization
    rates = {} if o.mup is None else learning_rates(model, o.mup)
    if o.optimizer == "adamw":
        return _adamw(model.parameters(), o.lr, o.weight_decay, o.betas, fused, rates)
    # an orthogonal update is right at every width as it is (Bernstein & Newhouse 2024, 2410.21265, section 2)
    matrices = hidden_matrices(model)
    theirs = {parameter for members in matrices.values() for parameter in members}
    rest = [parameter for parameter in model.parameters() if parameter not in theirs]
    return Muon(matrices, o.muon, _adamw(rest, o.lr, o.weight_decay, o.betas, fused, rates), dtype)


def schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, total_steps: int) -> LambdaLR:
    """The learning rate of each optimizer step; step the result once an optimizer step."""
    return LambdaLR(optimizer, lambda step: optimization.lr_factor(step, total_steps))
