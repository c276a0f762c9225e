"""Mixture of depths, slowly and plainly, in float64 NumPy: one sequence ``(time, dim)``."""

import math

import numpy as np

from tests.reference.formulas import Array, State, below, block


def best(scores: Array, capacity: float) -> list[int]:
    """Where the ``⌈capacity · time⌉`` highest scores stand, in the order of the text."""
    by_score = sorted(range(len(scores)), key=lambda i: -scores[i])
    return sorted(by_score[: math.ceil(capacity * len(scores))])


def routed(h: Array, state: State, n_head: int, chosen: list[int]) -> Array:
    """``x_i + r_i f_i(X̃)`` for the chosen, ``x_i`` for the others: Raposo et al. 2024 (2404.02258), eq. 1.

    ``f`` is what the pre-LN block adds to the chosen tokens, which see each other alone; ``r_i = w·x_i``.
    """
    w = state["router.score.weight"][0]
    part = np.stack([h[i] for i in chosen])
    after = block(part, below(state, "block"), n_head)
    out = h.copy()
    for place, i in enumerate(chosen):
        out[i] = h[i] + sum(w * h[i]) * (after[place] - part[place])
    return out


def scores(h: Array, state: State) -> Array:
    """``r_i = w·x_i`` of each token."""
    return np.array([sum(state["router.score.weight"][0] * row) for row in h])


def predicted(h: Array, state: State) -> Array:
    """The predictor's logit of each token: ``w₂·GELU(W₁ x/rms(x) + b₁) + b₂``."""
    p = below(state, "router.predictor")
    logits = []
    for row in h:
        unit = row / math.sqrt(sum(row**2) / len(row) + np.finfo(np.float64).eps)
        hidden = p["up.weight"] @ unit + p["up.bias"]
        gelu = np.array([z * (1 + math.erf(z / math.sqrt(2))) / 2 for z in hidden])
        logits.append(float(p["output.weight"][0] @ gelu + p["output.bias"][0]))
    return np.array(logits)


def binary_cross_entropy(logits: Array, chosen: list[int]) -> float:
    """The mean of ``−log σ(z)`` over the chosen and ``−log(1 − σ(z))`` over the others."""
    terms = [math.log1p(math.exp(-z if i in chosen else z)) for i, z in enumerate(logits)]
    return sum(terms) / len(terms)
