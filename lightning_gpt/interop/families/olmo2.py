"""OLMo 2: Llama with norms after the branches alone, and of all heads' queries and keys together."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import NotNegative


@families.register("olmo2")
class Olmo2(Llama):
    """OLMo et al. 2024 (2501.00656)."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    inside = {
        **Llama.inside,
        "attention_norm": InPieces("model.layers.{layer}.post_attention_layernorm"),
        "attention.q_norm": InPieces("model.layers.{layer}.self_attn.q_norm"),
        "attention.k_norm": InPieces("model.layers.{layer}.self_attn.k_norm"),
        "ffn_norm": InPieces("model.layers.{layer}.post_feedforward_layernorm"),
    }
    eps = 1e-5

    def read(self, given: Settings) -> dict[str, Any]:
        return {
            **super().read(given),
            "residual": "normed_branches",
            "qk_norm": {"kind": "rms", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        return {**super().read_attention(given, layer), "kind": "joint_norm"}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"attention_bias": ours["attention"][0]["qkv_bias"]}
