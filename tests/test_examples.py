"""The examples run as they stand, with fewer steps."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPT, GPTConfig
from tests.processes import environment, must_run

MANY_DEVICES = Path(__file__).parents[1] / "examples/many_devices"
STEPS = 3


def losses(folder: Path, layout: str | None) -> list[float]:
    """The losses of the example's training in a layout."""
    chosen = () if layout is None else ("--config", str(MANY_DEVICES / f"{layout}.yaml"))
    short = ("--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1", "--name", layout or "one")
    must_run("fit", "--config", str(MANY_DEVICES / "training.yaml"), *chosen, *short, cwd=folder)
    lines = (folder / f"runs/{layout or 'one'}/version_0/metrics.jsonl").read_text().splitlines()
    return [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]


def test_a_layout_changes_no_loss(tmp_path: Path) -> None:
    alone = losses(tmp_path, None)
    assert len(alone) == STEPS
    for layout in ("fsdp", "pipeline_data"):
        assert losses(tmp_path, layout) == pytest.approx(alone, rel=1e-5)


def test_each_layout_is_one_line_and_in_the_table() -> None:
    page = (MANY_DEVICES / "README.md").read_text()
    layouts = sorted(file for file in MANY_DEVICES.glob("*.yaml") if file.stem != "training")
    assert len(layouts) == 3
    for file in layouts:
        assert len(file.read_text().splitlines()) == 1
        assert f"| `{file.name}` |" in page


def test_the_public_interface_trains_loads_and_generates(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples/python/train_and_generate.py"
    command = [sys.executable, str(script), str(STEPS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loss, attention = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"loss \d+\.\d+ nats", loss)
    assert "(1, 2, " in attention
    assert "The city was founded" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="nnsight is not installed")
def test_nnsight_reads_and_patches_what_record_does(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples/nnsight/read_and_patch.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moved = re.search(r"moves the logits by up to ([\d.]+)", done.stdout)
    assert moved
    assert float(moved[1]) > 0


@pytest.mark.skipif(importlib.util.find_spec("transformer_lens") is None, reason="transformer_lens is not installed")
def test_transformer_lens_reads_what_convert_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, dim=32, block_size=32, vocab_size=50257))
    content = {
        "lightning_gpt_model": model.describe(),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "TextData": {"tokenizer": Tokenizer.gpt2().state_dict()},
        "global_step": 0,
    }
    write_checkpoint(content, tmp_path / "model.ckpt")
    must_run("convert", "--source", "model.ckpt", "--output", "published", cwd=tmp_path)
    script = Path(__file__).parents[1] / "examples/transformer_lens/read_converted.py"
    command = [sys.executable, str(script), "published"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attention of layer 0: largest difference" in done.stdout
