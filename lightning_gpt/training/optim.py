"""AdamW with decay on matrices only, and the learning rate over the steps of a run."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_gpt.errors import CallError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are trained.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled decay (Loshchilov & Hutter 2019, 1711.05101), on matrices only.
        betas: Decay rates of AdamW's two moments.
        warmup: Share of all optimizer steps over which the learning rate rises linearly from 0 to ``lr``.
        schedule: What follows the warm-up: half a cosine, a line, or no change.
        final_lr: Where a cosine or line ends at the last step, as a share of ``lr``.
    """

    lr: float = 3e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    final_lr: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise CallError(f"lr is {self.lr}; it must be a positive number")
        if self.weight_decay < 0:
            raise CallError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise CallError(f"betas are {self.betas}; each must be at least 0 and below 1")
        if not 0 <= self.warmup < 1:
            raise CallError(f"warmup is {self.warmup}; it is a share of the steps: at least 0 and below 1")
        if not 0 <= self.final_lr <= 1:
            raise CallError(f"final_lr is {self.final_lr}; it is a share of lr: at least 0 and at most 1")

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The learning rate of optimizer step ``step`` (0 is the first) of ``total_steps``, as a share of ``lr``."""
        warmup_steps = math.ceil(self.warmup * total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
        remaining = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final_lr + (1 - self.final_lr) * remaining


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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if fused is None:
        fused = all(p.device.type in ("cpu", "cuda", "mps") for p in trained)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)


def schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, total_steps: int) -> LambdaLR:
    """The learning rate of each optimizer step; step the result once an optimizer step."""
    return LambdaLR(optimizer, lambda step: optimization.lr_factor(step, total_steps))
