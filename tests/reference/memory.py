"""Recurrent memory, slowly and plainly, in float64 NumPy: one sequence, pre-LN blocks without positions.

Weights are those of :mod:`tests.reference.formulas`.
"""

import math
from collections.abc import Sequence

import numpy as np

from tests.reference.formulas import Array, State, below, feed_forward, layer_norm, linear, softmax


def attended(rows: Array, columns: Array, state: State, n_head: int) -> Array:
    """Causal attention of ``rows``, which are the last of ``columns``, to all columns up to their own."""
    dim, before = rows.shape[1], len(columns) - len(rows)
    q = linear(rows, state["qkv.weight"][:dim], state["qkv.bias"][:dim])
    k = linear(columns, state["qkv.weight"][dim : 2 * dim], state["qkv.bias"][dim : 2 * dim])
    v = linear(columns, state["qkv.weight"][2 * dim :], state["qkv.bias"][2 * dim :])
    width = dim // n_head
    mixed = np.zeros_like(rows)
    for head in range(n_head):
        place = slice(head * width, (head + 1) * width)
        for i in range(len(rows)):
            seen = before + i + 1
            scores = np.array([q[i, place] @ k[j, place] for j in range(seen)]) / math.sqrt(width)
            mixed[i, place] = softmax(scores) @ v[:seen, place]
    return linear(mixed, state["w_o.weight"], state["w_o.bias"])


def block(h: Array, memory: Array, state: State, n_head: int) -> Array:
    """``H + MHSA(LN([memory ∘ H]))``, then ``H + FFN(LN(H))``."""
    norm = (state["attention_norm.weight"], state["attention_norm.bias"])
    columns = layer_norm(np.concatenate([memory, h]), *norm)
    h = h + attended(columns[len(memory) :], columns, below(state, "attention"), n_head)
    normed = layer_norm(h, state["ffn_norm.weight"], state["ffn_norm.bias"])
    return h + feed_forward(normed, below(state, "ffn"))


def layers_of(state: State) -> list[State]:
    """The parameters of each block."""
    n_layer = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    return [below(state, f"blocks.{layer}") for layer in range(n_layer)]


def final(h: Array, state: State) -> Array:
    return layer_norm(h, state["final_norm.weight"], state["final_norm.bias"])


def segment_recurrence(
    x: Array, state: State, n_head: int, segment: int, length: int, frozen: Sequence[list[Array]] | None = None
) -> tuple[Array, list[list[Array]]]:
    """Transformer-XL, Dai et al. 2019 (1901.02860), section 3.2; gives the memory of each segment too, by layer.

    With ``frozen`` the memory of each segment is that, whatever the weights: what stopping the gradient means.
    """
    hidden, kept = [], []
    inputs: list[list[Array]] = [[] for _ in layers_of(state)]  # what each layer was given, token by token
    for begin in range(0, len(x), segment):
        h = x[begin : begin + segment]
        memories = [np.array(given[-length:]).reshape(-1, x.shape[1]) for given in inputs]
        if frozen is not None:
            memories = frozen[len(kept)]
        kept.append(memories)
        for layer, of_layer in enumerate(layers_of(state)):
            inputs[layer].extend(h)
            h = block(h, memories[layer], of_layer, n_head)
        hidden.append(final(h, state))
    return np.concatenate(hidden), kept


def memory_tokens(x: Array, state: State, n_head: int, segment: int) -> Array:
    """RMT, Bulatov et al. 2022 (2207.06881), section 3.2: ``[H_mem ∘ H ∘ H_mem]`` through all layers as one text."""
    memory, nothing, hidden = state["memory.initial"], np.zeros((0, x.shape[1])), []
    n = len(memory)
    for begin in range(0, len(x), segment):
        h = np.concatenate([memory, x[begin : begin + segment], memory])
        for of_layer in layers_of(state):
            h = block(h, nothing, of_layer, n_head)
        h = final(h, state)
        hidden.append(h[n:-n])
        memory = h[-n:]
    return np.concatenate(hidden)
