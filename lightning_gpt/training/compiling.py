"""``torch.compile`` block by block, for training steps only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_gpt.models import GPT
from lightning_gpt.models.layer import Absent


class CompiledBlocks:
    """The blocks of a model, compiled inside :meth:`training` and uncompiled elsewhere.

    Blocks of one kind run the same code on different weights, so one compiled graph serves them all. Validation,
    generation and recording stay uncompiled: each of their shapes would be compiled anew for only a few passes.

    Args:
        model: The model; its blocks are compiled on their first run.
    """

    def __init__(self, model: GPT) -> None:
        self._model = model
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] | None = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, the blocks run compiled."""
        if self._compiled is None:  # not before, because a layout may take blocks out
            held = [each for each in self._model.each_block() if not isinstance(each, Absent)]
            blocks = dict.fromkeys(each.unwrapped for each in held)  # one that layers share is compiled once
            self._compiled = [(block, torch.compile(block.forward)) for block in blocks]
        for block, compiled in self._compiled:
            block.__dict__["forward"] = compiled
        try:
            yield
        finally:
            for block, _ in self._compiled:
                del block.__dict__["forward"]
