"""Mistral: Llama with a window."""

from typing import Any, ClassVar

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
    default_window: ClassVar[int | None] = 4096
    """The window, in tokens, of a config that does not say; None there is no window."""

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        return windowed(self.heads(given, bias=False), window_or(given, self.default_window))

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return {"sliding_window": ours["attention"][0].get("window")}


def window_or(given: Settings, default: int | None) -> int | None:
    """The config's ``sliding_window``, in tokens: ``default`` where it does not say, and none where it says null."""
    return given.get("sliding_window", Length, None) if "sliding_window" in given.values else default


def windowed(attention: dict[str, Any], window: int | None) -> dict[str, Any]:
    """An attention whose tokens see that many tokens back; all of them if None."""
    return attention if window is None else {**attention, "kind": "window", "window": window}
