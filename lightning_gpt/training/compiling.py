"""``torch.compile`` block by block, for training steps only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_gpt.models.block import Block


class CompiledBlocks:
    """The blocks of a model, compiled inside :meth:`training` and uncompiled elsewhere.

    Blocks of one kind run the same code on different weights, so one compiled graph serves them all. Validation,
    generation and recording stay uncompiled: each of their shapes would be compiled anew for only a few passes.

    Args:
        model: The model whose :class:`~lightning_gpt.models.block.Block` parts are compiled on their first run.
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
