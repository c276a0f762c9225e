"""Muon, averaged weights, clipped scores, a growing batch: a killed and resumed run is the run left alone."""

import signal
from pathlib import Path

import pytest
import torch

from tests.processes import must_run, run_command, scalars, start_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import assert_same_series, wait_for_saves

STEPS = 40
RECIPE = {
    "optimizer": "muon",
    "lr": 3e-3,
    "muon": {"lr": 0.01, "weight_decay": 0.1},
    "schedule": "wsd",
    "stable": 0.5,
    "batch_warmup": 0.5,
    "qk_clip": 0.05,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, and the run of it that was left alone."""
    folder = tmp_path_factory.mktemp("recipes")
    corpus = tiny_corpus(folder / "corpus.jsonl")
    content = tiny_config(corpus, max_steps=STEPS, accumulate_grad_batches=4, val_check_interval=40)
    content["model"]["init_args"]["optimization"] = RECIPE
    content |= {"averaging": {"decay": 0.9}, "spikes": {"threshold": 20.0}, "diagnostics": {"enabled": False}}
    write_config(folder / "tiny.yaml", content)
    must_run("fit", "--config", "tiny.yaml", cwd=folder)
    return folder


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def test_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    process = start_command("fit", "--config", str(folder / "tiny.yaml"), cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    wait_for_saves(first / "checkpoints/last.ckpt", 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), cwd=tmp_path)

    alone, second = folder / "runs/tiny/version_0", tmp_path / "runs/tiny/version_1"
    assert_same_series(first, alone)
    assert_same_series(second, alone)
    ours, theirs = checkpoint(second), checkpoint(alone)
    for part in ("state_dict", "current_model_state"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], value) for name, value in theirs[part].items())
    assert str(ours["optimizer_states"]) == str(theirs["optimizer_states"])
    name = "model.blocks.0.attention.qkv.weight"
    assert not torch.equal(ours["state_dict"][name], ours["current_model_state"][name])


def test_a_model_of_unit_vectors_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """nGPT: weights of length 1 after each step, learned scales, and the z-loss beside them."""
    recipe = Path(__file__).parents[2] / "configs/recipes/ngpt.yaml"
    corpus = tiny_corpus(tmp_path / "corpus.jsonl")
    write_config(tmp_path / "tiny.yaml", {**tiny_config(corpus), "diagnostics": {"enabled": False}})
    call = ("fit", "--config", "tiny.yaml", "--config", str(recipe), "--model.dropout", "0")
    more = ("--model.optimization.z_loss", "1e-4", "--model.optimization.schedule", "constant")
    must_run(*call, *more, "--trainer.max_steps", "24", "--name", "alone", cwd=tmp_path)
    must_run(*call, *more, "--trainer.max_steps", "11", "--name", "first", cwd=tmp_path)
    last = tmp_path / "runs/first/version_0/checkpoints/last.ckpt"
    must_run("fit", "--ckpt_path", str(last), "--trainer.max_steps", "24", cwd=tmp_path)
    alone, second = (checkpoint(tmp_path / f"runs/{run}") for run in ("alone/version_0", "first/version_1"))
    assert all(torch.equal(second["state_dict"][name], value) for name, value in alone["state_dict"].items())
    rows = alone["state_dict"]["model.blocks.0.attention.qkv.weight"].norm(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_the_batch_grows_as_its_stages_say(folder: Path) -> None:
    """20 steps of warm-up are 10 of 1 and 10 of 2; one more, so that 4 divides what is done; 4 rows a micro-batch."""
    rows = {step: value for (tag, step), value in scalars(folder / "runs/tiny/version_0").items() if "rows" in tag}
    sizes = [1] * 10 + [2] * 11 + [4] * 19
    assert rows == {step: 4 * sum(sizes[:step]) for step in range(1, STEPS + 1)}


def test_a_growing_batch_needs_a_number_of_steps(folder: Path) -> None:
    options = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "2")
    done = run_command("fit", "--config", "tiny.yaml", *options, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "optimization.batch_warmup changes the number" in done.stderr.splitlines()[-1]
