"""Qwen 3: Llama with norms of each head's queries and keys."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.mistral import windowed
from lightning_gpt.interop.families.qwen2 import window_of, write_windows
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import NotNegative


@families.register("qwen3")
class Qwen3(Llama):
    """Yang et al. 2025 (2505.09388)."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    inside = {
        **Llama.inside,
        "attention.q_norm": InPieces("model.layers.{layer}.self_attn.q_norm"),
        "attention.k_norm": InPieces("model.layers.{layer}.self_attn.k_norm"),
    }
    longest = 32768

    def read(self, given: Settings) -> dict[str, Any]:
        # a config without head_dim means 128, whatever the width
        given = Settings({**given.values, "head_dim": given.values.get("head_dim") or 128})
        return {
            **super().read(given),
            "qk_norm": {"kind": "rms", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        return windowed(super().read_attention(given, layer), window_of(given, layer))

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"attention_bias": ours["attention"][0]["qkv_bias"], **write_windows(ours)}
