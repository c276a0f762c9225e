"""Makes a trained model deeper without changing its function."""

import dataclasses
from typing import Any

import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import blocks
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.registry import Choice, at_layer, differences

_MAY_DIFFER = {"n_layer", "dropout", "attention_backend", "checkpointing", "layer_drop", "zero_projections"}
"""Config fields on which no weight of a trained block depends."""


def deepen(model: GPT, n_layer: int) -> GPT:
    """A copy of ``model`` with ``n_layer`` blocks that computes the same function; see :func:`grow`."""
    deep = type(model)(dataclasses.replace(model.config, n_layer=n_layer)).to(model.unembedding)
    grow(model, deep)
    return deep.train(model.training)


@torch.no_grad()
def grow(shallow: GPT, deep: GPT) -> None:
    """Copy the trained blocks of ``shallow`` into ``deep``; the blocks above them start as the identity.

    With n layers in ``shallow``, the new block of layer i copies the block of layer ``i − n`` if both are of one kind;
    otherwise it keeps its own weights. Its output projections become 0 (under ``rezero``, its scalars α), so it passes
    the stream on unchanged. These receive gradients from the first step on, its other weights from the second.

    Starting a deeper network as the same function as a shallower one is due to Net2Net, Chen et al. 2015 (1511.05641).
    Stacking copies of trained blocks is due to Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"
    (ICML); it does not preserve the function. LLaMA Pro, Wu et al. 2024 (2401.02415), uses copies with zero output
    projections and inserts them between the trained blocks. Here they go on top, so that a trained block keeps its
    index, and with it its place in a pattern of ``attention`` or ``ffn``.

    Raises:
        CallError: If ``deep`` does not have more layers, differs in another setting that weights depend on, or cannot
            have identity layers.
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
        block.zero_branches()  # it adds nothing, but still receives a gradient


def _check(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a CallError if the deep model cannot start as the function of the shallow one."""
    if now["n_layer"] <= was["n_layer"]:
        raise CallError(f"n_layer is {now['n_layer']}; to deepen a model it must be more than its {was['n_layer']}")
    if said := differences(was, now, _MAY_DIFFER):
        raise CallError(f"a model can only be grown from one that differs only in its number of layers: {said}")
    rule = now["residual"]
    assert isinstance(rule, Choice)
    if not blocks.get(rule.kind).zero_branches_pass:
        allowed = ", ".join(name for name in blocks.names if blocks.get(name).zero_branches_pass)
        raise CallError(
            f"residual is {rule.kind!r}, under which no layer can be the identity; "
            f"a model can be deepened under {allowed}"
        )
    if now["loop"] is not None:
        raise CallError("with loop an added layer would be one of the shared blocks and change the function")
    if now["n_unique"] is not None:
        raise CallError(
            f"n_unique is {now['n_unique']}: an added layer would be one of the shared blocks and change the function"
        )
