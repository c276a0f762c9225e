"""Qwen 3: Llama with norms of each head's queries and keys."""

from typing import Any, ClassVar

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.mistral import windowed
from lightning_gpt.interop.families.qwen2 import window_of, write_windows
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import NotNegative, Width


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
    default_head_dim: ClassVar[int | None] = 128
    """The width of a head where the config does not say, whatever the model's; None it is an equal part of that."""

    def read(self, given: Settings) -> dict[str, Any]:
        given = Settings({**given.values, "head_dim": given.get("head_dim", Width, self.default_head_dim)})
        return {
            **super().read(given),
            "qk_norm": {"kind": "rms", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        return windowed(super().read_attention(given, layer), window_of(given, layer))

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"attention_bias": ours["attention"][0]["qkv_bias"], **write_windows(ours)}
