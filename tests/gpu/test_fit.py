"""Real trainings on the device by the command."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import COMMAND, environment, tiny_config, tiny_corpus, write_config

MIXED = {"precision": "bf16-mixed"}


def fit(folder: Path, name: str, trainer: dict[str, Any], model: dict[str, Any], *options: str) -> list[float]:
    """Train and return the logged losses."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        tiny_corpus(corpus)
    config = tiny_config(corpus, **{"accelerator": "gpu", "log_every_n_steps": 5, "val_check_interval": 10, **trainer})
    config["name"] = name
    config["model"]["init_args"].update(model)
    path = write_config(folder / f"{name}.yaml", config)
    command = [*COMMAND, "fit", "--config", str(path), *options]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    metrics = sorted((folder / "runs" / name).rglob("metrics.jsonl"))[-1]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        ({"precision": "32-true"}, {}),
        (MIXED, {}),
        ({"precision": "16-mixed"}, {}),
        ({"precision": "bf16-true"}, {}),
        ({"precision": "16-mixed", "gradient_clip_val": 0.5}, {"compile_blocks": False, "graph_steps": False}),
        (MIXED, {"compile_blocks": False, "graph_steps": False}),
        (MIXED, {"optimization": {"optimizer": "muon"}}),
        (MIXED, {"ffn": "moe"}),
        ({**MIXED, "strategy": "ddp"}, {}),
    ],
    ids=str,
)
def test_a_training_learns(tmp_path: Path, trainer: dict[str, Any], model: dict[str, Any]) -> None:
    losses = fit(tmp_path, "run", trainer, model)
    assert losses[-1] < 0.95 * losses[0]


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    same = {"optimization": {"schedule": "constant", "warmup": 0.0}}  # the rate does not depend on the last step
    fit(tmp_path, "whole", {**MIXED, "max_steps": 24}, same)
    fit(tmp_path, "run", {**MIXED, "max_steps": 12}, same)
    last = next((tmp_path / "runs" / "run").rglob("last.ckpt"))
    fit(tmp_path, "on", {**MIXED, "max_steps": 24}, same, "--ckpt_path", str(last))
    whole, on = (
        torch.load(
            next((tmp_path / "runs" / name).rglob("last.ckpt")), map_location="cpu", weights_only=True
        )["state_dict"]
        for name in ("whole", "on")
    )  # fmt: skip
    assert all(torch.equal(tensor, on[name]) for name, tensor in whole.items())
