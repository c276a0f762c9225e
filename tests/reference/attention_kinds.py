"""Every kind of attention, slowly and plainly, in float64 NumPy: one sequence at a time.

Nothing here is shared with the package under test. A kind is what one head makes of ``q, k, v`` ``(time, head_dim)``;
:func:`layer` puts the projections, groups of heads and norms of queries and keys around it.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.reference.formulas import Array, State, linear, scaled_scores, softmax
from tests.reference.parts import rms_norm

Sees = Callable[[int, int], bool]
"""Whether position i sees position j."""
Head = Callable[[Array, Array, Array, int], Array]
"""What the head of that number makes of its queries, keys and values."""
Turn = Callable[[Array], Array]


def layer(
    x: Array,
    state: State,
    n_head: int,
    head: Head,
    *,
    n_kv_head: int | None = None,
    norm_q: Turn = lambda q: q,
    norm_k: Turn = lambda k: k,
    turn: Turn = lambda x: x,
) -> Array:
    """Projections, norm, positions, heads side by side, projection: the whole layer ``(time, dim)`` to the same.

    The query head h has the key head ``⌊h / (n_head / n_kv_head)⌋``: Ainslie et al. 2023 (2305.13245), fig. 2.
    """
    n_kv_head = n_kv_head or n_head
    qkv = linear(x, state["qkv.weight"], state.get("qkv.bias"))
    width = qkv.shape[1] // (n_head + 2 * n_kv_head)
    queries = [qkv[:, h * width : (h + 1) * width] for h in range(n_head)]
    rest = qkv[:, n_head * width :]
    keys = [rest[:, h * width : (h + 1) * width] for h in range(n_kv_head)]
    values = [rest[:, (n_kv_head + h) * width : (n_kv_head + h + 1) * width] for h in range(n_kv_head)]
    made = []
    for h in range(n_head):
        group = h // (n_head // n_kv_head)
        made.append(head(turn(norm_q(queries[h])), turn(norm_k(keys[group])), values[group], h))
    return linear(np.concatenate(made, axis=1), state["w_o.weight"], state.get("w_o.bias"))


# --- who sees whom ---------------------------------------------------------------------------------------------


def sees_all_before(i: int, j: int) -> bool:
    """``j ≤ i``."""
    return j <= i


def sees_window(window: int) -> Sees:
    """j is one of the ``window`` positions that end at i: Beltagy et al. 2020 (2004.05150), section 3.1."""
    return lambda i, j: j in range(i - window + 1, i + 1)


def sees_global_window(window: int, n_global: int) -> Sees:
    """The window, or one of the first ``n_global``."""
    return lambda i, j: sees_window(window)(i, j) or (j <= i and j in range(n_global))


def sees_fixed(stride: int, n_summary: int) -> Sees:
    """Child et al. 2019 (1904.10509), section 4.3: ``⌊j/l⌋ = ⌊i/l⌋``, or ``j mod l ∈ {l − c, …, l − 1}``."""

    def sees(i: int, j: int) -> bool:
        first = math.floor(j / stride) == math.floor(i / stride)
        second = j % stride in range(stride - n_summary, stride)
        return j <= i and (first or second)

    return sees


def mask(time: int, sees: Sees, documents: list[int] | None = None) -> NDArray[np.bool_]:
    """``sees`` as a matrix; with documents, of positions within each, and nothing of another."""
    documents = documents or [0] * time
    begins = {document: documents.index(document) for document in documents}
    return np.array(
        [
            [
                documents[i] == documents[j] and sees(i - begins[documents[i]], j - begins[documents[j]])
                for j in range(time)
            ]
            for i in range(time)
        ]
    )


# --- heads -----------------------------------------------------------------------------------------------------


def softmax_head(sees: Sees = sees_all_before, bias: Array | None = None) -> Head:
    """``y_i = Σ_j softmax_j(S_ij + b_ij) v_j`` over what i sees."""

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        scores = scaled_scores(q, k) + (0 if bias is None else bias[number])
        mixed = np.zeros_like(v)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if sees(i, j)]
            for weight, j in zip(softmax(scores[i, seen]), seen, strict=True):
                mixed[i] += weight * v[j]
        return mixed

    return head


def capped_head(sees: Sees, width: float, bound: float) -> Head:
    """``softmax_j(c tanh(q_i k_j / (√w c)))`` over what i sees: Gemma Team 2024 (2408.00118), section 2."""

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        mixed = np.zeros_like(v)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if sees(i, j)]
            scores = np.array([bound * math.tanh(sum(q[i] * k[j]) / math.sqrt(width) / bound) for j in seen])
            for weight, j in zip(softmax(scores), seen, strict=True):
                mixed[i] += weight * v[j]
        return mixed

    return head


def sink_head(null_logit: Array, sees: Sees = sees_all_before) -> Head:
    """``e^S_ij / (e^b + Σ_k e^S_ik)``: Xiao et al. 2023 (2309.17453), eq. 2, with e^b for its 1."""

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        scores = scaled_scores(q, k)
        mixed = np.zeros_like(v)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if sees(i, j)]
            total = math.exp(null_logit[number]) + sum(math.exp(scores[i, j]) for j in seen)
            for j in seen:
                mixed[i] += math.exp(scores[i, j]) / total * v[j]
        return mixed

    return head


def differential_factor(state: State, layer_number: int) -> tuple[float, float]:
    """λ and λ_init of the layer, counted from 0: Ye et al. 2024 (2410.05258), eq. 2 and below."""
    initial = 0.8 - 0.6 * math.exp(-0.3 * layer_number)
    first = math.exp(sum(state["first_q"] * state["first_k"]))
    second = math.exp(sum(state["second_q"] * state["second_k"]))
    return first - second + initial, initial


def differential_head(state: State, layer_number: int) -> Head:
    """``(1 − λ_init) RMSNorm((softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V)``: Ye et al. 2024, eq. 1 and section 2.2."""
    factor, initial = differential_factor(state, layer_number)

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        d = q.shape[1] // 2
        first = softmax_head()(q[:, :d], k[:, :d], v, number)
        second = softmax_head()(q[:, d:], k[:, d:], v, number)
        return (1 - initial) * rms_norm(first - factor * second, state["head_norm.weight"], eps=1e-5)

    return head


def linear_head(turn: Turn = lambda x: x) -> Head:
    """The recurrence of Katharopoulos et al. 2020 (2006.16236), eq. 16 to 20, ``φ(x) = elu(x) + 1``.

    ``s ← s + φ(k_i) v_iᵀ``, ``z ← z + φ(k_i)``, ``y_i = φ(q_i)ᵀ s / φ(q_i)ᵀ z``; rotary positions turn φ in s and in
    the numerator alone: Su et al. 2021 (2104.09864), eq. 19.
    """

    def feature(x: Array) -> Array:
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    def head(q: Array, k: Array, v: Array, number: int) -> Array:
        plain_q, plain_k = feature(q), feature(k)
        turned_q, turned_k = turn(plain_q), turn(plain_k)
        s, z = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1])
        mixed = np.empty_like(v)
        for i in range(len(q)):
            s = s + np.outer(turned_k[i], v[i])
            z = z + plain_k[i]
            mixed[i] = turned_q[i] @ s / (plain_q[i] @ z)
        return mixed

    return head
