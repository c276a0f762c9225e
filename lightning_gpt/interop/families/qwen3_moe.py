"""Qwen 3 with mixtures of experts."""

from typing import Any

from lightning_gpt.interop.families.llama import GATED, Llama, shortest
from lightning_gpt.interop.families.mistral import windowed
from lightning_gpt.interop.families.qwen3 import Qwen3
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import EachExpert, InPieces
from lightning_gpt.models.ffn.moe.mixture import ExpertCount
from lightning_gpt.options import Depth, Index, Length, NotNegative, Width

_MLP = "model.layers.{layer}.mlp"


@families.register("qwen3_moe")
class Qwen3Moe(Qwen3):
    """Yang et al. 2025 (2505.09388), section 2; some layers may have a dense network instead."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    inside = {
        **Qwen3.inside,
        "ffn.router": InPieces(f"{_MLP}.gate"),
        "ffn.experts.up": EachExpert(f"{_MLP}.experts.{{expert}}.gate_proj", f"{_MLP}.experts.{{expert}}.up_proj"),
        "ffn.experts.down": EachExpert(f"{_MLP}.experts.{{expert}}.down_proj"),
    }

    def read(self, given: Settings) -> dict[str, Any]:
        layers = range(given.get("num_hidden_layers", Depth))
        dense, every = given.get("mlp_only_layers", list[Index], []), given.get("decoder_sparse_step", Depth, 1)
        sparse = [layer not in dense and (layer + 1) % every == 0 for layer in layers]
        mixture = self._mixture(given) if any(sparse) else {}
        return {
            **super().read(given),
            "ffn": shortest([mixture if is_sparse else self.read_ffn(given) for is_sparse in sparse]),
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        window = given.get("sliding_window", Length, 4096) if given.get("use_sliding_window", bool, False) else None
        return windowed(Llama.read_attention(self, given, layer), window)  # in all layers

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        attention = ours["attention"][0]
        window = attention.get("window")
        options = {"use_sliding_window": window is not None, "sliding_window": window}
        return {"attention_bias": attention["qkv_bias"], **options}

    @staticmethod
    def _mixture(given: Settings) -> dict[str, Any]:
        if given.get("num_experts_per_tok", ExpertCount, 8) == 1:
            given.require("num_experts_per_tok", 2)  # ours then weights the expert by its score
        given = Settings({"norm_topk_prob": False, **given.values})
        given.require("norm_topk_prob", True)
        return {
            "kind": "moe",
            "n_expert": given.get("num_experts", ExpertCount, given.get("num_local_experts", ExpertCount, 128)),
            "top_k": given.get("num_experts_per_tok", ExpertCount, 8),
            "expert": GATED[given.require("hidden_act", *GATED)],
            "hidden": given.get("moe_intermediate_size", Width, 768),
            "balance_rate": given.get("router_aux_loss_coef", NotNegative, 0.001),
            "z_loss": 0.0,
        }

    def write(self, ours: Expressed) -> dict[str, Any]:
        sparse = [layer for layer, ffn in enumerate(ours["ffn"]) if ffn["kind"] == "moe"]
        dense = [layer for layer in range(ours["n_layer"]) if layer not in sparse]
        moe = ours["ffn"][sparse[0]] if sparse else {}
        # without dense layers, nothing is as wide as intermediate_size says
        network = ours["ffn"][dense[0]] if dense else {"kind": moe["expert"], "hidden": moe["hidden"]}
        written = super().write({**ours, "ffn": [network]})
        return {
            **written,
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
            "num_experts": moe["n_expert"],
            "num_experts_per_tok": moe["top_k"],
            "moe_intermediate_size": moe["hidden"],
        }
