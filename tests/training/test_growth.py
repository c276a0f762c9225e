"""A run that starts from a trained shallower model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.from_trained.growth import grow
from lightning_gpt.models.from_trained.upcycling import upcycle
from lightning_gpt.models.memory.gpt import gpt_with
from tests.processes import must_run, run_command, scalars, tiny_config, tiny_corpus, write_config


def test_a_grown_run_starts_from_the_loss_of_the_shallower_one(tmp_path: Path) -> None:
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=4, val_check_interval=4)
    config = write_config(tmp_path / "tiny.yaml", content)
    must_run("fit", "--config", str(config), cwd=tmp_path)
    trained = scalars(tmp_path / "runs/tiny/version_0")["val/loss", 4]
    deeper = str(content["model"]["init_args"]["n_layer"] + 3)
    grown = ("--grow.checkpoint", "runs/tiny/version_0/checkpoints/last.ckpt", "--model.init_args.n_layer", deeper)
    done = must_run("fit", "--config", str(config), *grown, "--trainer.max_steps", "1", cwd=tmp_path)
    said = re.search(r"initial validation loss (\d+\.\d+)", done.stderr + done.stdout)
    assert said
    assert float(said[1]) == pytest.approx(trained, abs=2e-4)
    assert "grown from runs/tiny/version_0/checkpoints/last.ckpt" in done.stderr
    refused = run_command("fit", "--config", str(config), *grown, "--model.init_args.norm", "rms", cwd=tmp_path)
    assert refused.returncode == 2
    assert "differs in its number of layers only: norm is layer there and rms here" in refused.stderr


@pytest.mark.parametrize("fill", [grow, upcycle])
def test_a_model_that_remembers_does_not_become_one_that_does_not(fill: Callable[[GPT, GPT], None]) -> None:
    def model(memory: Any, n_layer: int) -> GPT:
        sizes: dict[str, Any] = {"n_head": 2, "dim": 16, "block_size": 8, "vocab_size": 17, "position": "rotary"}
        return gpt_with(memory, GPTConfig(**sizes, n_layer=n_layer))

    tokens, n_layer = {"kind": "tokens", "n_memory": 2}, 3 if fill is grow else 2
    with pytest.raises(CallError, match=r"memory is none there and tokens \(n_memory 2\) here"):
        fill(model(None, 2), model(tokens, n_layer))
    with pytest.raises(CallError, match=r"memory is tokens \(n_memory 2\) there and none here"):
        fill(model(tokens, 2), model(None, n_layer))
