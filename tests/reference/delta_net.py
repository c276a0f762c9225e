"""Gated DeltaNet, slowly and plainly, in float64 NumPy: one sequence at a time.

Yang, Kautz & Hatamizadeh 2024 (2412.06464), section 3, by the paper's letters. Nothing here is shared with the package
under test.
"""

import numpy as np

from tests.reference.formulas import Array, State, linear
from tests.reference.parts import rms_norm


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def of_length_one(x: Array) -> Array:
    return np.stack([row / np.sqrt(row @ row) for row in x])


def convolution(x: Array, weight: Array) -> Array:
    """Of each channel by itself: ``y_t = Σ_l w_{−1−l} x_{t−l}``, what is before the sequence being 0."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for lag in range(weight.shape[1]):
            if t - lag >= 0:
                y[t] += weight[:, -1 - lag] * x[t - lag]
    return y


def recurrence(q: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """``S_t = S_{t−1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ``, ``o_t = S_t q_t``: eq. 10."""
    s, o = np.zeros((v.shape[1], k.shape[1])), np.zeros_like(v)
    for t in range(len(q)):
        s = s @ (alpha[t] * (np.eye(len(k[t])) - beta[t] * np.outer(k[t], k[t]))) + beta[t] * np.outer(v[t], k[t])
        o[t] = s @ q[t]
    return o


def layer(x: Array, state: State, n_head: int, head_dim: int, value_dim: int) -> Array:
    """``(time, dim)`` to the same."""
    keys, values = n_head * head_dim, n_head * value_dim
    mixed = silu(convolution(linear(x, state["qkv.weight"], state.get("qkv.bias")), state["conv"]))
    rates = linear(x, state["rates.weight"], None)
    gate = silu(linear(x, state["gate.weight"], state.get("gate.bias")))
    made = []
    for h in range(n_head):
        q = of_length_one(mixed[:, h * head_dim : (h + 1) * head_dim])
        k = of_length_one(mixed[:, keys + h * head_dim : keys + (h + 1) * head_dim])
        v = mixed[:, 2 * keys + h * value_dim : 2 * keys + (h + 1) * value_dim]
        alpha = np.exp(-np.exp(state["a_log"][h]) * np.log(1 + np.exp(rates[:, h] + state["dt_bias"][h])))
        beta = sigmoid(rates[:, n_head + h])
        o = recurrence(q, k, v, alpha, beta)
        made.append(rms_norm(o, state["head_norm.weight"]) * gate[:, h * value_dim : (h + 1) * value_dim])
    assert gate.shape[1] == values
    return linear(np.concatenate(made, axis=1), state["w_o.weight"], state.get("w_o.bias"))
