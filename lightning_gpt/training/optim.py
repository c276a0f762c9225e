"""How the weights are trained: the options, and the optimizer and learning-rate schedule built from them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.rounding import ceiling
from lightning_gpt.options import NotNegative, Positive, Share, ShareBelowOne, check_options
from lightning_gpt.training.muon import Muon, MuonOptions, hidden_matrices
from lightning_gpt.training.mup import MuP, learning_rates
from lightning_gpt.training.schedules import DecayShape, Schedule, decayed, warmed_up

OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are trained.

    Args:
        optimizer: ``adamw`` for all weights, or ``muon`` for hidden matrices and AdamW for the rest.
        lr: Peak learning rate.
        weight_decay: Decoupled decay (Loshchilov & Hutter 2019, 1711.05101), on matrices only.
        betas: Decay rates of AdamW's two moments.
        muon: Options of Muon, used only if it is chosen.
        warmup: Share of all optimizer steps that warm the learning rate up. With W such steps, the n-th (1 is the
            first) has n/W of ``lr``: the first step already has 1/W of it, not 0.
        schedule: What follows the warm-up: ``cosine`` (half a period), ``linear``, ``constant``, or ``wsd``, which
            stays constant and then decays.
        stable: Share of all optimizer steps at ``lr`` under ``wsd``; the decay takes the remaining ones.
        decay_shape: The decay of ``wsd``: linear, or 1 − √(share of the decay that is done).
        final_lr: Learning rate of the last step of a decay, as a share of ``lr``.
        mup: The narrow model that ``lr`` was found with. Initial weights and learning rates are then scaled by μP.
        z_loss: Coefficient of log²Z, which is added to each token's cross-entropy; Z is the sum of the exponentials of
            its logits (Chowdhery et al. 2022, 2204.02311, section 5, use 1e-4). ``train/loss`` includes it,
            ``val/loss`` does not.
        batch_warmup: Share of all optimizer steps over which the batch grows from one micro-batch to
            ``accumulate_grad_batches``.
        qk_clip: τ: after a step in which a head's largest score, before any mask or bias, was above τ, its weights of
            queries and keys are scaled so that it becomes τ (Kimi Team 2025, 2507.20534, section 2.1, with τ = 100).
            None for no bound.
        unit_weights: Whether every vector of a matrix that meets the residual stream is scaled to length 1 before the
            first step and after each (nGPT; Loshchilov et al. 2024, 2410.01131, section 2.6).
    """

    optimizer: OptimizerName = "adamw"
    lr: Positive = 3e-4
    weight_decay: NotNegative = 0.1
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    muon: MuonOptions = field(default_factory=MuonOptions)
    warmup: ShareBelowOne = 0.05
    schedule: Schedule = "cosine"
    stable: Share = 0.75
    decay_shape: DecayShape = "linear"
    final_lr: Share = 0.1
    mup: MuP | None = None
    z_loss: NotNegative = 0.0
    batch_warmup: ShareBelowOne = 0.0
    qk_clip: Positive | None = None
    unit_weights: bool = False

    def __post_init__(self) -> None:
        check_options(Optimization.__init__, vars(self))
        if self.unit_weights and self.mup is not None:
            raise CallError(
                "optimization.mup scales weights and unit_weights sets their lengths: leave one of them out"
            )
        if self.unit_weights and self.qk_clip is not None:
            raise CallError(
                "optimization.qk_clip shortens vectors and unit_weights sets their lengths: leave one of them out"
            )
        if self.schedule == "wsd" and self.warmup + self.stable > 1:
            raise CallError(
                f"warmup {self.warmup} and stable {self.stable} are shares of the steps; together they exceed 1"
            )

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The learning rate of optimizer step ``step`` (0 is the first) of ``total_steps``, as a share of ``lr``."""
        warmup_steps = ceiling(self.warmup * total_steps)
        if step < warmup_steps:
            return warmed_up(step, warmup_steps)
        if self.schedule == "constant":
            return 1.0
        stable_steps = round(self.stable * total_steps) if self.schedule == "wsd" else 0
        start = warmup_steps + stable_steps
        if start and step >= start == total_steps - 1:
            return self.final_lr  # all of the decay is the last step
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
        model: The model whose trainable parameters are optimised.
        lr: Learning rate.
        weight_decay: Decoupled decay of the matrices.
        betas: Decay rates of the two moments.
        fused: Whether to update all parameters in one pass, which takes a fifth of the time on a CPU. When omitted,
            fused wherever the parameters' devices support it.
    """
    return _adamw(model, model.parameters(), lr, weight_decay, betas, fused)


def _adamw(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool | None,
    rates: Mapping[Tensor, float] = {},
) -> torch.optim.AdamW:
    """AdamW over ``parameters`` of ``model``; ``rates`` holds factors of single learning rates, 1 if absent."""
    biases = {matrix.bias for matrix in all_matrices(model)}  # those of a mixture's experts have two dimensions
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    alike: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in trained:
        alike[parameter.ndim >= 2 and parameter not in biases, rates.get(parameter, 1.0)].append(parameter)
    groups: list[dict[str, Any]] = [
        # a step shrinks a weight by lr × weight_decay, which must not depend on the width
        {"params": members, "lr": lr * rate, "weight_decay": weight_decay / rate if decays else 0.0}
        for (decays, rate), members in sorted(alike.items(), key=lambda item: (not item[0][0], -item[0][1]))
    ]
    if fused is None:
        fused = all(p.device.type in ("cpu", "cuda", "mps") for p in trained)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def optimizer(
    model: LanguageModel, optimization: Optimization, fused: bool | None = None, dtype: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """The optimizer described by ``optimization``.

    Args:
        model: The model whose trainable parameters are optimised.
        optimization: The options.
        fused: As in :func:`adamw`.
        dtype: The dtype in which Muon orthogonalises its updates; each matrix's own when None.
    """
    o = optimization
    rates = {} if o.mup is None else learning_rates(model, o.mup)
    if o.optimizer == "adamw":
        return _adamw(model, model.parameters(), o.lr, o.weight_decay, o.betas, fused, rates)
    # Muon needs no μP rates: an orthogonal update has the right size at every width (Bernstein & Newhouse 2024,
    # 2410.21265, section 2)
    matrices = hidden_matrices(model)
    theirs = {parameter for members in matrices.values() for parameter in members}
    rest = [parameter for parameter in model.parameters() if parameter not in theirs]
    return Muon(matrices, o.muon, _adamw(model, rest, o.lr, o.weight_decay, o.betas, fused, rates), dtype)


def require_frozen(optimization: Optimization) -> None:
    """Raise a CallError for options that change weights which adapters leave as they are."""
    changing = {"optimizer muon": optimization.optimizer == "muon"}
    changing |= {name: getattr(optimization, name) is not None for name in ("mup", "qk_clip")}
    changing["unit_weights"] = optimization.unit_weights
    for what in (name for name, is_set in changing.items() if is_set):
        raise CallError(f"model.lora and optimization.{what} cannot be combined: leave one of them out")


def schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, total_steps: int) -> LambdaLR:
    """The learning-rate schedule over ``total_steps``; call its ``step`` once per optimizer step."""
    return LambdaLR(optimizer, lambda step: optimization.lr_factor(step, total_steps))
