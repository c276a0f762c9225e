"""BLOOM."""

from typing import Any

from lightning_gpt.interop.family import Family, families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import HeadByHead, InPieces
from lightning_gpt.options import Depth, Heads, Length, NotNegative, VocabSize, Width

_LAYER = "transformer.h.{layer}"


@families.register("bloom")
class Bloom(Family):
    """BigScience 2022 (2211.05100). Its config names no length; 2,048 tokens is what the models were trained on."""

    model_type = "bloom"
    architecture = "BloomForCausalLM"
    prefix = "transformer."
    outside = {
        "token_embedding": InPieces("transformer.word_embeddings"),
        "embedding_norm": InPieces("transformer.word_embeddings_layernorm"),
        "final_norm": InPieces("transformer.ln_f"),
        "head.linear": InPieces("lm_head"),
    }
    inside = {
        "attention_norm": InPieces(f"{_LAYER}.input_layernorm"),
        "attention.qkv": HeadByHead(f"{_LAYER}.self_attention.query_key_value"),
        "attention.w_o": InPieces(f"{_LAYER}.self_attention.dense"),
        "ffn_norm": InPieces(f"{_LAYER}.post_attention_layernorm"),
        "ffn.up": InPieces(f"{_LAYER}.mlp.dense_h_to_4h"),
        "ffn.down": InPieces(f"{_LAYER}.mlp.dense_4h_to_h"),
    }

    def read(self, given: Settings) -> dict[str, Any]:
        dim = given.get("hidden_size", Width, given.get("n_embed", Width, 64))
        norm = {"kind": "layer", "eps": given.get("layer_norm_epsilon", NotNegative, 1e-5)}
        given.require("apply_residual_connection_post_layernorm", False)
        return {
            "n_layer": given.get("n_layer", Depth, given.get("num_hidden_layers", Depth, 2)),
            "n_head": given.get("n_head", Heads, given.get("num_attention_heads", Heads, 8)),
            "dim": dim,
            "block_size": given.get("seq_length", Length, 2048),
            "vocab_size": given.get("vocab_size", VocabSize, 250880),
            "dropout": given.dropout("hidden_dropout", "attention_dropout"),
            "tie_embeddings": given.get("tie_word_embeddings", bool, True),
            "norm": norm,
            "embedding_norm": norm,
            "position": "alibi",
            "ffn": {"kind": "gelu", "hidden": 4 * dim},
        }

    def write(self, ours: Expressed) -> dict[str, Any]:
        return {
            "n_layer": ours["n_layer"],
            "n_head": ours["n_head"],
            "hidden_size": ours["dim"],
            "seq_length": ours["block_size"],
            "vocab_size": ours["vocab_size"],
            "tie_word_embeddings": ours["tie_embeddings"],
            "layer_norm_epsilon": ours["norm"]["eps"],
        }
