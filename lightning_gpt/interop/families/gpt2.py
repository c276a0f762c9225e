"""GPT-2."""

from typing import Any

from lightning_gpt.interop.family import Family, families, name_of
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces, Transposed
from lightning_gpt.options import Depth, Heads, Length, NotNegative, VocabSize, Width

UNGATED = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_erf",
    "relu": "relu",
    "relu2": "relu2",
}
"""Our plain networks by the published name of their activation."""

_LAYER = "transformer.h.{layer}"


@families.register("gpt2")
class Gpt2(Family):
    """Radford et al. 2019; its matrices have a row for each input."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    outside = {
        "token_embedding": InPieces("transformer.wte"),
        "positions": InPieces("transformer.wpe"),
        "final_norm": InPieces("transformer.ln_f"),
        "head.linear": InPieces("lm_head"),
    }
    inside = {
        "attention_norm": InPieces(f"{_LAYER}.ln_1"),
        "attention.qkv": Transposed(f"{_LAYER}.attn.c_attn"),
        "attention.w_o": Transposed(f"{_LAYER}.attn.c_proj"),
        "ffn_norm": InPieces(f"{_LAYER}.ln_2"),
        "ffn.up": Transposed(f"{_LAYER}.mlp.c_fc"),
        "ffn.down": Transposed(f"{_LAYER}.mlp.c_proj"),
    }
    buffers = r"\.attn\.(masked_)?bias$"

    def read(self, given: Settings) -> dict[str, Any]:
        dim = given.get("n_embd", Width, 768)
        given.require("scale_attn_weights", True)
        given.require("scale_attn_by_inverse_layer_idx", False)
        given.require("add_cross_attention", False)
        kind = UNGATED[given.require("activation_function", *UNGATED)]
        return {
            "n_layer": given.get("n_layer", Depth, 12),
            "n_head": given.get("n_head", Heads, 12),
            "dim": dim,
            "block_size": given.get("n_positions", Length, 1024),
            "vocab_size": given.get("vocab_size", VocabSize, 50257),
            "dropout": given.dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
            "tie_embeddings": given.get("tie_word_embeddings", bool, True),
            "norm": {"kind": "layer", "eps": given.get("layer_norm_epsilon", NotNegative, 1e-5)},
            "ffn": {"kind": kind, "hidden": given.get("n_inner", Width, 4 * dim)},
        }

    def write(self, ours: Expressed) -> dict[str, Any]:
        return {
            "n_layer": ours["n_layer"],
            "n_head": ours["n_head"],
            "n_embd": ours["dim"],
            "n_positions": ours["block_size"],
            "vocab_size": ours["vocab_size"],
            "tie_word_embeddings": ours["tie_embeddings"],
            "layer_norm_epsilon": ours["norm"]["eps"],
            "activation_function": name_of(ours["ffn"][0]["kind"], UNGATED),
            "n_inner": ours["ffn"][0]["hidden"],
        }
