"""A block with Canon layers, slowly and plainly, in float64 NumPy: one sequence at a time.

Allen-Zhu 2025 (2512.17351), section 3, by the paper's letters. Nothing here is shared with the package under test.
"""

import numpy as np

from tests.reference.formulas import Array, State, attention, below, gelu_tanh, layer_norm, linear


def canon(h: Array, state: State, name: str) -> Array:
    """``h'_t = h_t + w_0 ⊙ h_t + w_1 ⊙ h_{t−1} + w_2 ⊙ h_{t−2} + …``; unchanged where the block has no such layer."""
    weight = state.get(f"{name}.weight")
    if weight is None:
        return h
    mixed = h.copy()
    for t in range(len(h)):
        for lag in range(min(t + 1, weight.shape[1])):
            mixed[t] += weight[:, weight.shape[1] - 1 - lag] * h[t - lag]
    return mixed


def block(h: Array, state: State, n_head: int) -> Array:
    """Pre-LN, with whichever of the four layers A, B, C and D the state has weights of."""
    own, fed = below(state, "attention"), below(state, "ffn")
    x = canon(
        layer_norm(h, state["attention_norm.weight"], state["attention_norm.bias"]), state, "attention_convolution"
    )
    products = canon(linear(x, own["qkv.weight"], own["qkv.bias"]), own, "convolution")
    q, k, v = (np.split(part, n_head, axis=1) for part in np.split(products, 3, axis=1))
    mixed = np.concatenate([attention(q[n], k[n], v[n]) for n in range(n_head)], axis=1)
    h = h + linear(mixed, own["w_o.weight"], own["w_o.bias"])
    x = canon(layer_norm(h, state["ffn_norm.weight"], state["ffn_norm.bias"]), state, "ffn_convolution")
    hidden = gelu_tanh(canon(linear(x, fed["up.weight"], fed["up.bias"]), fed, "convolution"))
    return h + linear(hidden, fed["down.weight"], fed["down.bias"])
