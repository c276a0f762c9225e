"""Fewer layers that stand for all layers of a deep model."""

from dataclasses import replace
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import blocks
from lightning_gpt.models.config import GPTConfig
from lightning_gpt.models.registry import at_layer


def shallow(config: Any) -> tuple[Any, list[int]]:
    """The config of a less deep model whose layers are those of ``config``, and which of them each layer is.

    Layers repeat with a period, because patterns of attention and feed-forward networks do. The first and the last
    period are traced as they are, since what layers share is made in the first; one in between stands for all others.
    The list is empty where every layer has to be traced.
    """
    if not isinstance(config, GPTConfig) or config.n_unique is not None or config.loop is not None:
        return config, []
    kinds, depth = layer_kinds(config), config.n_layer
    period = next(p for p in range(1, depth + 1) if kinds[p:] == kinds[:-p] or p == depth)
    ending = period + depth % period
    traced = 2 * period + ending
    if depth <= traced:
        return config, []
    places = [
        layer if layer < period else traced - depth + layer if layer >= depth - ending else period + layer % period
        for layer in range(depth)
    ]
    try:
        smaller = replace(config, n_layer=traced)
    except CallError:  # routers are in layers that are named, which the smaller model has not
        return config, []
    found = layer_kinds(smaller)
    return (smaller, places) if [found[place] for place in places] == kinds else (config, [])


def layer_kinds(config: Any) -> list[Any]:
    """What tells the layers of a model apart; empty for a config that does not say."""
    if not isinstance(config, GPTConfig):
        return []
    routing, rule = config.routing(), blocks.get(blocks.require(config.residual).kind)
    return [
        (
            at_layer(config.attention, layer),
            at_layer(config.ffn, layer),
            routing is not None and layer in routing.layers,
            layer if rule.looks_back else None,
        )
        for layer in range(config.n_layer)
    ]
