"""A trained model made deeper, as the function that it is."""

import dataclasses
from typing import Any

import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import blocks
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.registry import Choice, at_layer, readable

_MAY_DIFFER = {"n_layer", "dropout", "attention_backend", "checkpointing", "layer_drop", "zero_projections"}
"""What no weight of a trained block depends on."""


def deepen(model: GPT, n_layer: int) -> GPT:
    """A copy of ``model`` with ``n_layer`` blocks that is the same function; see :func:`grow`."""
    deep = type(model)(dataclasses.replace(model.config, n_layer=n_layer)).to(model.unembedding)
    grow(model, deep)
    return deep.train(model.training)


@torch.no_grad()
def grow(shallow: GPT, deep: GPT) -> None:
    """Give ``deep`` the trained blocks of ``shallow``, and above them new ones that add nothing yet.

    A new block has the weights of the block that stands as many layers below it as ``shallow`` has, where the two are
    of one kind, else those that it has. Its output projections become 0 (under ``rezero`` its numbers α), so it passes
    the stream on unchanged. These have a gradient from the first step on, its other weights from the second.

    That a deeper network may start as the function of a shallower one is from Net2Net, Chen et al. 2015 (1511.05641).
    Stacking copies of trained blocks is from Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"
    (ICML), and does not keep the function. Copies whose output projections are 0 are LLaMA Pro's, Wu et al. 2024
    (2401.02415), which sets them between the trained blocks. Here they stand above, so that a trained block keeps its
    number, and with it its place in a pattern of ``attention`` or ``ffn``.

    Raises:
        CallError: Where ``deep`` has no more layers, differs in anything else that weights depend on, or has no way to
            add a layer that changes nothing.
    """
    was, now = shallow.config, deep.config
    _check(vars(was), vars(now))
    weights = shallow.state_dict()
    for name, tensor in deep.state_dict().items():
        if name in weights:
            tensor.copy_(weights[name])
    for layer in range(was.n_layer, now.n_layer):
        block, below = deep.each_block()[layer], layer - was.n_layer
        alike = all(at_layer(part, layer) == at_layer(part, below) for part in (now.attention, now.ffn))
        routing = now.routing()
        routed = () if routing is None else routing.layers
        if alike and (layer in routed) == (below in routed):
            block.load_state_dict(deep.blocks[below].state_dict())
        block.zero_branches()  # it adds nothing, and still gets a gradient


def _check(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse what cannot start as the function that the shallow model is."""
    if now["n_layer"] <= was["n_layer"]:
        raise CallError(f"n_layer is {now['n_layer']}; to deepen a model it must be more than its {was['n_layer']}")
    differing = [key for key in was | now if key not in _MAY_DIFFER and was.get(key) != now.get(key)]
    if differing:
        said = ", ".join(
            f"{key} is {readable(was.get(key))} there and {readable(now.get(key))} here" for key in differing
        )
        raise CallError(f"a model grows from one that differs in its number of layers only: {said}")
    rule = now["residual"]
    assert isinstance(rule, Choice)
    if not blocks.get(rule.kind).zero_branches_pass:
        allowed = ", ".join(name for name in blocks.names if blocks.get(name).zero_branches_pass)
        raise CallError(
            f"residual is {rule.kind!r}, under which no layer leaves the stream as it is; "
            f"a model can be deepened under {allowed}"
        )
    if now["n_unique"] is not None:
        raise CallError(
            f"n_unique is {now['n_unique']}: a layer more would be one of the shared blocks, and change the function"
        )
