"""Granite 3: Llama with multipliers of embeddings, scores, branches and logits."""

import math
from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.options import Positive


@families.register("granite")
class Granite(Llama):
    """Shen et al. 2024 (2408.13359), whose PowerLM has this form, too."""

    model_type = "granite"
    architecture = "GraniteForCausalLM"

    def read(self, given: Settings) -> dict[str, Any]:
        return {
            **super().read(given),
            "residual": {"kind": "multiplied", "factor": _multiplier(given, "residual_multiplier")},
            "embedding_scale": _multiplier(given, "embedding_multiplier"),
            "logit_divisor": _multiplier(given, "logits_scaling"),
        }

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        attention = super().read_attention(given, layer)
        return {**attention, "score_width": width_of(_multiplier(given, "attention_multiplier"))}

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {
            **super().write_more(ours),
            "residual_multiplier": ours["residual"]["factor"],
            "embedding_multiplier": ours["embedding_scale"],
            "logits_scaling": ours["logit_divisor"],
            "attention_multiplier": factor_of(ours["attention"][0]["score_width"]),
        }


def _multiplier(given: Settings, name: str) -> float:
    return float(given.get(name, Positive, 1.0))


def width_of(factor: float) -> float:
    """The d for which scores are multiplied by ``1/√d``; a whole number where that is the same but for rounding."""
    width = factor**-2.0
    whole = float(round(width))
    return whole if math.isclose(width, whole, rel_tol=1e-15) else width


def factor_of(width: float) -> float:
    """The factor whose :func:`width_of` this is, or the closest to it."""
    factor = 1 / math.sqrt(width)
    near = (factor, math.nextafter(factor, 0.0), math.nextafter(factor, math.inf))
    return next((each for each in near if width_of(each) == width), factor)
