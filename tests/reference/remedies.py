"""Remedies against over-smoothing, slowly and plainly, in float64 NumPy: one sequence at a time."""

import math
from collections.abc import Sequence

import numpy as np

from tests.reference.attention_kinds import Head, softmax_head
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


def scalable_head(sharpness: Array) -> Head:
    """``n^(s z) / Σ n^(s z)`` over the n tokens that a row sees: Nakanishi 2025 (2501.19399), eq. 2."""

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        scores, rows = scaled_scores(q, k), []
        for i in range(len(q)):
            powers = [float(i + 1) ** (float(sharpness[number]) * scores[i, j]) for j in range(i + 1)]
            rows.append(sum(power * v[j] for j, power in enumerate(powers)) / sum(powers))
        return np.stack(rows)

    return head


def scaled_values_head(scale: float) -> Head:
    """Softmax attention over ``scale`` times the values."""
    return lambda q, k, v, number: softmax_head()(q, k, float(scale) * v, number)


def value_layers(
    normed: Sequence[Array], states: Sequence[State], n_head: int, brought: Sequence[Array] | None
) -> list[Array]:
    """What each attention layer makes of its normed input with ``λ₁ V + λ₂ U`` for V.

    U is ``brought`` ``(time, dim)`` for each layer, or where there is none the first layer's values: Zhou et al. 2024
    (2410.17897), eq. 4.
    """
    made, first = [], None
    for layer, (x, state) in enumerate(zip(normed, states, strict=True)):
        dim, (own, share) = x.shape[1], state["value_shares"]
        q, k, v = np.split(linear(x, state["qkv.weight"], state["qkv.bias"]), 3, axis=1)
        first = v if first is None else first
        v = own * v + share * (first if brought is None else brought[layer])
        heads = [np.split(matrix, n_head, axis=1) for matrix in (q, k, v)]
        mixed = [softmax_head()(*qkv, number) for number, qkv in enumerate(zip(*heads, strict=True))]
        made.append(linear(np.concatenate(mixed, axis=1), state["w_o.weight"], state["w_o.bias"]))
        assert made[-1].shape == (len(x), dim)
    return made


def mixed_stack(h: Array, states: Sequence[State], n_head: int, shares: Sequence[tuple[float, float]]) -> Array:
    """``H ← λ₁ H + λ₂ H⁰`` of each layer's two ``shares``, then pre-LN, of one block after another.

    With ``1 − α`` and ``α`` it is eq. 5 of Chen et al. 2020 (2007.02133).
    """
    start = h
    for state, (own, embeddings) in zip(states, shares, strict=True):
        h = own * h + embeddings * start
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
        _, width = state["w_o.weight"].shape  # of all heads side by side
        identity = {**state, "w_o.weight": np.eye(width), "w_o.bias": np.zeros(width)}
        values = linear(x, state["qkv.weight"], state["qkv.bias"])[:, 2 * width :]
        first = values if first is None else first
        mixed = multi_head_attention(x, identity, n_head) + strength * (first - values)
        made.append(linear(mixed, state["w_o.weight"], state["w_o.bias"]))
    return made


def diversity(x: Array) -> float:
    """``1/(T(T−1)) Σ_{i≠j} |x_i·x_j| / (‖x_i‖‖x_j‖)``: Gong et al. 2021 (2104.12753), the patch-wise cosine loss."""
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                total += abs(float(x[i] @ x[j])) / math.sqrt(float(x[i] @ x[i]) * float(x[j] @ x[j]))
    return total / (len(x) * (len(x) - 1))
