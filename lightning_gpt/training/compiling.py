"""``torch.compile`` by block: one graph for all of them, and only where it is run thousands of times."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_gpt.models.block import Block


class CompiledBlocks:
    """The blocks of a model, compiled inside :meth:`training` and as they are elsewhere.

    Blocks of one kind are the same code with other weights, so that one is compiled for all. Validation, generation
    and recording run the blocks as they are: each of their shapes would be compiled anew for a few passes.

    Args:
        model: Whose :class:`~lightning_gpt.models.block.Block` parts are compiled when first run.
    """

    def __init__(self, model: nn.Module) -> None:
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._compiled = [(block, torch.compile(block.forward)) for block in blocks]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, the blocks run compiled."""
        for block, compiled in self._compiled:
            block.__dict__["forward"] = compiled
        try:
            yield
        finally:
            for block, _ in self._compiled:
                del block.__dict__["forward"]
