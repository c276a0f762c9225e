"""nGPT, slowly and plainly, in float64 NumPy: one sequence at a time.

Loshchilov et al. 2024 (2410.01131), by the paper's letters and numbers of equations. Nothing here is shared with the
package under test.
"""

import math

import numpy as np

from tests.reference.formulas import Array, State, attention, below, linear
from tests.reference.parts import rotated


def norm(x: Array) -> Array:
    """Each row at length 1: section 2."""
    return np.stack([row / math.sqrt(sum(row**2)) for row in x])


def restored(parameter: Array, dim: int, initial: float = 1.0) -> Array:
    """A scaling parameter that is stored at the scale 1/√dim: section 2.5."""
    return parameter * initial / (1 / math.sqrt(dim))


def attn(h: Array, state: State, n_head: int, n_kv_head: int) -> Array:
    """``q ← s_qk Norm(q)``, ``k ← s_qk Norm(k)``, rotated, and a softmax of ``√d_k q kᵀ``: eq. 15, 16."""
    dim = h.shape[1]
    width = dim // n_head
    qkv = linear(h, state["qkv.weight"])
    heads = []
    for n in range(n_head):
        group = n // (n_head // n_kv_head)
        s = restored(state["sharpness"][group * width : (group + 1) * width], dim)
        q = qkv[:, n * width : (n + 1) * width]
        k = qkv[:, (n_head + group) * width : (n_head + group + 1) * width]
        v = qkv[:, (n_head + n_kv_head + group) * width : (n_head + n_kv_head + group + 1) * width]
        q, k = norm(rotated(q)) * s, norm(rotated(k)) * s
        heads.append(attention(q * width, k, v))  # which divides by √d_k
    return linear(np.concatenate(heads, axis=1), state["w_o.weight"])


def mlp(h: Array, state: State) -> Array:
    """``u ← s_u u``, ``v ← s_v v √d_model``, ``W_o (u ⊙ SiLU(v))``: eq. 17 to 21."""
    v, u = np.split(linear(h, state["up.weight"]), 2, axis=1)
    u, v = u * state["up_scale"], v * state["gate_scale"] * math.sqrt(h.shape[1])
    return linear(u * v / (1 + np.exp(-v)), state["down.weight"])


def block(h: Array, state: State, n_head: int, n_kv_head: int) -> Array:
    """``h ← Norm(h + α_A (h_A − h))``, ``h ← Norm(h + α_M (h_M − h))``: eq. 10 and 11, α_init = 0.05."""
    dim = h.shape[1]
    alpha = np.abs(restored(state["attention_step"], dim, 0.05))
    h = norm(h + alpha * (norm(attn(h, below(state, "attention"), n_head, n_kv_head)) - h))
    alpha = np.abs(restored(state["ffn_step"], dim, 0.05))
    return norm(h + alpha * (norm(mlp(h, below(state, "ffn"))) - h))


def logits(h: Array, state: State, n_layer: int, n_head: int, n_kv_head: int) -> Array:
    """``ẑ = s_z (E_output h)`` of the embeddings h: eq. 3."""
    for layer in range(n_layer):
        h = block(h, below(state, f"blocks.{layer}"), n_head, n_kv_head)
    return linear(h, state["head.linear.weight"]) * restored(state["head.scale"], h.shape[1])
