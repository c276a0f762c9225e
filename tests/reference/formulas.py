"""Every formula of the models and of sampling, slowly and plainly, in float64 NumPy.

Nothing here is shared with the package under test: no torch, no import of it. Arrays go in, arrays come out, and a
loop stands wherever it says more than an index trick. Functions work on *one* sequence, ``(time, ...)``; use
:func:`each` for a batch. Weights have torch's layout: a linear layer holds ``(out, in)`` and computes ``x Wᵀ + b``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = Mapping[str, Array]
PatternOf = Callable[[Array], Array]
"""What turns scaled, unmasked scores ``(time, time)`` into attention weights of that shape."""


def each(forward: Callable[[Any], Array], batch: Sequence[Any] | NDArray[Any]) -> Array:
    """``forward`` of every sequence of a batch, stacked."""
    return np.stack([forward(sequence) for sequence in batch])


# --- parts -----------------------------------------------------------------------------------------------------


def softmax(x: Array) -> Array:
    """``exp(x_i) / Σ_j exp(x_j)`` of one vector; the maximum is taken off first, which changes nothing but range."""
    exponentials = np.array([math.exp(value - x.max()) for value in x])
    return exponentials / exponentials.sum()


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x Wᵀ + b`` with W ``(out, in)``."""
    y = x @ weight.T
    return y if bias is None else y + bias


def layer_norm(x: Array, weight: Array, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """``(x − mean) / √(variance + ε) · γ + β`` over each row, the variance divided by d.

    Ba et al. 2016, "Layer Normalization" (1607.06450), eq. 4; ε = 1e-5 as in GPT-2.
    """
    out = np.empty_like(x)
    for i, row in enumerate(x):
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        out[i] = (row - mean) / math.sqrt(variance + eps) * weight
        if bias is not None:
            out[i] += bias
    return out


def gelu_tanh(x: Array) -> Array:
    """``½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))``: Hendrycks & Gimpel 2016 (1606.08415), section 2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# --- attention -------------------------------------------------------------------------------------------------


def causal_mask(time: int) -> NDArray[np.bool_]:
    """True where row i may look at column j: ``j <= i``. Vaswani et al. 2017 (1706.03762), section 3.2.3."""
    return np.array([[j <= i for j in range(time)] for i in range(time)], dtype=bool).reshape(time, time)


def scaled_scores(q: Array, k: Array) -> Array:
    """``S_ij = q_i · k_j / √d``, unmasked: Vaswani et al. 2017, eq. 1."""
    scores = np.empty((len(q), len(k)))
    for i in range(len(q)):
        for j in range(len(k)):
            scores[i, j] = sum(q[i] * k[j]) / math.sqrt(q.shape[1])
    return scores


def causal_pattern(scores: Array) -> Array:
    """``A_i = softmax(S_i0 … S_ii)``, and 0 for ``j > i`` (which is what −∞ before the softmax gives)."""
    pattern = np.zeros_like(scores)
    for i in range(len(scores)):
        pattern[i, : i + 1] = softmax(scores[i, : i + 1])
    return pattern


def uniform_pattern(scores: Array) -> Array:
    """``A_ij = 1 / (i + 1)`` for ``j <= i``: a head that only averages, whatever the scores."""
    pattern = np.zeros_like(scores)
    for i in range(len(scores)):
        pattern[i, : i + 1] = 1 / (i + 1)
    return pattern


def full_pattern(scores: Array) -> Array:
    """Softmax of whole rows: attention without the causal mask."""
    return np.stack([softmax(row) for row in scores])


def attention(q: Array, k: Array, v: Array, pattern_of: PatternOf = causal_pattern) -> Array:
    """``y_i = Σ_j A_ij v_j`` of one head, ``(time, head_dim)``: Vaswani et al. 2017, eq. 1."""
    pattern = pattern_of(scaled_scores(q, k))
    mixed = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        for j in range(len(v)):
            mixed[i] += pattern[i, j] * v[j]
    return mixed


def multi_head_attention(x: Array, state: State, n_head: int, pattern_of: PatternOf = causal_pattern) -> Array:
    """``Concat(head_1 … head_h) W_Oᵀ + b_O`` on ``(time, dim)``: Vaswani et al. 2017, section 3.2.2.

    ``state`` holds ``qkv.weight`` (the rows of W_Q, then W_K, then W_V), ``w_o.weight`` and, where there are
    biases, ``qkv.bias`` and ``w_o.bias``. Head h has the columns ``h·D … (h + 1)·D − 1`` of each of q, k, v.
    """
    q, k, v = np.split(linear(x, state["qkv.weight"], state.get("qkv.bias")), 3, axis=1)
    width = q.shape[1] // n_head
    heads = []
    for head in range(n_head):
        columns = slice(head * width, (head + 1) * width)
        heads.append(attention(q[:, columns], k[:, columns], v[:, columns], pattern_of))
    return linear(np.concatenate(heads, axis=1), state["w_o.weight"], state.get("w_o.bias"))


def feed_forward(x: Array, state: State) -> Array:
    """``GELU(x W_1ᵀ + b_1) W_2ᵀ + b_2``: Vaswani et al. 2017, eq. 2, with GELU for ReLU as in GPT."""
    hidden = gelu_tanh(linear(x, state["up.weight"], state.get("up.bias")))
    return linear(hidden, state["down.weight"], state.get("down.bias"))


# --- whole models ----------------------------------------------------------------------------------------------


def below(state: State, prefix: str) -> dict[str, Array]:
    """The entries of ``state`` under ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}


def embedding(state: State, ids: Sequence[int] | NDArray[Any]) -> Array:
    """``x_i = E_tok[ids_i] + E_pos[i]``."""
    tokens, positions = state["token_embedding.weight"], state["positions.weight"]
    return np.stack([tokens[token] + positions[i] for i, token in enumerate(ids)])


@dataclass(frozen=True)
class SingleHead:
    """All that the one-head model makes of one sequence of length T, in the letters of its formula."""

    x: Array
    n: Array
    q: Array
    k: Array
    v: Array
    mask: NDArray[np.bool_]
    scores: Array
    masked_scores: Array
    pattern: Array
    mixed: Array
    y: Array
    logits: Array


def single_head(state: State, ids: Sequence[int] | NDArray[Any], pattern_of: PatternOf = causal_pattern) -> SingleHead:
    """The whole one-head model (DESIGN.md, "The models, exactly").

    X = E_tok[ids] + E_pos · N = LayerNorm(X) · Q, K, V = N W_Q, N W_K, N W_V · S = Q Kᵀ / √d, −∞ for j > i ·
    A = softmax(S) · Y = X + (A V) W_0 · logits = Y E_tokᵀ. The W of a torch layer is the transpose of the formula's.
    """
    x = embedding(state, ids)
    n = layer_norm(x, state["norm.weight"], state["norm.bias"])
    q, k, v = (linear(n, state[f"attention.w_{letter}.weight"]) for letter in "qkv")
    mask = causal_mask(len(ids))
    scores = scaled_scores(q, k)
    mixed = attention(q, k, v, pattern_of)
    y = x + linear(mixed, state["attention.w_0.weight"])
    return SingleHead(
        x=x,
        n=n,
        q=q,
        k=k,
        v=v,
        mask=mask,
        scores=scores,
        masked_scores=np.where(mask, scores, -np.inf),
        pattern=pattern_of(scores),
        mixed=mixed,
        y=y,
        logits=y @ state["token_embedding.weight"].T,
    )


def block(h: Array, state: State, n_head: int, pattern_of: PatternOf = causal_pattern) -> Array:
    """``H ← H + MHSA(LN(H))``, then ``H ← H + FFN(LN(H))``: Xiong et al. 2020 (2002.04745), fig. 1b."""
    normed = layer_norm(h, state["attention_norm.weight"], state.get("attention_norm.bias"))
    h = h + multi_head_attention(normed, below(state, "attention"), n_head, pattern_of)
    normed = layer_norm(h, state["ffn_norm.weight"], state.get("ffn_norm.bias"))
    return h + feed_forward(normed, below(state, "ffn"))


def gpt(
    state: State,
    ids: Sequence[int] | NDArray[Any],
    *,
    n_layer: int,
    n_head: int,
    pattern_of: Mapping[int, PatternOf] | None = None,
) -> Array:
    """Logits ``(time, vocab_size)`` of the whole GPT: Radford et al. 2019, section 2.3.

    ``pattern_of`` may put another attention pattern into single layers. Without ``head.linear.weight`` in the state
    the output head is the token embedding.
    """
    h = embedding(state, ids)
    for layer in range(n_layer):
        h = block(h, below(state, f"blocks.{layer}"), n_head, (pattern_of or {}).get(layer, causal_pattern))
    h = layer_norm(h, state["final_norm.weight"], state.get("final_norm.bias"))
    return linear(h, state.get("head.linear.weight", state["token_embedding.weight"]))


# --- loss and sampling -----------------------------------------------------------------------------------------


def token_nll(logits: Array, targets: Sequence[int] | NDArray[Any], ignored: int = -100) -> Array:
    """``−log softmax(z)_target`` of each position in nats, 0 where the target is ``ignored``."""
    nll = np.zeros(len(targets))
    for i, target in enumerate(targets):
        if target != ignored:
            highest = logits[i].max()
            nll[i] = highest + math.log(sum(np.exp(logits[i] - highest))) - logits[i, target]
    return nll


def cross_entropy(logits: Array, targets: Sequence[int] | NDArray[Any], ignored: int = -100) -> float:
    """The mean of :func:`token_nll` over the targets that are not ignored; 0 where all are."""
    counted = sum(1 for target in targets if target != ignored)
    return float(token_nll(logits, targets, ignored).sum()) / max(counted, 1)


def top_k(logits: Array, k: int) -> Array:
    """The probabilities with all but the ``k`` highest logits at −∞ (first come, first kept among equals).

    Fan et al. 2018 (1805.04833), section 5.3.
    """
    kept = sorted(range(len(logits)), key=lambda token: -logits[token])[:k]
    return softmax(np.array([value if token in kept else -np.inf for token, value in enumerate(logits)]))


def top_p(probabilities: Array, p: float) -> Array:
    """The smallest set of most likely tokens whose probabilities reach ``p``, scaled to sum to 1.

    Holtzman et al. 2020 (1904.09751), section 3.1, eq. 2 and 3.
    """
    kept = np.zeros_like(probabilities)
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        kept[token] = probabilities[token]
        if kept.sum() >= p:
            break
    return kept / kept.sum()
