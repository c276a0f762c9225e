"""Allocates a model built on the meta device and initialises it as if it had been built on the real device.

A model too large for one device can thus be built and sharded before its weights are allocated. This relies on torch's
convention: every module with its own parameters or buffers initialises them in ``reset_parameters``, as its constructor
did.
"""

from collections.abc import Iterator

import torch
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel, models


def materialise(model: LanguageModel, device: torch.device | str) -> None:
    """Allocate ``model`` on ``device`` and initialise it; with the same seed, as if it had been built there.

    Raises:
        CallError: If a module has its own parameters or buffers but no ``reset_parameters``. The model is then
            unchanged.
    """
    parts = list(_in_order_of_making(model))
    for name, part in parts:
        if not callable(getattr(part, "reset_parameters", None)):
            raise CallError(
                f"{name or 'the model'} ({type(part).__name__}) has parameters or buffers of its own but no "
                f"reset_parameters method to initialise them; add one and call it in the constructor"
            )
    model.to_empty(device=device)
    for _, part in parts:
        part.reset_parameters()  # type: ignore[operator]
    model.init_all()


def outline(model: LanguageModel) -> LanguageModel:
    """The same model on the meta device: all its parts, without weights, also of a model that has only some of them."""
    with torch.device("meta"):
        return models.build(model.describe())


def _in_order_of_making(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules to initialise, by name, children first: the order in which constructors ran."""
    yield from _after_children(module, "", set())


def _after_children(module: nn.Module, name: str, met: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if module in met:
        return
    met.add(module)
    for child_name, child in module.named_children():
        yield from _after_children(child, f"{name}.{child_name}".lstrip("."), met)
    if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
        yield name, module
