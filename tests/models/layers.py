"""Every kind of attention as one small layer, with its formula."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.positions.scheme import position_schemes, positions_within
from lightning_gpt.models.registry import Given
from tests.models.helpers import randomise
from tests.models.slopes import Array
from tests.reference import attention_kinds as plain
from tests.reference import remedies

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
State = Mapping[str, Array]
DIM, N_HEAD, LAYER = 16, 4, 2
LOCAL: dict[str, tuple[dict[str, Any], plain.Sees]] = {
    "window": ({"kind": "window", "window": 4}, plain.sees_window(4)),
    "global_window": ({"kind": "global_window", "window": 3, "n_global": 2}, plain.sees_global_window(3, 2)),
    "strided": ({"kind": "strided", "stride": 4}, plain.sees_fixed(4, 1)),
    "strided of two": ({"kind": "strided", "stride": 5, "n_summary": 2}, plain.sees_fixed(5, 2)),
}
HEADS: dict[str, tuple[Given, Callable[[State], plain.Head]]] = {
    "full": ("full", lambda state: plain.softmax_head()),
    "grouped": ({"kind": "grouped", "n_kv_head": 2}, lambda state: plain.softmax_head()),
    "multi_query": ("multi_query", lambda state: plain.softmax_head()),
    "joint_norm": (
        "joint_norm",
        lambda state: plain.softmax_head(),
    ),  # without a norm; with one: test_published_parts.py
    "sink": ("sink", lambda state: plain.sink_head(state["null_logit"])),
    "sink_window": (
        {"kind": "sink_window", "window": 4},
        lambda state: plain.sink_head(state["null_logit"], plain.sees_window(4)),
    ),
    "differential": ("differential", lambda state: plain.differential_head(state, LAYER)),
    "linear": ("linear", lambda state: plain.linear_head()),
    "shaped": ("shaped", lambda state: remedies.shaped_head(state)),
    "attn_scale": ("attn_scale", lambda state: remedies.attn_scale_head(state["omega"])),
    "scalable": ("scalable", lambda state: remedies.scalable_head(state["sharpness"])),
    "neutreno": ("neutreno", lambda state: plain.softmax_head()),  # alone it is the first layer
    # alone they are the first layer, and one without tokens
    "value_residual": ("value_residual", lambda state: remedies.scaled_values_head(state["value_shares"].sum())),
    "value_embedding": ("value_embedding", lambda state: remedies.scaled_values_head(state["value_shares"][0])),
    **{name: (choice, lambda state, sees=sees: plain.softmax_head(sees)) for name, (choice, sees) in LOCAL.items()},
}
BACKENDS = ["sdpa", "manual"]


def make(choice: Given, position: Given = "none", **context: Any) -> MultiHeadAttention:
    """One attention layer, every weight random, in double precision."""
    given_to_all = {"dim": DIM, "n_head": N_HEAD, "bias": True, "dropout": 0.0, "backend": "sdpa", "qk_norm": "none"}
    scheme = position_schemes.make(position, dim=DIM, n_head=N_HEAD, block_size=8)
    layer = attentions.make(
        choice, **{**given_to_all, "layer": LAYER, "positions": scheme, "vocab_size": 17, **context}
    )
    assert isinstance(layer, MultiHeadAttention)
    return randomise(layer).double()


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """N(0, 1)."""
    return torch.randn(
        *shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    )


def of_documents(documents: torch.Tensor, scheme: Any = None) -> Context:
    """Where tokens stand whose documents are kept apart."""
    return Context(positions=positions_within(documents), documents=documents, scheme=scheme)
