"""A run that is killed, stopped or resumed is, number for number, the run that was left alone."""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.processes import (
    must_run,
    run_command,
    scalars,
    start_command,
    start_fresh_command,
    tiny_config,
    tiny_corpus,
    write_config,
)
from tests.training.runs import assert_same_series, wait_for_saves, weights

STEPS = 70  # more than an epoch of the corpus below, in optimizer steps of two micro-batches


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    corpus = tiny_corpus(folder / "corpus.jsonl", documents=30)
    content = tiny_config(corpus, max_steps=STEPS, accumulate_grad_batches=2, val_check_interval=20)
    return write_config(folder / "tiny.yaml", content)


def assert_same_end(run: Path, alone: Path) -> None:
    """The last weights are equal to the bit, and the resumed part logged all that was to come."""
    assert max(step for _, step in scalars(run)) == STEPS
    ours, theirs = weights(run), weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("moment", range(3))
def test_killed_at_a_random_moment_and_resumed(config: Path, alone: Path, tmp_path: Path, moment: int) -> None:
    chance = random.Random(moment)
    start = start_command if moment else start_fresh_command  # once with another seed of hash
    process = start("fit", "--config", str(config), cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    wait_for_saves(first / "checkpoints/last.ckpt", chance.randint(1, 7))
    time.sleep(chance.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"

    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), cwd=tmp_path)

    second = tmp_path / "runs/tiny/version_1"
    assert_same_series(first, alone)
    assert_same_series(second, alone)
    assert_same_end(second, alone)
    resumed_at = min(step for tag, step in scalars(second) if tag == "train/loss")
    validations = {step for tag, step in scalars(alone) if tag == "val/loss" and step >= resumed_at}
    assert {step for tag, step in scalars(second) if tag == "val/loss"} == validations


ASKS = """
import lightning as L

class AsksForAStop(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 24  # the first micro-batch of two
"""


def test_stopped_inside_a_step_and_resumed(config: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    stop = ("--trust", "asks.py", "--trainer.callbacks+=asks.AsksForAStop")
    must_run("fit", "--config", str(config), *stop, cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    assert torch.load(first / "checkpoints/last.ckpt", weights_only=True)["TextData"]["cursor"]["rows"] == 13 * 8
    must_run("fit", "--config", str(config), "--ckpt_path", str(first / "checkpoints/last.ckpt"), cwd=tmp_path)
    second = tmp_path / "runs/tiny/version_1"
    assert_same_series(second, alone)
    assert_same_end(second, alone)


def test_a_loss_that_is_logged_for_steps_before_and_after_a_stop_is_that_of_all(config: Path, tmp_path: Path) -> None:
    every = ("--trainer.log_every_n_steps", "10", "--checkpoints.every_n_steps", "5")
    must_run("fit", "--config", str(config), *every, "--trainer.max_steps", "20", cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    earlier = first / "checkpoints/last.previous.ckpt"
    assert torch.load(earlier, weights_only=True)["global_step"] == 15
    must_run(
        *("fit", "--config", str(config), *every, "--trainer.max_steps", "20", "--ckpt_path", str(earlier)),
        cwd=tmp_path,
    )
    second = tmp_path / "runs/tiny/version_1"
    assert scalars(second)["train/loss", 20] == scalars(first)["train/loss", 20]


def test_interrupted_by_ctrl_c_saves_where_it_stands(config: Path, alone: Path, tmp_path: Path) -> None:
    process = start_command("fit", "--config", str(config), cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    wait_for_saves(first / "checkpoints/last.ckpt", 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    stopped = re.search(r"stopped after optimizer step (\d+)", output)
    assert stopped, output
    assert "resume:" in output
    assert int(stopped[1]) == max(step for _, step in scalars(first))

    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), cwd=tmp_path)

    second = tmp_path / "runs/tiny/version_1"
    assert min(step for tag, step in scalars(second) if tag == "train/loss") == int(stopped[1]) + 1
    assert_same_series(second, alone)
    assert_same_end(second, alone)


def test_loader_workers_change_nothing(config: Path, alone: Path, tmp_path: Path) -> None:
    must_run("fit", "--config", str(config), "--data.num_workers", "2", cwd=tmp_path)
    assert_same_series(tmp_path / "runs/tiny/version_0", alone)
    assert_same_end(tmp_path / "runs/tiny/version_0", alone)


def test_cursor_in_the_checkpoint_is_small_readable_json(alone: Path) -> None:
    data = torch.load(alone / "checkpoints/last.ckpt", weights_only=True)["TextData"]
    text = json.dumps({"cursor": data["cursor"], "stream": data["stream"]})
    assert len(text) < 64 * 1024
    assert data["cursor"]["rows"] == STEPS * 2 * 4
    assert data["cursor"]["sources"]["files"]["pass"] >= 1, "the run must cross an epoch to show anything"
    assert set(data["cursor"]["sources"]["files"]) == {"pass", "window", "rows_used_of_window", "rows_taken"}


def test_a_corpus_that_changed_meanwhile_stops_the_resumed_run(config: Path, tmp_path: Path) -> None:
    """The document is named, the exit status is 1, and the checkpoint stays as it was."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text((config.parent / "corpus.jsonl").read_text())
    # with a weight of its own the source's share does not depend on its size, so that the text alone differs
    sources = json.dumps([{"class_path": "Files", "init_args": {"paths": "corpus.jsonl", "weight": 1.0}}])
    call = ("fit", "--config", str(config), "--data.sources", sources, "--data.tokenizer", "gpt2")
    must_run(*call, "--trainer.max_steps", "20", cwd=tmp_path)
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    before = last.read_bytes()
    corpus.write_text(corpus.read_text().replace("a", "b"))

    done = run_command(*call, "--ckpt_path", str(last), "--trainer.max_steps", "40", cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    said = r"source 'files' has changed since the checkpoint was saved: .*document \d+ \(.*corpus.jsonl, line \d+"
    assert re.search(f"error: {said}", done.stderr.splitlines()[-1]), done.stderr
    assert last.read_bytes() == before
