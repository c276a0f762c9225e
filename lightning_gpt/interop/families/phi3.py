"""Phi 3 and 3.5 with a context of 4,096 tokens, and Phi 4: Llama with fused matrices and a window."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.mistral import Mistral
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import ShareAboveZero


@families.register("phi3")
class Phi3(Mistral):
    """Abdin et al. 2024 (2404.14219). The longer contexts have ``longrope``, which is refused."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    inside = {
        **Llama.inside,
        "attention.qkv": InPieces("model.layers.{layer}.self_attn.qkv_proj"),
        "ffn.up": InPieces("model.layers.{layer}.mlp.gate_up_proj"),
    }
    default_window = None
    longest = 4096
    partial = True
    eps = 1e-5

    def read(self, given: Settings) -> dict[str, Any]:
        share = given.get("partial_rotary_factor", ShareAboveZero, None)
        if share is not None:
            rope = given.get("rope_scaling", dict, None) or given.get("rope_parameters", dict, None) or {}
            rope = {"partial_rotary_factor": share, **rope}
            given = Settings({**given.values, "rope_scaling": None, "rope_parameters": rope})
        return {**super().read(given), "dropout": given.dropout("resid_pdrop", "embd_pdrop", "attention_dropout")}
