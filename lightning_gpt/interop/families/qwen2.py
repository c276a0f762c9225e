"""Qwen 2 and 2.5: Llama with biases for queries, keys and values, and windows in some layers."""

from typing import Any

from lightning_gpt.interop.families.llama import Llama
from lightning_gpt.interop.families.mistral import window_or, windowed
from lightning_gpt.interop.family import families
from lightning_gpt.interop.settings import Expressed, Settings
from lightning_gpt.options import Index


@families.register("qwen2")
class Qwen2(Llama):
    """Yang et al. 2024 (2407.10671)."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    longest = 32768

    def read_attention(self, given: Settings, layer: int) -> dict[str, Any]:
        return windowed(self.biased(given), window_of(given, layer))

    def biased(self, given: Settings) -> dict[str, Any]:
        """The attention without its window."""
        return self.heads(given, qkv_bias=True, output_bias=False)

    def write_more(self, ours: Expressed) -> dict[str, Any]:
        return write_windows(ours)


def layer_kind(kinds: list[str], layer: int) -> str:
    """What ``layer_types`` says of a layer.

    Raises:
        CallError: It is neither of the two kinds that there are.
    """
    name = f"layer_types of layer {layer}"
    known = Settings({name: kinds[layer] if layer < len(kinds) else None})
    kind: str = known.require(name, "full_attention", "sliding_attention")
    return kind


def window_of(given: Settings, layer: int) -> int | None:
    """The window of a layer; None where it sees everything."""
    if not given.get("use_sliding_window", bool, False):
        return None
    window = window_or(given, 4096)
    kinds = given.get("layer_types", list[str], None)
    if kinds is None:
        return window if layer >= given.get("max_window_layers", Index, 28) else None
    return window if layer_kind(kinds, layer) == "sliding_attention" else None


def write_windows(ours: Expressed) -> dict[str, Any]:
    """The published options of the windows."""
    windows = [attention.get("window") for attention in ours["attention"]]
    first = next((layer for layer, window in enumerate(windows) if window is not None), len(windows))
    return {
        "use_sliding_window": first < len(windows),
        "sliding_window": windows[first] if first < len(windows) else None,
        "max_window_layers": first,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }
