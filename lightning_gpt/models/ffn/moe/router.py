"""Which experts a token goes to, with what weight, and what keeps the experts in equal use."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.layer import Layer, Matrix, without_autocast
from lightning_gpt.models.part_losses import PartLosses

Score = Literal["softmax", "sigmoid"]
Balance = Literal["loss", "bias", "none"]

_RATES: dict[Balance, float] = {"loss": 0.01, "bias": 0.001, "none": 0.0}
"""What the papers take: α of the loss, and the bias's step."""


@dataclass
class Use:
    """How a mixture was used since the last optimizer step.

    Args:
        chosen: ``(n_expert,)``, how often each expert was chosen, also where its capacity was spent.
        dropped: How many of those choices came to nothing.
        balance_loss: Sum over the passes of the load-balancing loss without its coefficient: 1 a pass in equal use.
        z_loss: Sum over the passes of the router z-loss without its coefficient.
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
    """Where the tokens of a pass go.

    Args:
        chosen: ``(..., top_k)``, the experts of each token, the best scored first.
        gates: ``(..., top_k)``, the weight of each expert's output, in fp32 or better.
        counts: ``(n_expert,)``, how often each expert was chosen.
        use: How evenly that is, where a training loss is made of this pass.
    """

    chosen: Tensor
    gates: Tensor
    counts: Tensor
    use: Use | None = None


class Router(Layer):
    """Top-k routing: scores ``s = softmax(x W)`` or ``σ(x W)``; the k best experts, weighted by ``s_i / Σ_chosen s_j``.

    Shazeer et al. 2017 (1701.06538), eq. 3 and 5 (without noise), and Jiang et al. 2024 (2401.04088), section 2.1: a
    softmax over the chosen. With sigmoid, DeepSeek-AI 2024 (2412.19437), eq. 13–15. Where k is 1 the weight is ``s_i``
    itself (Fedus et al. 2021, 2101.03961, eq. 2): normalised it would be 1 and the loss teach the router nothing.
    Each token is routed by itself. All is computed in fp32 or better (Fedus et al., section 2.4).

    Intermediates: ``scores`` ``(..., n_expert)`` and ``gates`` ``(..., top_k)``.

    Args:
        dim: Width of the residual stream.
        n_expert: Number of experts.
        top_k: How many of them a token goes to.
        score: ``softmax`` or ``sigmoid``.
        balance: ``loss``: the load-balancing loss; ``bias``: see :meth:`rebalance`; ``none``.
        rate: The loss's coefficient α, or the bias's step; 0.01 or 0.001 when None.
        z_loss: Coefficient of the router z-loss.
    """

    bias: Tensor

    def __init__(
        self, dim: int, n_expert: int, top_k: int, score: Score, balance: Balance, rate: float | None, z_loss: float
    ) -> None:
        super().__init__()
        _require_choice("router", score, get_args(Score))
        _require_choice("balance", balance, get_args(Balance))
        if not 1 <= top_k <= n_expert:
            raise CallError(f"moe top_k is {top_k}; it must be at least 1 and at most n_expert, which is {n_expert}")
        for option, value in {"balance_rate": rate, "z_loss": z_loss}.items():
            if value is not None and value < 0:
                raise CallError(f"moe {option} is {value}; it must be at least 0")
        self.n_expert, self.top_k, self.score, self.balance, self.z_loss = n_expert, top_k, score, balance, z_loss
        self.rate = _RATES[balance] if rate is None else rate
        # no nn.Linear: what rounds or replaces those, such as quantisation, must leave the choice of experts alone
        self.weight = nn.Parameter(torch.empty(n_expert, dim))
        if balance == "bias":
            self.register_buffer("bias", torch.empty(n_expert))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²); no expert is favoured."""
        nn.init.normal_(self.weight, std=0.02)
        if self.balance == "bias":
            nn.init.zeros_(self.bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "stream", "experts")

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor, losses: PartLosses | None = None) -> Routing:
        """Route tokens ``(..., dim)``; with ``losses``, the router's own ride on the gates."""
        with without_autocast(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            logits = x.to(dtype) @ self.weight.to(dtype).T  # (..., n_expert)
            scores = self.see("scores", logits.softmax(dim=-1) if self.score == "softmax" else logits.sigmoid())
            wanted = scores + self.bias if self.balance == "bias" else scores
            chosen = wanted.topk(self.top_k, dim=-1).indices
            gates = scores.gather(-1, chosen)
            if self.top_k > 1:
                gates = gates / gates.sum(dim=-1, keepdim=True)
            # no bincount: it waits for the device
            of_all = chosen.flatten()
            counts = of_all.new_zeros(self.n_expert).scatter_add_(0, of_all, torch.ones_like(of_all))
            use = None
            if losses is not None:
                balance_loss, z_loss = load_balancing_loss(scores, counts), router_z_loss(logits)
                gates = losses.attach(gates, self._charge(balance_loss, z_loss))
                if losses.is_first_run:
                    one = counts.new_ones(())
                    use = Use(counts, 0 * one, balance_loss.detach(), z_loss.detach(), one)
        return Routing(chosen, self.see("gates", gates), counts, use)

    def _charge(self, balance_loss: Tensor, z_loss: Tensor) -> Tensor:
        """What is added to the training loss."""
        return (self.rate if self.balance == "loss" else 0.0) * balance_loss + self.z_loss * z_loss

    @torch.no_grad()
    def rebalance(self, chosen: Tensor) -> None:
        """``b_i ← b_i + u·sign(mean c − c_i)`` for an optimizer step's choices ``c`` ``(n_expert,)`` of all processes.

        The bias enters the choice of experts and never their weights: Wang et al. 2024, "Auxiliary-Loss-Free Load
        Balancing" (2408.15664), algorithm 1. Nothing where ``balance`` is another.
        """
        if self.balance == "bias":
            load = chosen.double()
            self.bias += self.rate * (load.mean() - load).sign().to(self.bias.dtype)


def load_balancing_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """``N Σ_i f_i P_i``, 1 in equal use and up to N: Fedus et al. 2021, "Switch Transformer" (2101.03961), eq. 4–6.

    Args:
        scores: ``(..., N)``; ``P_i`` is the mean over tokens of a token's scores divided by their sum.
        counts: ``(N,)``, how often each expert was chosen; ``f_i`` is its share of all choices. It has no gradient.
    """
    scores = scores.flatten(0, -2)
    mean_score = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)
    share = counts.to(scores.dtype) / counts.sum().clamp(min=1)
    return len(counts) * (share * mean_score).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """The mean over tokens of ``(log Σ_i exp x_i)²``: Zoph et al. 2022, "ST-MoE" (2202.08906), eq. 5."""
    return logits.logsumexp(dim=-1).square().mean()


def _require_choice(option: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise CallError(f"moe {option} is {given!r}; it must be one of {', '.join(allowed)}")
