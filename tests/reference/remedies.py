"""Remedies against over-smoothing, slowly and plainly, in float64 NumPy: one sequence at a time."""

import math
from collections.abc import Sequence

import numpy as np

from tests.reference.attention_kinds import Head
from tests.reference.formulas import (
    Array,
    State,
    below,
    causal_pattern,
    feed_forward,
    layer_norm,
    linear,
    multi_head_attention,
    scaled_scores,
)
from tests.reference.parts import pre


def recentred(scores: Array, alpha: float, beta: float, gamma: float) -> Array:
    """``α I + β A − γ C``, ``C_ij = 1/(i + 1)`` for j ≤ i: He & Hofmann 2023 (2311.01906), eq. 5."""
    softmax = causal_pattern(scores)
    pattern = np.zeros_like(scores)
    for i in range(len(scores)):
        for j in range(i + 1):
            pattern[i, j] = (alpha if i == j else 0.0) + beta * softmax[i, j] - gamma / (i + 1)
    return pattern


def shaped_head(state: State) -> Head:
    """Each head with an α, β and γ of its own."""
    numbers = [state[f"{name}_share"] for name in ("identity", "softmax", "uniform")]

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        return recentred(scaled_scores(q, k), *(float(share[number]) for share in numbers)) @ v

    return head


def attn_scale_head(omega: Array) -> Head:
    """``Â = A_LP + (ω + 1) A_HP`` with ``A_LP`` the average and ``A_HP = A − A_LP``: Wang et al. 2022 (2203.05962)."""

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        softmax = causal_pattern(scaled_scores(q, k))
        low = recentred(scaled_scores(q, k), 0.0, 0.0, -1.0)
        return (low + (float(omega[number]) + 1) * (softmax - low)) @ v

    return head


def initial_stack(h: Array, states: Sequence[State], n_head: int, share: float) -> Array:
    """``H ← (1 − α) H + α H⁰``, then pre-LN, of one block after another: Chen et al. 2020 (2007.02133), eq. 5."""
    start = h
    for state in states:
        h = (1 - share) * h + share * start
        for name in ("attention", "ffn"):

            def norm(x: Array, state: State = state, name: str = name) -> Array:
                return layer_norm(x, state[f"{name}_norm.weight"], state[f"{name}_norm.bias"])

            def branch(x: Array, state: State = state, name: str = name) -> Array:
                weights = below(state, name)
                return multi_head_attention(x, weights, n_head) if name == "attention" else feed_forward(x, weights)

            h = pre(h, branch, norm)
    return h


def neutreno_layers(normed: Sequence[Array], states: Sequence[State], n_head: int, strength: float) -> list[Array]:
    """What each attention layer makes of its normed input: ``Concat(A V + λ (V⁰ − V)) W_Oᵀ + b_O``.

    Nguyen et al. 2023 (2312.00751).
    """
    made, first = [], None
    for x, state in zip(normed, states, strict=True):
        dim = x.shape[1]
        identity = {**state, "projection.weight": np.eye(dim), "projection.bias": np.zeros(dim)}
        values = linear(x, state["qkv.weight"], state["qkv.bias"])[:, 2 * dim :]
        first = values if first is None else first
        mixed = multi_head_attention(x, identity, n_head) + strength * (first - values)
        made.append(linear(mixed, state["projection.weight"], state["projection.bias"]))
    return made


def diversity(x: Array) -> float:
    """``1/(T(T−1)) Σ_{i≠j} |x_i·x_j| / (‖x_i‖‖x_j‖)``: Gong et al. 2021 (2104.12753), the patch-wise cosine loss."""
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                total += abs(float(x[i] @ x[j])) / math.sqrt(float(x[i] @ x[i]) * float(x[j] @ x[j]))
    return total / (len(x) * (len(x) - 1))
