"""Llama 1 to 3, and all that are computed as it is: SmolLM2, TinyLlama, Vicuna, ..."""

from typing import Any, ClassVar

from lightning_gpt.errors import CallError
from lightning_gpt.interop.family import Family, families, name_of
from lightning_gpt.interop.rotary import read_rotary, write_rotary
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import Depth, Heads, Length, NotNegative, ShareAboveZero, VocabSize, Width

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}
"""Our gated networks by the published name of their activation."""


@families.register("llama")
class Llama(Family):
    """Touvron et al. 2023 (2302.13971, 2307.09288); Dubey et al. 2024 (2407.21783)."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    outside = {
        "token_embedding": InPieces("model.embed_tokens"),
        "final_norm": InPieces("model.norm"),
        "head.linear": InPieces("lm_head"),
    }
    inside = {
        "attention_norm": InPieces("model.layers.{layer}.input_layernorm"),
        "attention.qkv": InPieces(*(f"model.layers.{{layer}}.self_attn.{piece}_proj" for piece in "qkv")),
        "attention.w_o": InPieces("model.layers.{layer}.self_attn.o_proj"),
        "ffn_norm": InPieces("model.layers.{layer}.post_attention_layernorm"),
        "ffn.up": InPieces("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.up_proj"),
        "ffn.down": InPieces("model.layers.{layer}.mlp.down_proj"),
    }
    longest: ClassVar[int] = 2048
    """``max_position_embeddings`` where the config names none."""
    eps: ClassVar[float] = 1e-6
    base: ClassVar[float] = 10000.0
    partial: ClassVar[bool] = False
    """Whether transformers computes a share of each head that rotates; in most of these, all of it does."""

    def read(self, given: Settings) -> dict[str, Any]:
        dim, n_head = given.get("hidden_size", Width), given.get("num_attention_heads", Heads)
        block_size = given.get("max_position_embeddings", Length, self.longest)
        n_layer = given.get("num_hidden_layers", Depth)
        return {
            "n_layer": n_layer,
            "n_head": n_head,
            "dim": dim,
            "block_size": block_size,
            "vocab_size": given.get("vocab_size", VocabSize),
            "dropout": given.dropout("attention_dropout"),
            "bias": given.get("mlp_bias", bool, False),
            "tie_embeddings": given.get("tie_word_embeddings", bool, False),
            "norm": {"kind": "rms", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
            "position": self.read_positions(given, block_size),
            "attention": shortest([self.read_attention(given, layer) for layer in range(n_layer)]),
            "ffn": self.read_ffn(given),
        }

    def read_positions(self, given: Settings, block_size: int) -> dict[str, Any]:
        """The rotary positions.

        Raises:
            CallError: They are of a kind that we do not have, or name a share that transformers does not compute.
        """
        position = read_rotary(given, self.base, block_size)
        # transformers reads the option at the top, too, and then computes these models without it
        for share in (position["share"], given.get("partial_rotary_factor", ShareAboveZero, 1.0)):
            if share != 1 and not self.partial:
                raise CallError(
                    f"partial_rotary_factor is {share:g}; {self.architecture} does not compute it: all of each head "
                    f"rotates (allowed: 1, or leave it out)"
                )
        return position

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        """The attention of a layer."""
        return self.heads(given, bias=given.get("attention_bias", bool, False))

    @staticmethod
    def heads(given: Settings, **options: Any) -> dict[str, Any]:
        """An attention with the config's heads and other options of ours; ``bias`` is that of all its products."""
        n_head, dim = given.get("num_attention_heads", Heads), given.get("hidden_size", Width)
        n_kv_head, width = given.get("num_key_value_heads", Heads, n_head), given.get("head_dim", Width, dim // n_head)
        biases = {"qkv_bias": options["bias"], "output_bias": options.pop("bias")} if "bias" in options else {}
        made = {"kind": "full" if n_kv_head == n_head else "grouped", **biases, **options}
        return made | ({} if n_kv_head == n_head else {"n_kv_head": n_kv_head}) | {"head_dim": width}

    def read_ffn(self, given: Settings) -> dict[str, Any]:
        """The feed-forward network."""
        kind = GATED[given.require("hidden_act", *GATED)]
        return {"kind": kind, "hidden": given.get("intermediate_size", Width)}

    def write(self, ours: Expressed) -> dict[str, Any]:
        return {
            "hidden_size": ours["dim"],
            "num_hidden_layers": ours["n_layer"],
            "num_attention_heads": ours["n_head"],
            "num_key_value_heads": ours["attention"][0]["n_kv_head"],
            "head_dim": ours["attention"][0]["head_dim"],
            "max_position_embeddings": ours["block_size"],
            "vocab_size": ours["vocab_size"],
            "tie_word_embeddings": ours["tie_embeddings"],
            "rms_norm_eps": ours["norm"]["eps"],
            **self.write_positions(ours),
            **self.write_ffn(ours["ffn"][0]),
            **self.write_more(ours),
        }

    def write_positions(self, ours: Expressed) -> dict[str, Any]:
        """The options of the rotary positions."""
        position = ours["position"]
        if position["share"] != 1 and not self.partial:  # it would go out, and be computed as if it were 1
            raise KeyError("share")
        return write_rotary(position)

    def write_ffn(self, ffn: Expressed) -> dict[str, Any]:
        """The options of the feed-forward network."""
        return {"hidden_act": name_of(ffn["kind"], GATED), "intermediate_size": ffn["hidden"]}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        """The options that only some families computed like Llama have."""
        return {"attention_bias": ours["attention"][0]["qkv_bias"], "mlp_bias": ours["bias"]}


def shortest(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shortest pattern that, repeated, gives these layers."""
    for length in range(1, len(layers)):
        if all(layer == layers[number % length] for number, layer in enumerate(layers)):
            return layers[:length]
    return layers
