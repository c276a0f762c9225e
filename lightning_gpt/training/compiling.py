"""``torch.compile`` by block: one graph for all of them, and only where it is run thousands of times."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_gpt.models import GPT


class CompiledBlocks:
    """The blocks of a model, compiled inside :meth:`training` and as they are elsewhere.

    Blocks of one kind are the same code with other weights, so that one is compiled for all. Validation, generation
    and recording run the blocks as they are: each of their shapes would be compiled anew for a few passes.

    Args:
        model: Whose blocks are compiled when first run.
    """

    def __init__(self, model: GPT) -> None:
        self._compiled = [
            (block, torch.compile(block.forward))
            for block in dict.fromkeys(each.unwrapped for each in model.each_block())
        ]

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
