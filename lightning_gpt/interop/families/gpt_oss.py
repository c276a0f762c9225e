"""gpt-oss; the four bits of its published weights become bf16, in which it goes out."""

from typing import Any

from lightning_gpt.interop.families.gemma2 import write_layer_types
from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.qwen2 import layer_kind
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import ByItsName, InPieces, TransposedExperts
from lightning_gpt.models.ffn.gated import CLAMP, SHARPNESS
from lightning_gpt.models.ffn.moe.mixture import ExpertCount
from lightning_gpt.options import Length, NotNegative, Width

_LAYER = "model.layers.{layer}"
_EXPERTS = f"{_LAYER}.mlp.experts"
_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}


@families.register("gpt_oss")
class GptOss(Llama):
    """OpenAI 2025 (2508.10925)."""

    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    inside = {
        **{ours: published for ours, published in Llama.inside.items() if not ours.startswith("ffn.")},
        "attention.null_logit": ByItsName(f"{_LAYER}.self_attn.sinks"),
        "ffn.router": InPieces(f"{_LAYER}.mlp.router"),
        "ffn.router.logit_bias": ByItsName(f"{_LAYER}.mlp.router.bias"),
        "ffn.experts.up": TransposedExperts(f"{_EXPERTS}.gate_up_proj"),
        "ffn.experts.up_bias": TransposedExperts(f"{_EXPERTS}.gate_up_proj_bias"),
        "ffn.experts.down": TransposedExperts(f"{_EXPERTS}.down_proj"),
        "ffn.experts.down_bias": TransposedExperts(f"{_EXPERTS}.down_proj_bias"),
    }
    longest = 131072
    eps = 1e-5
    base = 150000.0

    def read(self, given: Settings) -> dict[str, Any]:
        width = given.get("head_dim", Width, 64)  # whatever the other sizes are
        scaled = given.get("rope_scaling", dict, None) or given.get("rope_parameters", dict, None)
        rope = {} if scaled else {"rope_parameters": _YARN}
        return {**super().read(Settings({**given.values, "head_dim": width, **rope})), "bias": True}

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        attention = {**self.heads(given, bias=given.get("attention_bias", bool, True)), "kind": "sink"}
        kinds = given.get("layer_types", list[str], None)
        is_local = layer % 2 == 0 if kinds is None else layer_kind(kinds, layer) == "sliding_attention"
        if not is_local:
            return attention
        return {**attention, "kind": "sink_window", "window": given.get("sliding_window", Length, 128)}

    def read_ffn(self, given: Settings) -> dict[str, Any]:
        given.require("hidden_act", "silu")
        given.require("swiglu_limit", CLAMP)
        given.require("swiglu_alpha", SHARPNESS)
        top_k = given.get("num_experts_per_tok", ExpertCount, given.get("experts_per_token", ExpertCount, 4))
        return {
            "kind": "moe",
            "n_expert": given.get("num_local_experts", ExpertCount, 128),
            "top_k": top_k,
            "expert": "clamped_swiglu",
            "hidden": given.get("intermediate_size", Width, 2880),
            "router_bias": True,
            "normed_gates": True,  # also one expert's, whose weight is then 1
            "balance_rate": given.get("router_aux_loss_coef", NotNegative, 0.001),
            "z_loss": 0.0,
        }

    def write_ffn(self, ffn: Expressed) -> dict[str, Any]:
        return {
            "hidden_act": "silu",
            "intermediate_size": ffn["hidden"],
            "num_local_experts": ffn["n_expert"],
            "num_experts_per_tok": ffn["top_k"],
            "swiglu_limit": CLAMP,
            "swiglu_alpha": SHARPNESS,
        }

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"attention_bias": ours["attention"][0]["qkv_bias"], **write_layer_types(ours)}
