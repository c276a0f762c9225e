"""Feed-forward networks and mixtures of them, slowly and plainly, in float64 NumPy: a token at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.reference.formulas import Array, State, below, gelu_tanh, linear, softmax


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(−x))``."""
    return np.array([1 / (1 + math.exp(-value)) for value in x])


def relu(x: Array) -> Array:
    """``max(0, x)``."""
    return np.array([max(0.0, value) for value in x])


def _gated(gate: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """``gate(x W) ⊙ x V``, W the first half of the rows: Shazeer 2020 (2002.05202), eq. 6."""
    return lambda both: gate(both[: len(both) // 2]) * both[len(both) // 2 :]


def gelu_erf(x: Array) -> Array:
    """``x Φ(x)``, Φ the distribution function of N(0, 1): Hendrycks & Gimpel 2016 (1606.08415), section 2."""
    return np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.flat]).reshape(x.shape)


def _clamped(gate: Array, up: Array) -> Array:
    """``(u + 1) g σ(1.702 g)`` with g at most 7 and u within ±7: OpenAI 2025 (2508.10925), section 2.2."""
    gate = np.array([min(value, 7.0) for value in gate])
    up = np.array([max(-7.0, min(value, 7.0)) for value in up])
    return (up + 1) * gate * sigmoid(1.702 * gate)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu_tanh,
    "gelu_erf": gelu_erf,
    "relu": relu,
    "relu2": lambda x: relu(x) ** 2,  # So et al. 2021 (2109.08668), section 4
    "swiglu": _gated(lambda x: x * sigmoid(x)),
    "geglu": _gated(gelu_tanh),
    "clamped_swiglu": lambda both: _clamped(both[: len(both) // 2], both[len(both) // 2 :]),
}


def feed_forward(x: Array, state: State, kind: str) -> Array:
    """One token ``(dim,)`` through ``Linear``, activation, ``Linear``."""
    wide = linear(x, state["up.weight"], state.get("up.bias"))
    return linear(ACTIVATIONS[kind](wide), state["down.weight"], state.get("down.bias"))


def expert_of(state: State, expert: int) -> State:
    """One expert's parameters, named as those of a network by itself; a mixture's state holds all of a kind as one."""
    stacks = {"up": "up.weight", "up_bias": "up.bias", "down": "down.weight", "down_bias": "down.bias"}
    return {stacks[name]: stack[expert] for name, stack in below(state, "experts").items()}


@dataclass
class Mixture:
    """What a mixture gives for some tokens, and what its losses are."""

    output: Array
    chosen: list[list[int]]
    gates: list[list[float]]
    dropped: int
    balance_loss: float
    z_loss: float


def mixture(
    x: Array,
    state: State,
    *,
    n_expert: int,
    top_k: int,
    kind: str = "gelu",
    score: str = "softmax",
    normed: bool | None = None,
    factor: float = 1.0,
    capacity: int | None = None,
) -> Mixture:
    """Tokens ``(tokens, dim)`` in their order, each through its ``top_k`` best experts.

    Gates: Shazeer et al. 2017 (1701.06538), eq. 3 and 5; with sigmoid DeepSeek-AI 2024 (2412.19437), eq. 13–15; not
    normed Dai et al. 2024 (2401.06066), eq. 4; with a factor, the code of DeepSeek-V3. Losses:
    Fedus et al. 2021 (2101.03961), eq. 4–6, and Zoph et al. 2022 (2202.08906), eq. 5, both without coefficient.
    """
    output = np.zeros_like(x)
    taken, dropped = [0] * n_expert, 0
    all_chosen, all_gates, shares, squares = [], [], [], []
    for t, token in enumerate(x):
        logits = linear(token, state["router.weight"])
        scores = softmax(logits) if score == "softmax" else sigmoid(logits)
        wanted = scores + state.get("router.bias", np.zeros(n_expert))
        chosen = sorted(range(n_expert), key=lambda expert: -wanted[expert])[:top_k]
        total = sum(scores[expert] for expert in chosen)
        is_normed = top_k > 1 if normed is None else normed
        gates = [factor * (scores[expert] / total if is_normed else scores[expert]) for expert in chosen]
        for expert, gate in zip(chosen, gates, strict=True):
            taken[expert] += 1
            if capacity is not None and taken[expert] > capacity:
                dropped += 1
                continue
            output[t] += gate * feed_forward(token, expert_of(state, expert), kind)
        if "shared.up.weight" in state:
            gate = sigmoid(linear(token, state["shared_gate.weight"])) if "shared_gate.weight" in state else 1
            output[t] += gate * feed_forward(token, below(state, "shared"), kind)
        all_chosen.append(chosen)
        all_gates.append(gates)
        shares.append(scores / sum(scores))
        squares.append(math.log(sum(math.exp(logit) for logit in logits)) ** 2)
    frequencies = [count / (len(x) * top_k) for count in taken]
    probabilities = [sum(share[expert] for share in shares) / len(x) for expert in range(n_expert)]
    balance_loss = n_expert * sum(f * p for f, p in zip(frequencies, probabilities, strict=True))
    return Mixture(output, all_chosen, all_gates, dropped, balance_loss, sum(squares) / len(x))


def derivative_along(value: Callable[[State], float], state: State, name: str, direction: Array) -> float:
    """How fast ``value`` changes as the entry ``name`` moves along ``direction``, by central difference."""
    step = 1e-6
    ahead, behind = (value({**state, name: state[name] + sign * step * direction}) for sign in (1, -1))
    return (ahead - behind) / (2 * step)
