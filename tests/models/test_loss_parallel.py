"""The fused loss in two processes, replicated (DDP) and sharded (FSDP2), against one process on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from lightning_gpt.models import GPT, GPTConfig

class Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, ids, targets):
        return self.model.loss(ids, targets, z_loss=1e-3)

layout, tied, rank = sys.argv[1], sys.argv[2] == "tied", int(os.environ["RANK"])
torch.manual_seed(0)
def build():
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=2, n_head=2, dim=16, block_size=12, vocab_size=101, tie_embeddings=tied))
ids = torch.randint(101, (4, 12)); targets = ids.roll(-1, 1)
alone = build()
alone.loss(ids, targets, z_loss=1e-3).backward()
expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
dist.init_process_group("gloo")
mine = slice(2 * rank, 2 * rank + 2)
model = build()
if layout == "ddp":
    replicated = DistributedDataParallel(Loss(model))
    replicated(ids[mine], targets[mine]).backward()
else:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    model.loss(ids[mine], targets[mine], z_loss=1e-3).backward()
for name, parameter in model.named_parameters():
    grad = parameter.grad.full_tensor() if layout == "fsdp" else parameter.grad
    torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # what gloo's threads do while the interpreter takes itself apart is not what is tested
"""


@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one(layout: str, tied: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run([*command, layout, tied], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
