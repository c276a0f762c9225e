"""Blocks left out in real runs: after an interruption the same are drawn, and two processes may draw apart."""

from pathlib import Path

import pytest
import torch

from tests.processes import must_run, tiny_config, tiny_corpus, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layer_drop")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=6, val_check_interval=3)
    content["model"]["init_args"] |= {
        "layer_drop": {"kind": "linear", "rate": 0.5},
        "optimization": {"schedule": "constant", "warmup": 0.0},
    }
    return write_config(folder / "tiny.yaml", content)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=False)["state_dict"]
    return state


def test_a_resumed_run_leaves_out_what_the_run_left_alone_does(config: Path, tmp_path: Path) -> None:
    must_run("fit", "--config", str(config), cwd=tmp_path)
    must_run("fit", "--config", str(config), "--trainer.max_steps", "3", cwd=tmp_path)
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    must_run("fit", "--config", str(config), "--ckpt_path", last, cwd=tmp_path, fresh=True)
    alone, resumed = (weights(tmp_path / f"runs/tiny/version_{version}") for version in (0, 2))
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


def test_two_processes_that_draw_apart_train_together(config: Path, tmp_path: Path) -> None:
    """A parameter without a gradient on one of them would stop the second step."""
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    must_run("fit", "--config", str(config), *two, cwd=tmp_path)
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "runs/tiny/version_0").values())
