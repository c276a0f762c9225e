"""Gated attention against its formula, and what the gate does."""

import numpy as np
import pytest
import torch

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.context import Context
from lightning_gpt.models.record import record
from tests.models.helpers import random_ids, randomise
from tests.models.layers import BACKENDS, CLOSE, DIM, N_HEAD, State, make, normal
from tests.models.slopes import Array, assert_equals_reference
from tests.reference import attention_kinds as plain
from tests.reference.formulas import linear


@pytest.mark.parametrize("n_kv_head", [None, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_and_its_gradient_equal_the_formula(backend: str, n_kv_head: int | None) -> None:
    layer = make({"kind": "gated", "n_kv_head": n_kv_head}, backend=backend)
    width, n_kv = DIM // N_HEAD, layer.n_kv_head

    def reference(x: Array, state: State) -> Array:
        """The heads of plain attention, each entry times the sigmoid of the last rows' product, projected."""
        rows = DIM + 2 * n_kv * width
        plain_rows = {
            "qkv.weight": state["qkv.weight"][:rows],
            "qkv.bias": state["qkv.bias"][:rows],
            "w_o.weight": np.eye(DIM),
        }
        heads = plain.layer(x, plain_rows, N_HEAD, plain.softmax_head(), n_kv_head=n_kv)
        gate = 1 / (1 + np.exp(-linear(x, state["qkv.weight"][rows:], state["qkv.bias"][rows:])))
        return linear(heads * gate, state["w_o.weight"], state["w_o.bias"])

    assert_equals_reference(layer, reference, normal(2, 7, DIM))


def test_a_closed_gate_silences_a_head_and_an_open_one_leaves_it() -> None:
    layer, x = make("gated"), normal(1, 5, DIM)
    with torch.no_grad():
        layer.qkv.weight[-DIM:] = 0
        layer.qkv.bias[-DIM:] = torch.tensor([-1e3] * 4 + [1e3] * 12)
    with record(layer) as trace:
        layer(x)
    written = (trace["head_output"] * trace["gate"]).detach()
    assert (written[:, 0] == 0).all()
    torch.testing.assert_close(written[:, 1:], trace["head_output"][:, 1:].detach(), **CLOSE)
    q, k, v = layer.heads(x, Context())
    torch.testing.assert_close(trace["v"], v)
    torch.testing.assert_close(layer.attend(q, k, v), trace["head_output"])


def test_gates_start_half_open() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, dim=8, block_size=6, vocab_size=11, attention="gated"))
    with torch.no_grad(), model.record("*gate") as trace:
        model(random_ids(11, 2, 6))
    torch.testing.assert_close(trace["blocks.0.attention.gate"], torch.full((2, 2, 6, 4), 0.5), rtol=0, atol=0.1)
    assert randomise(model).blocks[0].attention.value_output() is None
