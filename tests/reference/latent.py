"""Multi-head latent attention, slowly and plainly, in float64 NumPy: one sequence at a time.

DeepSeek-AI 2024 (2405.04434), eq. 9 to 19, by the paper's letters. Nothing here is shared with the package under test.
"""

import math
from collections.abc import Callable

import numpy as np

from tests.reference.formulas import Array, State, linear, softmax
from tests.reference.parts import rms_norm

Turn = Callable[[Array], Array]


def layer(
    x: Array,
    state: State,
    n_head: int,
    head_dim: int,
    value_dim: int,
    turn: Turn | None,
    bias: Array | None = None,
) -> Array:
    """``(time, dim)`` to the same; without ``turn`` there is no rotary part. ``bias`` is added to the scores."""
    compressed = linear(x, state["kv_down.weight"], state.get("kv_down.bias"))
    rank = len(state["kv_latent_norm.weight"])
    c_kv = rms_norm(compressed[:, :rank], state["kv_latent_norm.weight"])  # eq. 9
    k_rotary = compressed[:, rank:] if turn is None else turn(compressed[:, rank:])  # eq. 15
    rope_dim = k_rotary.shape[1]
    if "q_down.weight" in state:
        c_q = linear(x, state["q_down.weight"], state.get("q_down.bias"))  # eq. 12
        queries = linear(rms_norm(c_q, state["q_latent_norm.weight"]), state["q_up.weight"], None)  # eq. 13, 14
    else:
        queries = linear(x, state["q_up.weight"], state.get("q_up.bias"))
    w_uk = state["kv_up.weight"][: n_head * head_dim]
    w_uv = state["kv_up.weight"][n_head * head_dim :]
    made = []
    for i in range(n_head):
        q = queries[:, i * (head_dim + rope_dim) : (i + 1) * (head_dim + rope_dim)]
        q_rotary = q[:, head_dim:] if turn is None else turn(q[:, head_dim:])
        q = np.concatenate([q[:, :head_dim], q_rotary], axis=1)  # eq. 16
        k = linear(c_kv, w_uk[i * head_dim : (i + 1) * head_dim], None)  # eq. 10
        k = np.concatenate([k, k_rotary], axis=1)  # eq. 17
        v = linear(c_kv, w_uv[i * value_dim : (i + 1) * value_dim], None)  # eq. 11
        o = np.zeros_like(v)
        for t in range(len(x)):
            scores = np.array([q[t] @ k[j] / math.sqrt(head_dim + rope_dim) for j in range(t + 1)])
            if bias is not None:
                scores = scores + bias[i, t, : t + 1]
            for j, weight in enumerate(softmax(scores)):
                o[t] += weight * v[j]  # eq. 18
        made.append(o)
    return linear(np.concatenate(made, axis=1), state["w_o.weight"], state.get("w_o.bias"))  # eq. 19
