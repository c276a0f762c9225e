"""GPT-NeoX: Pythia and GPT-NeoX-20B."""

from typing import Any

from lightning_gpt.interop.families.gpt2 import UNGATED
from lightning_gpt.interop.family import Family, families, name_of
from lightning_gpt.interop.rotary import read_rotary, write_rotary
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import HeadByHead, InPieces
from lightning_gpt.options import Depth, Heads, Length, NotNegative, ShareAboveZero, VocabSize, Width

_LAYER = "gpt_neox.layers.{layer}"


@families.register("gpt_neox")
class GptNeoX(Family):
    """Black et al. 2022 (2204.06745); Biderman et al. 2023 (2304.01373)."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    outside = {
        "token_embedding": InPieces("gpt_neox.embed_in"),
        "final_norm": InPieces("gpt_neox.final_layer_norm"),
        "head.linear": InPieces("embed_out"),
    }
    inside = {
        "attention_norm": InPieces(f"{_LAYER}.input_layernorm"),
        "attention.qkv": HeadByHead(f"{_LAYER}.attention.query_key_value"),
        "attention.w_o": InPieces(f"{_LAYER}.attention.dense"),
        "ffn_norm": InPieces(f"{_LAYER}.post_attention_layernorm"),
        "ffn.up": InPieces(f"{_LAYER}.mlp.dense_h_to_4h"),
        "ffn.down": InPieces(f"{_LAYER}.mlp.dense_4h_to_h"),
    }
    buffers = r"\.attention\.(rotary_emb\.inv_freq|masked_bias|bias)$"

    def read(self, given: Settings) -> dict[str, Any]:
        block_size = given.get("max_position_embeddings", Length, 2048)
        share, base = given.get("rotary_pct", ShareAboveZero, 0.25), given.get("rotary_emb_base", float, 10000.0)
        has_bias = given.get("attention_bias", bool, True)
        parallel = given.get("use_parallel_residual", bool, True)
        kind = UNGATED[given.require("hidden_act", "gelu", *UNGATED)]
        return {
            "n_layer": given.get("num_hidden_layers", Depth),
            "n_head": given.get("num_attention_heads", Heads),
            "dim": given.get("hidden_size", Width),
            "block_size": block_size,
            "vocab_size": given.get("vocab_size", VocabSize),
            "dropout": given.dropout("hidden_dropout", "attention_dropout"),
            "tie_embeddings": given.get("tie_word_embeddings", bool, False),
            "norm": {"kind": "layer", "eps": given.get("layer_norm_eps", NotNegative, 1e-5)},
            "residual": {"kind": "parallel", "n_norm": 2} if parallel else "pre",
            "position": read_rotary(given, base, block_size, share),
            "attention": "full" if has_bias else {"kind": "full", "qkv_bias": False, "output_bias": False},
            "ffn": {"kind": kind, "hidden": given.get("intermediate_size", Width)},
        }

    def write(self, ours: Expressed) -> dict[str, Any]:
        position, share = ours["position"], ours["position"]["share"]
        rope = write_rotary(position)
        rope["rope_parameters"]["partial_rotary_factor"] = share  # its default is not 1 here
        return {
            "num_hidden_layers": ours["n_layer"],
            "num_attention_heads": ours["n_head"],
            "hidden_size": ours["dim"],
            "max_position_embeddings": ours["block_size"],
            "vocab_size": ours["vocab_size"],
            "tie_word_embeddings": ours["tie_embeddings"],
            "layer_norm_eps": ours["norm"]["eps"],
            "use_parallel_residual": ours["residual"]["kind"] == "parallel",
            "attention_bias": ours["attention"][0]["qkv_bias"],
            "hidden_act": name_of(ours["ffn"][0]["kind"], UNGATED),
            "intermediate_size": ours["ffn"][0]["hidden"],
            "rotary_pct": share,
            "rotary_emb_base": position["base"],
            "rope_parameters": rope["rope_parameters"],
        }
