"""Residual rules whose stream is not one sum, slowly and plainly, in float64 NumPy: one sequence at a time."""

from collections.abc import Sequence

import numpy as np

from tests.reference.formulas import Array
from tests.reference.parts import Branch


def hyper_connection(
    copies: Array, branch: Branch, norm: Branch, a_m: Array, a_r: Array, b: Array, dynamic: dict[str, Array] | None
) -> Array:
    """``Ĥ = Bᵀ T(Hᵀ A_m)ᵀ + A_rᵀ H`` of copies ``(time, n, d)``: Zhu et al. 2024 (2409.19606), eq. 2, 10 to 13.

    ``branch`` maps ``(time, d)`` to the same, its own norm included; ``dynamic`` has W_m, W_r, W_β, s_α and s_β.
    """
    time, n, d = copies.shape
    entering, mixed, write = np.zeros((time, d)), np.zeros_like(copies), np.zeros((time, n))
    for t in range(time):
        h, reads, residual, writes = copies[t], a_m.reshape(n, 1), a_r, b.reshape(1, n)
        if dynamic is not None:
            normed = norm(h)
            writes = float(dynamic["s_beta"]) * np.tanh(normed @ dynamic["w_beta"].reshape(d, 1)).T + writes
            reads = float(dynamic["s_alpha"]) * np.tanh(normed @ dynamic["w_m"].reshape(d, 1)) + reads
            residual = float(dynamic["s_alpha"]) * np.tanh(normed @ dynamic["w_r"]) + residual
        entering[t], mixed[t], write[t] = (reads.T @ h)[0], residual.T @ h, writes[0]
    added = branch(entering)
    return mixed + np.stack([write[:, [i]] * added for i in range(n)], axis=1)


def sinkhorn_knopp(logits: Array, steps: int) -> Array:
    """``M⁽⁰⁾ = exp(H̃)``, ``M⁽ᵗ⁾ = T_r(T_c(M⁽ᵗ⁻¹⁾))``: Xie et al. 2025 (2512.24880), eq. 9."""
    matrix = np.exp(logits)
    for _ in range(steps):
        for column in range(len(matrix)):
            matrix[:, column] = matrix[:, column] / matrix[:, column].sum()
        for row in range(len(matrix)):
            matrix[row] = matrix[row] / matrix[row].sum()
    return matrix


def constrained_connection(
    copies: Array, branch: Branch, phi: dict[str, Array], b: dict[str, Array], alpha: dict[str, float], steps: int
) -> Array:
    """``x ← H_res x + H_postᵀ F(H_pre x)`` of copies ``(time, n, d)``: Xie et al. 2025 (2512.24880), eq. 3, 7 to 9."""

    def sigmoid(x: Array) -> Array:
        return 1 / (1 + np.exp(-x))

    time, n, d = copies.shape
    entering, mixed, post = np.zeros((time, d)), np.zeros_like(copies), np.zeros((time, n))
    for t in range(time):
        flat = copies[t].reshape(1, n * d)
        flat = flat / np.sqrt((flat**2).mean() + 1e-6)
        raw = {name: alpha[name] * (flat @ phi[name]) + b[name].reshape(1, -1) for name in phi}
        entering[t] = (sigmoid(raw["pre"]) @ copies[t])[0]
        mixed[t] = sinkhorn_knopp(raw["res"].reshape(n, n), steps) @ copies[t]
        post[t] = 2 * sigmoid(raw["post"])[0]
    added = branch(entering)
    return mixed + np.stack([post[:, [i]] * added for i in range(n)], axis=1)


def depth_attention(values: Sequence[Array], query: Array) -> Array:
    """``Σ_i α_i v_i`` token by token, ``α_i ∝ φ(w, v_i) = exp(w · RMSNorm(v_i))``, where RMSNorm's gain is 1."""
    h = np.zeros_like(values[0])
    for t in range(len(h)):
        phi = [np.exp(query @ (v[t] / np.sqrt((v[t] ** 2).mean() + 1e-6))) for v in values]
        for each, v in zip(phi, values, strict=True):
            h[t] += each / sum(phi) * v[t]
    return h


def attention_residuals(embedding: Array, branches: Sequence[Branch], queries: Sequence[Array]) -> list[Array]:
    """``h_1, …, h_{L+1}`` of L branches, their own norms included: Kimi Team 2026 (2603.15031), eq. 1 to 4.

    ``queries`` are w_2 to w_{L+1}; the last is the output's.
    """
    values, read = [embedding], [embedding]
    for branch, query in zip(branches, queries, strict=True):
        values.append(branch(read[-1]))
        read.append(depth_attention(values, query))
    return read


def grouped_attention_residuals(
    embedding: Array, branches: Sequence[Branch], queries: Sequence[Array], size: int
) -> list[Array]:
    """The same with blocks of ``size`` branches, whose outputs are summed: the paper's block form.

    The i-th branch of block n reads ``b_0, …, b_{n−1}``, b_0 the embeddings, and from its second on ``b_n^{i−1}``, the
    sum of the outputs before it. The output reads every block, also one that is not full.
    """
    outputs: list[Array] = []
    read = [embedding]
    for branch, query in zip(branches, queries, strict=True):
        outputs.append(branch(read[-1]))
        following = len(outputs)  # the branch that comes after, from 0
        blocks = [sum(outputs[start : start + size]) for start in range(0, following, size)]
        read.append(depth_attention([embedding, *blocks], query))  # type: ignore[list-item]
    return read
