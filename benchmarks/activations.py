"""How many bytes a forward pass of our model keeps for the backward pass."""

import re

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from benchmarks import peers
from benchmarks.workload import Spec
from lightning_gpt.models.base import LanguageModel


def kept_bytes(spec: Spec) -> int:
    """Bytes of all arrays kept for the backward pass of the blocks, without weights and ids.

    Counted, not measured: each array saved in the graph, once, and the inputs that checkpointed blocks keep. The fused
    loss keeps nothing else of the size of activations.
    """
    subject = peers.build(spec)
    assert isinstance(subject.model, LanguageModel)
    return bytes_kept_by(subject.model, subject.ids)


def bytes_kept_by(model: LanguageModel, ids: Tensor) -> int:
    """The same for a given model and one batch of ids ``(batch, time)``."""
    kept: dict[int, int] = {}
    not_activations = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    not_activations.add(ids.untyped_storage().data_ptr())

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_activations:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(module: nn.Module, inputs: tuple[object, ...]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                pack(value)

    # a checkpointed part saves nothing in the graph, but its inputs are kept to run it again
    part = {"none": None, "block": r"blocks\.\d+", "attention": r"blocks\.\d+\.attention"}[model.config.checkpointing]
    again = [module for name, module in model.named_modules() if part is not None and re.fullmatch(part, name)]
    handles = [module.register_forward_pre_hook(enter) for module in again]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.hidden(ids)
    finally:
        for handle in handles:
            handle.remove()
    assert isinstance(hidden.grad_fn, Node)
    return sum(kept.values())
