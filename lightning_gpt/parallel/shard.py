"""Weights, gradients and optimizer state divided over the processes of a mesh: FSDP2, block by block.

Zhao et al. 2023, "PyTorch FSDP" (2304.11277), in the second version of torch (``fully_shard``): each parameter is cut
along its rows, gathered before the block that needs it and freed after it. With copies of the model on more than one
group of processes it is hybrid sharding (section 3.2.2). One engine serves every layout: a mesh whose shard axis is 1
holds whole weights and only averages gradients.
"""

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from lightning_gpt.models import LanguageModel
from lightning_gpt.parallel.layout import Axis
from lightning_gpt.parallel.mesh import Mesh

REPLICAS: tuple[Axis, ...] = ("data", "expert", "context")
"""The axes whose processes hold copies of a dense parameter and see different tokens."""


def replicated_and_sharded(mesh: Mesh, replicas: tuple[Axis, ...] = REPLICAS) -> DeviceMesh:
    """The two axes over which parameters are copied and divided, as :func:`shard` takes them.

    Args:
        mesh: The mesh of the layout.
        replicas: The axes whose processes hold copies of the parameters.
    """
    copies = mesh.several(replicas, "_".join(replicas))
    # torch has no public way to join axes of one mesh into a mesh of two; its own hybrid sharding does it so
    return DeviceMesh._concatenate([copies, mesh.axis("shard")])


def shard_units(model: LanguageModel) -> list[nn.Module]:
    """The modules whose parameters are gathered together: the blocks that are called as one, each once."""
    views = [view.parts for view in model.block_views()]
    return list(dict.fromkeys(parts[0] for parts in views if len(parts) == 1))


def shard(model: LanguageModel, mesh: Mesh, units: Iterable[nn.Module] | None = None) -> None:
    """Divide the parameters of a model over the shard axis of a mesh, in place.

    Args:
        model: The model, with the same weights in every process; its tensor-parallel parameters are DTensors already.
        mesh: The mesh of the layout.
        units: What is gathered together; :func:`shard_units` if None.
    """
    both = replicated_and_sharded(mesh)
    pinned = mesh.devices.device_type != "cpu"
    offload = CPUOffloadPolicy(pin_memory=pinned) if mesh.layout.offload else OffloadPolicy()
    for unit in shard_units(model) if units is None else units:
        fully_shard(unit, mesh=both, reshard_after_forward=mesh.layout.reshard, offload_policy=offload)
    # what is left, the embeddings and the head, is used at both ends of a pass: it stays gathered in between
    fully_shard(model, mesh=both, reshard_after_forward=False, offload_policy=offload)
    for name in ("loss", "token_nll"):
        register_fsdp_forward_method(model, name)


def reshard(model: nn.Module) -> None:
    """Free what a pass without a backward pass has left gathered; does nothing to a model that is not sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def send_from_first(module: nn.Module, mesh: Mesh) -> None:
    """Give every process the weights and buffers of the first one."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        sent = tensor.detach().to(mesh.devices.device_type)
        dist.broadcast(sent, src=0)
        tensor.detach().copy_(sent)
