"""Parts that published models have: norms over all heads, biases here and there, a norm of the embeddings."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.suited import require_suited
from tests.models.layers import BACKENDS, DIM, N_HEAD, make, normal
from tests.models.slopes import Array, assert_equals_reference
from tests.reference import attention_kinds as plain
from tests.reference import formulas, parts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_a_layer_and_its_gradient_equal_the_formula(n_kv_head: int, backend: str) -> None:
    layer = make({"kind": "joint_norm", "n_kv_head": n_kv_head, "head_dim": 6}, qk_norm="rms", backend=backend)
    rows, kv_rows = N_HEAD * 6, n_kv_head * 6

    def reference(x: Array, state: Mapping[str, Array]) -> Array:
        q, k, v = np.split(formulas.linear(x, state["qkv.weight"], state["qkv.bias"]), [rows, rows + kv_rows], axis=1)
        q, k = parts.rms_norm(q, state["q_norm.weight"]), parts.rms_norm(k, state["k_norm.weight"])
        head = plain.softmax_head()
        made = []
        for h in range(N_HEAD):
            group = h * n_kv_head // N_HEAD
            of_q, of_k = slice(6 * h, 6 * h + 6), slice(6 * group, 6 * group + 6)
            made.append(head(q[:, of_q], k[:, of_k], v[:, of_k], h))
        return formulas.linear(np.concatenate(made, axis=1), state["w_o.weight"], state["w_o.bias"])

    assert_equals_reference(layer, reference, normal(2, 7, DIM))


def test_tensor_parallel_is_refused() -> None:
    model = GPT(GPTConfig(attention="joint_norm", qk_norm="rms", dim=16, vocab_size=32))
    with pytest.raises(CallError, match=r"attention joint_norm cannot be divided over parallel.tensor 2"):
        require_suited(model, Layout(tensor=2))


def test_biases_of_one_attention_are_where_its_options_say() -> None:
    for qkv_bias, output_bias in ((True, False), (False, True)):
        options = {"kind": "full", "qkv_bias": qkv_bias, "output_bias": output_bias}
        for of_model in (True, False):
            model = GPT(GPTConfig(n_layer=1, dim=16, vocab_size=32, bias=of_model, attention=options))
            attention, ffn = model.blocks[0].attention, model.blocks[0].ffn
            assert (attention.qkv.bias is not None, attention.w_o.bias is not None) == (qkv_bias, output_bias)
            assert (ffn.up.bias is not None) == of_model


def test_the_embedding_norm_comes_before_the_first_block_and_is_seen() -> None:
    model = GPT(GPTConfig(n_layer=1, dim=16, vocab_size=32, embedding_norm="layer")).double().eval()
    with torch.no_grad():
        model.embedding_norm.weight.normal_()
        model.embedding_norm.bias.normal_()
    ids = torch.arange(8)[None]
    with model.record(["token_embedding", "position_embedding", "embedding"]) as trace, torch.no_grad():
        model(ids)
    summed = (trace["token_embedding"] + trace["position_embedding"])[0].numpy(force=True)
    weight, bias = (parameter.numpy(force=True) for parameter in model.embedding_norm.parameters())
    expected = formulas.layer_norm(summed, weight, bias)
    np.testing.assert_allclose(trace["embedding"][0].numpy(force=True), expected, atol=1e-12)
