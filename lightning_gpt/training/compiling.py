"""``torch.compile`` block by block, for training steps only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_gpt.models import GPT


class CompiledBlocks:
    """The blocks of a model, compiled inside :meth:`training` and uncompiled elsewhere.

    Blocks of one kind run the same code on different weights, so one compiled graph serves them all. Validation,
    generation and recording stay uncompiled: each of their shapes would be compiled anew for only a few passes.

    Args:
        model: The model; its blocks are compiled on their first run.
    """

    def __init__(self, model: GPT) -> None:
        blocks = dict.fromkeys(each.unwrapped for each in model.each_block())  # one that layers share is compiled once
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
