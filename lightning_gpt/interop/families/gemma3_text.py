"""Gemma 3, language models alone: the smallest ones, or what a larger one has besides images."""

from typing import Any

from lightning_gpt.interop.families.gemma2 import Gemma2
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import NotNegative


@families.register("gemma3_text")
class Gemma3Text(Gemma2):
    """Gemma Team 2025 (2503.19786): norms of queries and keys, and another rotary base in layers with a window."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    inside = {
        **Gemma2.inside,
        "attention.q_norm": InPieces("model.layers.{layer}.self_attn.q_norm"),
        "attention.k_norm": InPieces("model.layers.{layer}.self_attn.k_norm"),
    }
    longest = 131072
    base = 1e6
    softcaps = None, None
    period = 6
    local_base = 10000.0

    def read(self, given: Settings) -> dict[str, Any]:
        both = given.get("rope_parameters", dict, None) or {}
        local = Settings(both.get("sliding_attention") or {})
        local.require("rope_type", "default")
        base = local.get("rope_theta", float, given.get("rope_local_base_freq", float, self.local_base))
        of_all = {"rope_parameters": both.get("full_attention"), "rope_local_base_freq": base}
        return {
            **super().read(Settings({**given.values, **of_all})),
            "qk_norm": {"kind": "rms_plus_one", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        attention = super().read_attention(given, layer)
        base = float(given.get("rope_local_base_freq", float))
        return {**attention, "rotary_base": base} if attention["kind"] == "window" else attention

    def write_positions(self, ours: Expressed) -> dict[str, Any]:
        of_all = super().write_positions(ours)
        bases = (attention["rotary_base"] for attention in ours["attention"])
        base = next((base for base in bases if base is not None), self.local_base)
        local = {"rope_type": "default", "rope_theta": base}
        both = {"full_attention": of_all["rope_parameters"], "sliding_attention": local}
        return {**of_all, "rope_local_base_freq": base, "rope_parameters": both}
