"""Mixtures of experts in real runs: balanced the same by any number of processes and after a resume, and logged."""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import must_run, scalars, tiny_config, tiny_corpus, write_config
from tests.training.runs import weights

FFN = {"kind": "moe", "n_expert": 4, "top_k": 2, "balance": "bias", "balance_rate": 0.01, "z_loss": 0.0}
BIASES = [f"model.blocks.{layer}.ffn.router.bias" for layer in (0, 1)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of two micro-batches; a learning rate that does not depend on the number of steps."""
    folder = tmp_path_factory.mktemp("experts")
    content = tiny_config(
        tiny_corpus(folder / "corpus.jsonl"), max_steps=12, val_check_interval=12, accumulate_grad_batches=2
    )
    content["model"]["init_args"] |= {"ffn": FFN, "optimization": {"schedule": "constant", "warmup": 0.0}}
    content["model"]["init_args"]["dropout"] = 0.0  # each process draws its own
    content["data"]["batch_size"] = 8
    return write_config(folder / "moe.yaml", content)


def test_the_bias_moves_once_an_optimizer_step(alone: Path) -> None:
    for name in BIASES:
        steps = weights(alone)[name] / 0.01
        assert steps.abs().max() > 0
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert steps.abs().max() <= 12


def test_a_resumed_run_is_the_run_left_alone(config: Path, alone: Path, tmp_path: Path) -> None:
    half = ("--trainer.max_steps", "6", "--trainer.val_check_interval", "6")
    must_run("fit", "--config", str(config), *half, cwd=tmp_path)
    last = str(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")
    must_run("fit", "--config", str(config), "--ckpt_path", last, cwd=tmp_path)
    ours, theirs = weights(tmp_path / "runs/tiny/version_1"), weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_balance_as_one_does(config: Path, alone: Path, tmp_path: Path) -> None:
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4")
    must_run("fit", "--config", str(config), *two, cwd=tmp_path)
    run = tmp_path / "runs/tiny/version_0"
    for name in BIASES:
        torch.testing.assert_close(weights(run)[name], weights(alone)[name], atol=1e-7, rtol=0)
    ours, theirs = scalars(run), scalars(alone)
    shares = [key for key in theirs if key[0].startswith("experts/share")]
    assert len(shares) == 12 * 2 * 4
    for key in shares:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6)


def test_use_of_the_experts_is_logged_by_layer_and_drawn(alone: Path) -> None:
    logged = scalars(alone)
    for step in range(1, 13):
        for layer in (0, 1):
            shares = [logged[f"experts/share/layer_{layer:02}/expert_{expert:02}", step] for expert in range(4)]
            assert sum(shares) == pytest.approx(1)
        assert 0.9 < logged["train/balance_loss", step] < 4
        assert logged["train/router_z_loss", step] > 0
    assert not any(tag.startswith("experts/dropped") for tag, _ in logged)
    events = EventAccumulator(str(alone), size_guidance={"images": 0})
    events.Reload()
    assert "experts/use" in events.Tags()["images"]


def test_the_start_says_how_many_parameters_are_active_and_a_capacity_what_it_drops(
    config: Path, tmp_path: Path
) -> None:
    ffn = '{"kind": "moe", "n_expert": 4, "top_k": 2, "hidden": 64, "capacity_factor": 0.5}'
    once = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "2", "--model.init_args.ffn", ffn)
    done = must_run("fit", "--config", str(config), *once, cwd=tmp_path)
    lines = [line.split() for line in done.stderr.splitlines() + done.stdout.splitlines()]
    said = {
        " ".join(line[:-1]): int(line[-1].replace(",", "")) for line in lines if line and line[0] in ("all", "active")
    }
    assert said["all"] - said["active per token"] == 2 * 2 * (2 * 32 * 64 + 64 + 32)
    logged = scalars(tmp_path / "runs/tiny/version_0")
    for layer in (0, 1):
        assert 0.4 < logged[f"experts/dropped/layer_{layer:02}", 1] < 1


def test_an_upcycled_run_starts_from_the_loss_of_the_dense_one(config: Path, tmp_path: Path) -> None:
    dense = ("--model.init_args.ffn", "gelu", "--trainer.max_steps", "4", "--trainer.val_check_interval", "8")
    must_run("fit", "--config", str(config), *dense, cwd=tmp_path)
    ffn = '{"kind": "moe", "n_expert": 4, "top_k": 2, "hidden": 128}'
    start = ("--upcycle.checkpoint", "runs/tiny/version_0/checkpoints/last.ckpt", "--model.init_args.ffn", ffn)
    done = must_run("fit", "--config", str(config), *start, "--trainer.max_steps", "1", cwd=tmp_path)
    measured = must_run(
        *("validate", "--config", str(config), "--model.init_args.ffn", "gelu"),
        *("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"),
        cwd=tmp_path,
    )
    said = re.search(r"initial validation loss (\d+\.\d+)", done.stderr + done.stdout)
    loss = re.search(r"val/loss (\d+\.\d+)", measured.stdout)
    assert said
    assert loss
    assert float(said[1]) == pytest.approx(float(loss[1]), abs=2e-4)
