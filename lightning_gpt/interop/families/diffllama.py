"""DiffLlama: Llama with differential attention."""

from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import ByItsName, HalvesApart
from lightning_gpt.options import Heads, NotNegative, Width

_ATTENTION = "model.layers.{layer}.self_attn"


@families.register("diffllama")
class DiffLlama(Llama):
    """Ye et al. 2024 (2410.05258). What is one head here, with two queries, are two heads of half its width there."""

    model_type = "diffllama"
    architecture = "DiffLlamaForCausalLM"
    inside = {
        **Llama.inside,
        "attention.qkv": HalvesApart(*(f"{_ATTENTION}.{piece}_proj" for piece in "qkv")),
        "attention.first_q": ByItsName(f"{_ATTENTION}.lambda_q1"),
        "attention.first_k": ByItsName(f"{_ATTENTION}.lambda_k1"),
        "attention.second_q": ByItsName(f"{_ATTENTION}.lambda_q2"),
        "attention.second_k": ByItsName(f"{_ATTENTION}.lambda_k2"),
    }
    eps = 1e-5

    def read(self, given: Settings) -> dict[str, Any]:
        n_head = given.get("num_attention_heads", Heads)
        n_kv_head = given.get("num_key_value_heads", Heads, n_head)
        width = given.get("head_dim", Width, given.get("hidden_size", Width) // n_head)
        for name, count in (("num_attention_heads", n_head), ("num_key_value_heads", n_kv_head)):
            if count % 2:
                raise CallError(f"{name} is {count}; differential attention takes heads in pairs, so it must be even")
        paired = {"num_attention_heads": n_head // 2, "num_key_value_heads": n_kv_head // 2, "head_dim": 2 * width}
        return super().read(Settings({**given.values, **paired}))

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        eps = given.get("rms_norm_eps", NotNegative, self.eps)
        attention = super().read_attention(given, layer)
        return {**attention, "kind": "differential", "head_gain": False, "head_eps": eps}

    def write(self, ours: Expressed) -> dict[str, Any]:
        written = super().write(ours)
        doubled = {name: 2 * written[name] for name in ("num_attention_heads", "num_key_value_heads")}
        return {**written, **doubled, "head_dim": written["head_dim"] // 2}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"attention_bias": ours["attention"][0]["qkv_bias"]}
