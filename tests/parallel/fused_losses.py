"""The gradients of the fused loss in two processes against one: cases for :mod:`tests.parallel.world`."""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lightning_gpt.models import GPT, GPTConfig


class _Loss(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(ids, targets, z_loss=1e-3)


def gradients(layout: str, tied: bool) -> dict[str, float]:
    """The largest difference from the gradients of the joined batch, and the largest of those.

    Args:
        layout: ``ddp``, weights replicated, or ``fsdp``, weights sharded by FSDP2.
        tied: Whether the ends of the model are tied.
    """

    def build() -> GPT:
        torch.manual_seed(0)
        return GPT(GPTConfig(n_layer=2, n_head=2, dim=16, block_size=12, vocab_size=101, tie_embeddings=tied))

    alone, model = build(), build()
    ids = torch.randint(101, (4, 12))
    targets = ids.roll(-1, 1)
    alone.loss(ids, targets, z_loss=1e-3).backward()
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    if layout == "ddp":
        replicated = DistributedDataParallel(_Loss(model))  # the mean is taken as long as it lives
        replicated(ids[mine], targets[mine]).backward()
    else:
        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")
        model.loss(ids[mine], targets[mine], z_loss=1e-3).backward()
    found = {"difference": 0.0, "largest": 0.0}
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        whole = ours.grad.full_tensor() if isinstance(ours.grad, DTensor) else ours.grad
        found["difference"] = max(found["difference"], float((whole - theirs.grad).abs().max()))
        found["largest"] = max(found["largest"], float(theirs.grad.abs().max()))
    return found


LAYOUTS = ("ddp", "fsdp")
CASES = {2: {f"{layout} {tied}": partial(gradients, layout, tied) for layout in LAYOUTS for tied in (True, False)}}
