"""Mistral: Llama with a window."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.options import Length


@families.register("mistral")
class Mistral(Llama):
    """Jiang et al. 2023 (2310.06825)."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    longest = 131072

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        # in transformers a config that does not say has a window of 4,096, and one that says null has none
        window = given.get("sliding_window", Length, None) if "sliding_window" in given.values else 4096
        return windowed(self.heads(given, bias=False), window)

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"sliding_window": ours["attention"][0].get("window")}


def windowed(attention: dict[str, Any], window: int | None) -> dict[str, Any]:
    """An attention whose tokens see that many tokens back; all of them if None."""
    return attention if window is None else {**attention, "kind": "window", "window": window}
