"""A model that was made on the meta device gets memory on a real one, and the weights that it would have had there.

So a model too large for one device can be made, cut and only then filled. It rests on torch's own convention: every
module that has parameters or buffers of its own fills them in ``reset_parameters``, as its constructor did.
"""

from collections.abc import Iterator

import torch
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel


def materialise(model: LanguageModel, device: torch.device | str) -> None:
    """Give ``model`` memory on ``device`` and fill it: after a seed, as if the model had been made there after it.

    Raises:
        CallError: Where a module has parameters or buffers of its own and no ``reset_parameters``. The model is then
            as it was.
    """
    parts = list(_in_order_of_making(model))
    for name, part in parts:
        if not callable(getattr(part, "reset_parameters", None)):
            raise CallError(
                f"{name or 'the model'} ({type(part).__name__}) has parameters or buffers of its own and no "
                f"reset_parameters to fill them with; give it one, which its constructor calls"
            )
    model.to_empty(device=device)
    for _, part in parts:
        part.reset_parameters()  # type: ignore[operator]
    model.init_all()


def _in_order_of_making(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that have something to fill, by name, each after its children: the order of their constructors."""
    yield from _after_children(module, "", set())


def _after_children(module: nn.Module, name: str, met: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if module in met:
        return
    met.add(module)
    for child_name, child in module.named_children():
        yield from _after_children(child, f"{name}.{child_name}".lstrip("."), met)
    if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
        yield name, module
