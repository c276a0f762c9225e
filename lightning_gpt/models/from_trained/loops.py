"""Another number of loops for a trained model."""

from dataclasses import replace

import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import blocks
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.registry import plain
from lightning_gpt.options import Depth, check_option


@torch.no_grad()
def with_loops(model: GPT, n_loop: Depth) -> GPT:
    """A copy of ``model`` whose loop runs ``n_loop`` times, with the same weights.

    More loops at inference than in training: Geiping et al. 2025 (2502.05171), section 5. Steps beyond the trained ones
    have the embedding of the last.

    Raises:
        CallError: If the model has no loop, or its residual rule depends on the number of layers.
    """
    check_option("n_loop", n_loop, Depth)
    looping = model.config.looping()
    if looping is None:
        raise CallError("the model has no loop: train one with loop recurrent_depth")
    if blocks.get(blocks.require(model.config.residual).kind).knows_depth:
        raise CallError(
            f"residual {model.config.residual} has the number of layers in its formula: with other loops the trained "
            f"weights are another function"
        )
    loop = {**plain(model.config.loop), "n_step": looping.n_step}
    n_layer = looping.prelude + looping.core * n_loop + looping.coda
    other = type(model)(replace(model.config, n_layer=n_layer, loop=loop)).to(model.unembedding)
    weights, found = model.state_dict(), {}
    own = {looping.block_of(layer): layer for layer in range(model.config.n_layer)}
    for name in other.state_dict():
        start, _, rest = name.removeprefix("blocks.").partition(".")
        block = f"blocks.{own[other.config.own_block(int(start))]}.{rest}" if name.startswith("blocks.") else name
        found[name] = weights[block]
    other.load_state_dict(found)
    return other.train(model.training)
