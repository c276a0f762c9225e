"""Weights and optimizer state saved by real processes in one layout, and loaded by others in another."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.checkpoint_folder import Saved, read_saved, without_tensors
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.parallel import state
from lightning_gpt.parallel.checkpoints import LayoutCheckpoints
from lightning_gpt.parallel.packed import Piece
from lightning_gpt.saving import BackgroundSaves
from lightning_gpt.training.named_states import name_states
from lightning_gpt.whole_file import previous_of

PIECES = {
    f"up.{name}_{number}": Piece(f"up.{name}", 0, start, length)
    for name in ("weight", "bias")
    for number, (start, length) in enumerate([(0, 4), (4, 6)])
}
STEPS = 3


class Whole(nn.Module):
    """A fused matrix, [4 rows | 6 rows], and a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 10)
        self.down = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


class Fused(nn.Module):
    """The fused matrix by its pieces."""

    def __init__(self, up: nn.Linear) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            for number, part in enumerate(getattr(up, name).detach().split([4, 6])):
                self.register_parameter(f"{name}_{number}", nn.Parameter(part.clone()))

    def forward(self, x: Tensor) -> Tensor:
        parts = [[getattr(self, f"{name}_{number}") for number in (0, 1)] for name in ("weight", "bias")]
        weight, bias = (torch.cat([p.full_tensor() if isinstance(p, DTensor) else p for p in each]) for each in parts)
        return nn.functional.linear(x, weight, bias)


def built(layout: str) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, state.Origin]]:
    """The model with the weights of seed 0 in a layout, its optimizer, and where its pieces are."""
    torch.manual_seed(0)
    model: nn.Module = Whole().double()
    origins = {}
    if layout != "plain":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if layout in ("pieces", "pieces cut"):
        model.up = Fused(model.up)
        origins = state.origins_of(model.state_dict(), PIECES)
    if layout == "pieces cut":  # as the tensor axis cuts them
        for name, parameter in list(model.up.named_parameters()):
            setattr(model.up, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    elif layout in ("sharded", "pieces"):
        for unit in (model.down, model):
            fully_shard(unit, mesh=mesh)
    together = layout != "pieces cut"  # DTensors and plain tensors cannot be updated in one call
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=together, foreach=False)
    name_states(optimizer, model.named_parameters)
    return model, optimizer, origins


def content_of(model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> dict[str, Any]:
    return {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], **more}


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, first: int) -> list[float]:
    """Of some steps, whose data every process has."""
    found = []
    for step in range(first, first + STEPS):
        torch.manual_seed(step)
        loss = model(torch.randn(8, 5, dtype=torch.float64)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, origins: dict[str, state.Origin]) -> None:
    saved = Saved(path)
    names = {p: origins[n].name if n in origins else n for n, p in model.named_parameters()}
    state.materialise(optimizer, names, saved)
    state.load(saved, state.boxes_of(content_of(model, optimizer), origins))


def in_processes(work: Callable[..., None], count: int, *args: Any) -> None:
    """Run ``work(*args)`` in ``count`` processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_in_group, (count, port, work, args), nprocs=count, start_method="fork")


def _in_group(rank: int, count: int, port: int, work: Callable[..., None], args: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        work(*args)
    finally:
        dist.destroy_process_group()


LAYOUTS = ("sharded", "pieces", "pieces cut")


def save_each(folder: Path) -> None:
    """Save in each layout after some steps, in the background of the next ones."""
    group = dist.new_group(backend="gloo")
    for layout in LAYOUTS:
        model, optimizer, origins = built(layout)
        losses(model, optimizer, 0)
        content = content_of(model, optimizer, global_step=STEPS)
        saves, path = BackgroundSaves(), folder / layout
        saves.write(
            lambda given, path=path: state.save(*given, path, group),  # type: ignore[misc]
            (state.boxes_of(content, origins), without_tensors(content)),
        )
        losses(model, optimizer, STEPS)
        saves.wait()


def load_each(folder: Path, expected: list[float]) -> None:
    for saved in (*LAYOUTS, "file.ckpt"):
        for layout in LAYOUTS:
            model, optimizer, origins = built(layout)
            for parameter in model.parameters():
                parameter.detach().zero_()
            load(folder / saved, model, optimizer, origins)
            assert losses(model, optimizer, STEPS) == pytest.approx(expected, abs=1e-12, rel=0), (saved, layout)


def refuse(folder: Path) -> None:
    """What is wrong is raised in every process, where one reads or writes it."""
    rank = dist.get_rank()
    model, optimizer, origins = built("sharded")
    with pytest.raises(CallError, match=r"has different tensors from this run: missing: down.bias; not expected: y$"):
        load(folder / "other.ckpt", model, optimizer, origins)
    with pytest.raises(CallError, match=r"-1.ckpt' \([\d,]+ bytes\) is corrupt: its checksum is wrong"):
        load(folder / "flipped", model, optimizer, origins)
    losses(model, optimizer, 0)
    content = content_of(model, optimizer, global_step=STEPS)
    boxes, path = state.boxes_of(content, origins), folder / "kept"
    state.save(boxes, without_tensors(content), path)
    before = sorted(file.name for file in path.iterdir())
    write, whole = state.FolderWriter.write_data, None
    if rank == 1:

        def full(*args: Any) -> Any:
            raise WorkError("the disk is full")

        state.FolderWriter.write_data = full  # type: ignore[method-assign]
    with pytest.raises(WorkError, match="the disk is full"):
        state.save(boxes, without_tensors(content), path)
    state.FolderWriter.write_data = write  # type: ignore[method-assign]
    if rank == 0:
        whole = read_saved(path)
        assert whole["global_step"] == STEPS
        assert set(before) <= {file.name for file in path.iterdir()}
    checkpoints = LayoutCheckpoints()
    checkpoints.meet()
    for part in ("state_dict", "current_model_state"):
        wrong = {"state_dict": {}, "global_step": 4, part: {"x": torch.tensor([float("nan") if rank else 0.0])}}
        with pytest.raises(
            WorkError, match=r"the weights of step 4 are not finite \(x\): they are not saved in .*kept"
        ):
            checkpoints.save(wrong, path, model, {})
    checkpoints.save(content, folder / "one.ckpt", model, {})
    if rank == 0:
        assert read_saved(folder / "one.ckpt")["global_step"] == STEPS
        assert previous_of(folder / "one.ckpt").is_file(), "what one process has saved stays as the one before"
    state.save(boxes, {**without_tensors(content), "global_step": 9}, path)
    if rank == 0:
        assert read_saved(path)["global_step"] == 9
        assert len(list(path.iterdir())) == len(before), "what the failed save has left is removed"


def test_any_layout_loads_what_any_other_has_saved(tmp_path: Path) -> None:
    """Sharded, by pieces, and by pieces that are cut; by 2 and 3 processes, as a folder and as a file."""
    model, optimizer, _ = built("plain")
    losses(model, optimizer, 0)
    write_checkpoint(content_of(model, optimizer, global_step=STEPS), tmp_path / "file.ckpt")
    expected = losses(model, optimizer, STEPS)

    in_processes(save_each, 2, tmp_path)
    file = read_checkpoint(tmp_path / "file.ckpt")
    for layout in LAYOUTS:
        whole = read_saved(tmp_path / layout)
        assert whole["state_dict"].keys() == file["state_dict"].keys()
        assert all(value.shape == whole["state_dict"][name].shape for name, value in file["state_dict"].items())
        model, optimizer, _ = built("plain")
        model.load_state_dict(whole["state_dict"])
        optimizer.load_state_dict(whole["optimizer_states"][0])
        assert losses(model, optimizer, STEPS) == pytest.approx(expected, abs=1e-12, rel=0), layout
    in_processes(load_each, 3, tmp_path, expected)


def test_what_cannot_be_loaded_or_saved_is_refused_by_all(tmp_path: Path) -> None:
    model, optimizer, _ = built("plain")
    losses(model, optimizer, 0)
    content = content_of(model, optimizer, global_step=STEPS)
    other = {name: value for name, value in content["state_dict"].items() if name != "down.bias"}
    write_checkpoint({**content, "state_dict": {**other, "y": torch.zeros(2)}}, tmp_path / "other.ckpt")
    write_checkpoint(content, tmp_path / "one.ckpt")
    in_processes(save_each, 2, tmp_path)
    (tmp_path / "sharded").rename(tmp_path / "flipped")
    file = next((tmp_path / "flipped").glob("*-1.ckpt"))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    in_processes(refuse, 2, tmp_path)
