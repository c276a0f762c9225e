"""Qwen 1.5 and 2 with mixtures of experts."""

from abc import abstractmethod
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.interop.families.llama import GATED, Llama, shortest
from lightning_gpt.interop.families.mistral import windowed
from lightning_gpt.interop.families.qwen2 import Qwen2, window_of
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import EachExpert, InPieces
from lightning_gpt.models.ffn.moe.mixture import ExpertCount
from lightning_gpt.options import Depth, Index, NotNegative, Width

_MLP = "model.layers.{layer}.mlp"
MIXTURE = {
    "ffn.router": InPieces(f"{_MLP}.gate"),
    "ffn.experts.up": EachExpert(f"{_MLP}.experts.{{expert}}.gate_proj", f"{_MLP}.experts.{{expert}}.up_proj"),
    "ffn.experts.down": EachExpert(f"{_MLP}.experts.{{expert}}.down_proj"),
}
"""The tensors of a mixture."""


class SomeMixtures(Llama):
    """Qwen's models with experts: some layers may have a dense network instead."""

    def read(self, given: Settings) -> dict[str, Any]:
        layers = range(given.get("num_hidden_layers", Depth))
        dense, every = given.get("mlp_only_layers", list[Index], []), given.get("decoder_sparse_step", Depth, 1)
        sparse = [layer not in dense and (layer + 1) % every == 0 for layer in layers]
        mixture = self.read_mixture(given) if any(sparse) else {}
        return {
            **super().read(given),
            "ffn": shortest([mixture if is_sparse else self.read_ffn(given) for is_sparse in sparse]),
        }

    @abstractmethod
    def read_mixture(self, given: Settings) -> dict[str, Any]:
        """The mixture."""

    @staticmethod
    def experts(given: Settings, n_expert: int, top_k: int, hidden: int) -> dict[str, Any]:
        """A mixture with the config's experts; the numbers are those of a config that does not say."""
        return {
            "kind": "moe",
            "n_expert": given.get("num_experts", ExpertCount, given.get("num_local_experts", ExpertCount, n_expert)),
            "top_k": given.get("num_experts_per_tok", ExpertCount, top_k),
            "expert": GATED[given.require("hidden_act", *GATED)],
            "hidden": given.get("moe_intermediate_size", Width, hidden),
            "normed_gates": given.get("norm_topk_prob", bool, False),
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
            "norm_topk_prob": moe["normed_gates"],
            "num_experts": moe["n_expert"],
            "num_experts_per_tok": moe["top_k"],
            "moe_intermediate_size": moe["hidden"],
            **self.write_shared(moe),
        }

    def write_shared(self, moe: Expressed) -> dict[str, Any]:
        """The options of the shared experts."""
        return {}


@families.register("qwen2_moe")
class Qwen2Moe(SomeMixtures, Qwen2):
    """Yang et al. 2024 (2407.10671), section 2.2.2."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    inside = {
        **Qwen2.inside,
        **MIXTURE,
        "ffn.shared.up": InPieces(f"{_MLP}.shared_expert.gate_proj", f"{_MLP}.shared_expert.up_proj"),
        "ffn.shared.down": InPieces(f"{_MLP}.shared_expert.down_proj"),
        "ffn.shared_gate": InPieces(f"{_MLP}.shared_expert_gate"),
    }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        if given.get("layer_types", list[str], None) is None:  # every second one of the first layers then has a window
            local = range(0, given.get("max_window_layers", Index, 28), 2)
            layers = range(given.get("num_hidden_layers", Depth))
            kinds = ["sliding_attention" if each in local else "full_attention" for each in layers]
            given = Settings({**given.values, "layer_types": kinds})
        return windowed(self.biased(given), window_of(given, layer))

    def biased(self, given: Settings) -> dict[str, Any]:
        return self.heads(given, qkv_bias=given.get("qkv_bias", bool, True), output_bias=False)

    def read_mixture(self, given: Settings) -> dict[str, Any]:
        mixture = self.experts(given, 60, 4, 1408)
        width, each = given.get("shared_expert_intermediate_size", Width, 5632), mixture["hidden"]
        if width % each:
            raise CallError(
                f"shared_expert_intermediate_size is {width}; lightning_gpt computes only multiples of "
                f"moe_intermediate_size, which is {each}"
            )
        return {**mixture, "n_shared": width // each, "shared_gate": True}

    def write_shared(self, moe: Expressed) -> dict[str, Any]:
        return {"shared_expert_intermediate_size": moe["n_shared"] * moe["hidden"]}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {**super().write_more(ours), "qkv_bias": ours["attention"][0]["qkv_bias"]}
