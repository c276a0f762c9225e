"""How the layers of a GPT are run: each block with the wrappers its config asks for."""

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import Block
from lightning_gpt.models.config import GPTConfig
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.wrappers.checkpointing import Checkpointed, Runner
from lightning_gpt.models.wrappers.layer_drop import DroppedAtTimes, layer_drops
from lightning_gpt.models.wrappers.loop import BeginsLoop, Injection
from lightning_gpt.models.wrappers.shared import NamedLayer
from lightning_gpt.models.wrappers.token_routing import RoutedBlock


def run_layers(
    model: Layer, config: GPTConfig, blocks: list[Block | RoutedBlock], injection: Injection | None
) -> list[Runner]:
    """The runner of each layer of ``model``, in order.

    Args:
        model: The GPT.
        config: Its config.
        blocks: The block of each layer; a shared block is listed once per layer.
        injection: What each loop begins with, if there is a loop.

    Raises:
        CallError: If the blocks have a stream that a loop cannot feed its input into.
    """
    looping = config.looping()
    if looping is not None and blocks[0].unwrapped.n_stream > 1:
        raise CallError(f"loop and residual {config.residual} cannot be combined: a loop has one copy of the stream")
    drop = layer_drops.make_if_chosen(config.layer_drop, n_layer=config.n_layer)
    layers: list[Runner] = []
    for layer, block in enumerate(blocks):
        run: Runner = block if config.n_unique is None and looping is None else NamedLayer(model, block, layer)
        if config.checkpointing == "attention":
            block.unwrapped.around_attention = Checkpointed  # type: ignore[assignment]
        elif config.checkpointing == "block" and block.unwrapped is block:
            run = Checkpointed(run)  # type: ignore[arg-type]
        elif config.checkpointing == "block":
            block.run = Checkpointed(block.unwrapped)  # inside the routing, so that the tokens are chosen only once
        step = None if looping is None else looping.begins(layer)
        if step is not None:
            assert injection is not None
            run = BeginsLoop(run, injection, step)
        layers.append(run if drop is None else DroppedAtTimes(run, block, layer, drop))
    return layers
