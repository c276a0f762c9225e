"""Phi 1, 1.5 and 2."""

from typing import Any

from lightning_gpt.interop.families.gpt2 import UNGATED
from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.family import Family, families, name_of
from lightning_gpt.interop.rotary import read_rotary, write_rotary
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import ByItsName, InPieces
from lightning_gpt.options import Depth, Heads, Length, NotNegative, ShareAboveZero, VocabSize, Width

_LAYER = "model.layers.{layer}"


@families.register("phi")
class Phi(Family):
    """Gunasekar et al. 2023 (2306.11644); Li et al. 2023 (2309.05463)."""

    model_type = "phi"
    architecture = "PhiForCausalLM"
    outside = {
        "token_embedding": InPieces("model.embed_tokens"),
        "final_norm": InPieces("model.final_layernorm"),
        "head.linear": InPieces("lm_head"),
        "head.bias": ByItsName("lm_head.bias"),
    }
    inside = {
        "attention_norm": InPieces(f"{_LAYER}.input_layernorm"),
        "attention.qkv": InPieces(*(f"{_LAYER}.self_attn.{piece}_proj" for piece in "qkv")),
        "attention.w_o": InPieces(f"{_LAYER}.self_attn.dense"),
        "ffn.up": InPieces(f"{_LAYER}.mlp.fc1"),
        "ffn.down": InPieces(f"{_LAYER}.mlp.fc2"),
    }

    def read(self, given: Settings) -> dict[str, Any]:
        block_size = given.get("max_position_embeddings", Length, 2048)
        share = given.get("partial_rotary_factor", ShareAboveZero, 0.5)
        given.require("qk_layernorm", False)
        sizes = {
            "num_attention_heads": given.get("num_attention_heads", Heads, 32),
            "hidden_size": given.get("hidden_size", Width, 2048),
        }
        return {
            "n_layer": given.get("num_hidden_layers", Depth, 24),
            "n_head": sizes["num_attention_heads"],
            "dim": sizes["hidden_size"],
            "block_size": block_size,
            "vocab_size": given.get("vocab_size", VocabSize, 51200),
            "dropout": given.dropout("resid_pdrop", "embd_pdrop", "attention_dropout"),
            "tie_embeddings": given.get("tie_word_embeddings", bool, False),
            "head_bias": True,
            "norm": {"kind": "layer", "eps": given.get("layer_norm_eps", NotNegative, 1e-5)},
            "residual": "parallel",
            "position": read_rotary(given, 10000.0, block_size, share),
            "attention": Llama.heads(Settings({**given.values, **sizes})),
            "ffn": {
                "kind": UNGATED[given.require("hidden_act", *UNGATED)],
                "hidden": given.get("intermediate_size", Width, 8192),
            },
        }

    def write(self, ours: Expressed) -> dict[str, Any]:
        rope = write_rotary(ours["position"])
        share = {"partial_rotary_factor": ours["position"]["share"]}  # its default is not 1 here
        return {
            "num_hidden_layers": ours["n_layer"],
            "num_attention_heads": ours["n_head"],
            "num_key_value_heads": ours["attention"][0]["n_kv_head"],
            "hidden_size": ours["dim"],
            "max_position_embeddings": ours["block_size"],
            "vocab_size": ours["vocab_size"],
            "tie_word_embeddings": ours["tie_embeddings"],
            "layer_norm_eps": ours["norm"]["eps"],
            "hidden_act": name_of(ours["ffn"][0]["kind"], UNGATED),
            "intermediate_size": ours["ffn"][0]["hidden"],
            **rope,
            **share,
            "rope_parameters": {**rope["rope_parameters"], **share},
        }
