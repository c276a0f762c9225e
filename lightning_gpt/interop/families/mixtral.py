"""Mixtral: Mistral with a mixture of experts."""

from typing import Any

from lightning_gpt.interop.families.llama import GATED
from lightning_gpt.interop.families.mistral import Mistral
from lightning_gpt.interop.family import families, name_of
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import EachExpert, InPieces
from lightning_gpt.models.ffn.moe.mixture import ExpertCount
from lightning_gpt.options import NotNegative, Width

_MOE = "model.layers.{layer}.block_sparse_moe"


@families.register("mixtral")
class Mixtral(Mistral):
    """Jiang et al. 2024 (2401.04088)."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    inside = {
        **{ours: published for ours, published in Mistral.inside.items() if not ours.startswith("ffn.")},
        "ffn.router": InPieces(f"{_MOE}.gate"),
        "ffn.experts.up": EachExpert(f"{_MOE}.experts.{{expert}}.w1", f"{_MOE}.experts.{{expert}}.w3"),
        "ffn.experts.down": EachExpert(f"{_MOE}.experts.{{expert}}.w2"),
    }
    default_window = None
    eps = 1e-5
    base = 1e6

    def read_ffn(self, given: Settings) -> dict[str, Any]:
        return {
            "kind": "moe",
            "n_expert": given.get("num_local_experts", ExpertCount, 8),
            "top_k": given.get("num_experts_per_tok", ExpertCount, 2),
            "expert": GATED[given.require("hidden_act", *GATED)],
            "hidden": given.get("intermediate_size", Width),
            "normed_gates": True,  # also one expert's, whose weight is then 1
            "balance_rate": given.get("router_aux_loss_coef", NotNegative, 0.001),
            "z_loss": 0.0,
        }

    def write_ffn(self, ffn: Expressed) -> dict[str, Any]:
        return {
            "hidden_act": name_of(ffn["expert"], GATED),
            "intermediate_size": ffn["hidden"],
            "num_local_experts": ffn["n_expert"],
            "num_experts_per_tok": ffn["top_k"],
        }
