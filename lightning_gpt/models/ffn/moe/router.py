"""Which experts a token goes to, with what weights, and how expert use is balanced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.double import double
from lightning_gpt.models.layer import Layer, Matrix, without_autocast
from lightning_gpt.models.part_losses import PartLosses

Score = Literal["softmax", "sigmoid"]
Balance = Literal["loss", "bias", "none"]

_RATES: dict[Balance, float] = {"loss": 0.01, "bias": 0.001, "none": 0.0}
"""The papers' values of α for the loss, and of the bias's step."""


@dataclass
class Use:
    """How a mixture was used since the last optimizer step.

    Args:
        chosen: Number of times each expert was chosen, ``(n_expert,)``, including choices over capacity.
        dropped: How many of those choices were over capacity.
        balance_loss: Sum over passes of the load-balancing loss without its coefficient; 1 per pass if balanced.
        z_loss: Sum over passes of the router z-loss without its coefficient.
        passes: Number of forward passes.
    """

    chosen: Tensor
    dropped: Tensor
    balance_loss: Tensor
    z_loss: Tensor
    passes: Tensor

    def __add__(self, other: "Use") -> "Use":
        return Use(
            self.chosen + other.chosen,
            self.dropped + other.dropped,
            self.balance_loss + other.balance_loss,
            self.z_loss + other.z_loss,
            self.passes + other.passes,
        )


@dataclass(frozen=True)
class Routing:
    """The routing of the tokens of a pass.

    Args:
        chosen: The experts of each token, ``(..., top_k)``, highest score first.
        gates: The weight of each expert's output, ``(..., top_k)``, in fp32 or better.
        counts: Number of times each expert was chosen, ``(n_expert,)``.
        use: Usage statistics in a training pass; else None.
    """

    chosen: Tensor
    gates: Tensor
    counts: Tensor
    use: Use | None = None


class Router(Layer):
    """Top-k routing: scores ``s = softmax(x W)`` or ``σ(x W)``; the k best experts, weighted by ``s_i / Σ_chosen s_j``.

    Shazeer et al. 2017 (1701.06538), eq. 3 and 5 (without noise), and Jiang et al. 2024 (2401.04088), section 2.1: a
    softmax over the chosen experts. With sigmoid, DeepSeek-AI 2024 (2412.19437), eq. 13–15. If k is 1 the weight is
    ``s_i`` itself (Fedus et al. 2021, 2101.03961, eq. 2), unless ``normed`` says otherwise: normalised it would be 1,
    and the loss would give the router no gradient. With ``normed`` False it is ``s_i`` for every k (Dai et al. 2024,
    2401.06066, eq. 4). Each token is routed independently. Everything is computed in fp32 or better (Fedus et al.,
    section 2.4).

    Intermediates: ``scores`` ``(..., n_expert)`` and ``gates`` ``(..., top_k)``.

    Args:
        dim: Width of the residual stream.
        n_expert: Number of experts.
        top_k: Number of experts per token.
        score: ``softmax`` or ``sigmoid``.
        balance: ``loss``: the load-balancing loss; ``bias``: see :meth:`rebalance`; ``none``.
        rate: The loss's coefficient α, or the bias's step; 0.01 or 0.001 if None.
        z_loss: Coefficient of the router z-loss.
        has_bias: Whether the product has a bias, which is trained like any weight, other than that of ``balance``.
        normed: Whether a token's weights are divided by their sum; if None, unless k is 1.
        factor: What the weights are multiplied by in the end: ``routed_scaling_factor`` in the code of DeepSeek-V2
            and V3 (DeepSeek-AI 2024, 2405.04434, 2412.19437).
    """

    bias: Tensor

    def __init__(
        self,
        dim: int,
        n_expert: int,
        top_k: int,
        score: Score,
        balance: Balance,
        rate: float | None,
        z_loss: float,
        has_bias: bool = False,
        normed: bool | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= n_expert:
            raise CallError(f"ffn top_k is {top_k}; it must be from 1 to n_expert, which is {n_expert}")
        self.n_expert, self.top_k, self.score, self.balance, self.z_loss = n_expert, top_k, score, balance, z_loss
        self.normed, self.factor = self.are_normed(normed, top_k), factor
        self.rate = _RATES[balance] if rate is None else rate
        # not an nn.Linear, so that quantisation does not change the choice of experts
        self.weight = nn.Parameter(torch.empty(n_expert, dim))
        self.logit_bias = nn.Parameter(torch.empty(n_expert)) if has_bias else None
        if balance == "bias":
            self.register_buffer("bias", torch.empty(n_expert))
        self.reset_parameters()

    @staticmethod
    def are_normed(normed: bool | None, top_k: int) -> bool:
        """Whether a token's weights add up to the factor."""
        return top_k > 1 if normed is None else normed

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²); biases 0: no expert is favoured."""
        nn.init.normal_(self.weight, std=0.02)
        if self.logit_bias is not None:
            nn.init.zeros_(self.logit_bias)
        if self.balance == "bias":
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the layer; the bias of ``balance`` keeps fp32, in which its small steps add up."""
        wide = self.bias if self.balance == "bias" else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if wide is not None and self.bias.itemsize < wide.itemsize:
            self.bias = wide.to(self.bias.device)
        return self

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "stream", "experts", bias=self.logit_bias)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor, losses: PartLosses | None = None) -> Routing:
        """Route tokens ``(..., dim)``; with ``losses``, the router's auxiliary losses are attached to the gates."""
        with without_autocast(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            logits = x.to(dtype) @ self.weight.to(dtype).T  # (..., n_expert)
            if self.logit_bias is not None:
                logits = logits + self.logit_bias.to(dtype)
            scores = self.see("scores", logits.softmax(dim=-1) if self.score == "softmax" else logits.sigmoid())
            wanted = scores + self.bias if self.balance == "bias" else scores
            chosen = wanted.topk(self.top_k, dim=-1).indices
            gates = scores.gather(-1, chosen)
            if self.normed:
                gates = _shares(gates)
            if self.factor != 1:
                gates = gates * self.factor
            # not bincount, which synchronises the device
            flat = chosen.flatten()
            counts = flat.new_zeros(self.n_expert).scatter_add_(0, flat, torch.ones_like(flat))
            use = None
            if losses is not None:
                balance_loss, z_loss = load_balancing_loss(scores, losses.of_all(counts)), router_z_loss(logits)
                gates = losses.attach(gates, self._charge(balance_loss, z_loss))
                if losses.is_first_run:
                    one = counts.new_ones(())
                    use = Use(counts, 0 * one, balance_loss.detach(), z_loss.detach(), one)
        return Routing(chosen, self.see("gates", gates), counts, use)

    def _charge(self, balance_loss: Tensor, z_loss: Tensor) -> Tensor:
        """The term added to the training loss."""
        return (self.rate if self.balance == "loss" else 0.0) * balance_loss + self.z_loss * z_loss

    @torch.no_grad()
    def rebalance(self, chosen: Tensor) -> None:
        """``b_i ← b_i + u·sign(mean c − c_i)``, c ``(n_expert,)`` the choices of all processes in an optimizer step.

        The bias affects which experts are chosen, but never their weights: Wang et al. 2024, "Auxiliary-Loss-Free Load
        Balancing" (2408.15664), algorithm 1. Does nothing for other values of ``balance``.
        """
        if self.balance == "bias":
            load = double(chosen)
            self.bias += self.rate * (load.mean() - load).sign().to(self.bias)


class SharedGate(Layer):
    """``σ(x w)``: how much of the shared experts' output a token gets, in fp32 or better.

    Qwen2-MoE's (Yang et al. 2024, 2407.10671, section 2.2.2; the gate is in its code). Intermediate: ``gate``
    ``(..., 1)``.

    Args:
        dim: Width of the residual stream.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, dim))  # not an nn.Linear, as in the router
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w ~ N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "stream", "score")

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., 1)``."""
        with without_autocast(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            return self.see("gate", (x.to(dtype) @ self.weight.to(dtype).T).sigmoid())


def load_balancing_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """``N Σ_i f_i P_i``, from 1 (balanced) to N: Fedus et al. 2021, "Switch Transformer" (2101.03961), eq. 4–6.

    Args:
        scores: ``(..., N)``; ``P_i`` is the mean over tokens of a token's scores divided by their sum.
        counts: Number of times each expert was chosen, ``(N,)``; ``f_i`` is its share of all choices, without gradient.
    """
    scores = scores.flatten(0, -2)
    mean_score = _shares(scores).mean(dim=0)
    share = counts.to(scores.dtype) / counts.sum().clamp(min=1)
    return len(counts) * (share * mean_score).sum()


def _shares(scores: Tensor) -> Tensor:
    """Scores ``(..., n)`` divided by their sum; 0 where all of them are, as sigmoids of very low logits can be."""
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean over tokens of ``(log Σ_i exp x_i)²``: Zoph et al. 2022, "ST-MoE" (2202.08906), eq. 5."""
    return logits.logsumexp(dim=-1).square().mean()
