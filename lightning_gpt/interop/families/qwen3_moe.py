"""Qwen 3 with mixtures of experts."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.mistral import window_or, windowed
from lightning_gpt.interop.families.qwen2_moe import MIXTURE, SomeMixtures
from lightning_gpt.interop.families.qwen3 import Qwen3
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings


@families.register("qwen3_moe")
class Qwen3Moe(SomeMixtures, Qwen3):
    """Yang et al. 2025 (2505.09388), section 2."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    inside = {**Qwen3.inside, **MIXTURE}
    default_head_dim = None

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        window = window_or(given, 4096) if given.get("use_sliding_window", bool, False) else None
        return windowed(Llama.read_attention(self, given, layer), window)  # in all layers

    def read_mixture(self, given: Settings) -> dict[str, Any]:
        return self.experts(given, 128, 8, 768)

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        attention = ours["attention"][0]
        window = attention.get("window")
        options = {"use_sliding_window": window is not None, "sliding_window": window}
        return {"attention_bias": attention["qkv_bias"], **options}
