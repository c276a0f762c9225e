"""Gemma 2."""

import math
from typing import Any, ClassVar

from lightning_gpt.interop.families.llama import GATED, Llama
from lightning_gpt.interop.families.mistral import windowed
from lightning_gpt.interop.families.qwen2 import layer_kind
from lightning_gpt.interop.family import families, name_of
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.interop.tensors import InPieces
from lightning_gpt.options import Length, NotNegative, Positive, Width

_LAYER = "model.layers.{layer}"


@families.register("gemma2")
class Gemma2(Llama):
    """Gemma Team 2024 (2408.00118)."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    inside = {
        **Llama.inside,
        "attention_out_norm": InPieces(f"{_LAYER}.post_attention_layernorm"),
        "ffn_norm": InPieces(f"{_LAYER}.pre_feedforward_layernorm"),
        "ffn_out_norm": InPieces(f"{_LAYER}.post_feedforward_layernorm"),
    }
    longest = 8192
    softcaps: ClassVar[tuple[float | None, float | None]] = 50.0, 30.0
    """The bounds of scores and of logits where the config does not name them; null there is no bound."""
    period: ClassVar[int] = 2
    """Every how many layers one sees everything, where the config does not say which."""

    def read(self, given: Settings) -> dict[str, Any]:
        width = given.get("head_dim", Width, 256)  # whatever the other sizes are
        tied = given.get("tie_word_embeddings", bool, True)
        given = Settings({**given.values, "head_dim": width, "tie_word_embeddings": tied})
        given.require("use_bidirectional_attention", None, False)
        return {
            **super().read(given),
            "norm": {"kind": "rms_plus_one", "eps": given.get("rms_norm_eps", NotNegative, self.eps)},
            "residual": "sandwich",
            "embedding_scale": math.sqrt(given.get("hidden_size", Width)),
            "logit_softcap": self._softcap(given, "final_logit_softcapping", self.softcaps[1]),
        }

    @staticmethod
    def _softcap(given: Settings, name: str, default: float | None) -> float | None:
        bound = given.get(name, Positive, None) if name in given.values else default
        return None if bound is None else float(bound)

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        attention = self.heads(
            given,
            bias=given.get("attention_bias", bool, False),
            score_width=float(given.get("query_pre_attn_scalar", Positive, 256)),
            softcap=self._softcap(given, "attn_logit_softcapping", self.softcaps[0]),
        )
        return windowed(attention, given.get("sliding_window", Length, 4096) if self.is_local(given, layer) else None)

    def is_local(self, given: Settings, layer: int) -> bool:
        """Whether a layer has a window."""
        kinds = given.get("layer_types", list[str], None)
        if kinds is None:
            return bool((layer + 1) % given.get("sliding_window_pattern", Length, self.period))
        return layer_kind(kinds, layer) == "sliding_attention"

    def read_ffn(self, given: Settings) -> dict[str, Any]:
        kind = GATED[given.require("hidden_activation", "gelu_pytorch_tanh", *GATED)]
        return {"kind": kind, "hidden": given.get("intermediate_size", Width)}

    def write_ffn(self, ffn: Expressed) -> dict[str, Any]:
        return {"hidden_activation": name_of(ffn["kind"], GATED), "intermediate_size": ffn["hidden"]}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        attention = ours["attention"][0]
        return {
            "attention_bias": attention["qkv_bias"],
            "query_pre_attn_scalar": whole(attention["score_width"]),
            "attn_logit_softcapping": attention["softcap"],
            "final_logit_softcapping": ours["logit_softcap"],
            **write_layer_types(ours),
        }


def write_layer_types(ours: Expressed) -> dict[str, Any]:
    """The published options that say which layers have a window, and how long it is."""
    windows = [attention.get("window") for attention in ours["attention"]]
    return {
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def whole(number: float) -> float:
    """A whole number without its decimal point, as configs have it."""
    return int(number) if number == int(number) else number
