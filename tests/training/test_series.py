"""The series of checkpoints of a run: its steps, its hashes, and what a kill leaves of it."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_gpt import load
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.checkpoint_series import LIST, listed, path_of_step, series_of, steps_in
from lightning_gpt.errors import CallError
from lightning_gpt.training.callbacks.series import CheckpointSeries
from tests.processes import must_run, run_command, start_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import wait_for_saves

STEPS = [0, 1, 2, 4, 8, 16, 24]
LAST = 26


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=LAST, val_check_interval=10)
    content["checkpoints"] = {"every_n_steps": 3, "series": "log", "series_every": 8}
    write_config(folder / "tiny.yaml", content)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    must_run("fit", "--config", "tiny.yaml", "--name", "whole", cwd=folder)
    return folder / "runs/whole/version_0"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    shutil.copytree(series_of(run), series_of(tmp_path / "run"))
    return tmp_path / "run"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load(run, step=step).state_dict()


def assert_equal_series(run: Path, whole: Path) -> None:
    assert steps_in(series_of(run)) == STEPS
    assert set(listed(series_of(run))) == {f"step_{step}.ckpt" for step in STEPS}
    for step in STEPS:
        torch.testing.assert_close(weights(run, step), weights(whole, step), rtol=0, atol=0)


def test_the_steps_are_those_of_pythia_by_default() -> None:
    series = CheckpointSeries(1000, background=False)
    steps = [step for step in range(3001) if series.is_due(step)]
    assert steps == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]


def test_every_step_is_kept_and_listed(run: Path, folder: Path) -> None:
    assert_equal_series(run, run)
    if shutil.which("sha256sum"):
        check = ("sha256sum", "--check", "--strict", LIST)
        assert subprocess.run(check, cwd=series_of(run), capture_output=True, check=False).returncode == 0
    assert (run / "checkpoints/best.ckpt").exists()
    content = Checkpoint.read(f"{run}@8").content
    assert content["global_step"] == 8
    assert "optimizer_states" not in content, "weights alone: the series is to be read, not resumed"
    assert not torch.equal(weights(run, 0)["token_embedding.weight"], weights(run, 1)["token_embedding.weight"])
    torch.testing.assert_close(load(run).state_dict(), load(run / "checkpoints/last.ckpt").state_dict())


def test_commands_take_a_step(run: Path, folder: Path) -> None:
    said = must_run("generate", "--checkpoint", "runs/whole/version_0@8", "--prompt", "abc", cwd=folder).stdout
    path = path_of_step(series_of(run), 8)
    assert said == must_run("generate", "--checkpoint", str(path), "--prompt", "abc", cwd=folder).stdout
    losses = [
        must_run("validate", "--ckpt_path", f"runs/whole/version_0@{step}", cwd=folder).stdout for step in (0, 24)
    ]
    assert losses[0] != losses[1]
    refused = run_command("fit", "--ckpt_path", "runs/whole/version_0@8", cwd=folder)
    assert refused.returncode == 2
    assert "there is no run to resume" in refused.stderr


def test_a_killed_and_resumed_run_has_the_same_series(run: Path, folder: Path) -> None:
    killed = start_command("fit", "--config", "tiny.yaml", "--name", "killed", cwd=folder)
    first = folder / "runs/killed/version_0"
    wait_for_saves(first / "checkpoints/last.ckpt", 4)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # the moment between the file and the list
    newest = max(step for step in steps_in(series_of(first)) if step <= 8)
    lines = (series_of(first) / LIST).read_text().splitlines(keepends=True)
    (series_of(first) / LIST).write_text("".join(line for line in lines if f"step_{newest}.ckpt" not in line))
    with pytest.raises(CallError, match="cannot be verified"):
        load(first, step=newest)
    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), "--name", "killed", cwd=folder)
    assert_equal_series(folder / "runs/killed/version_1", run)


def test_exchanged_checkpoints_are_refused(copy: Path) -> None:
    two, four = (path_of_step(series_of(copy), step) for step in (2, 4))
    two.replace(two.with_name("other"))
    four.replace(two)
    two.with_name("other").replace(four)
    for step in (2, 4):
        with pytest.raises(CallError, match="is not the one that was saved"):
            load(copy, step=step)
    names = (series_of(copy) / LIST).read_text()
    swapped = names.replace("step_2.", "step_x.").replace("step_4.", "step_2.").replace("step_x.", "step_4.")
    (series_of(copy) / LIST).write_text(swapped)
    with pytest.raises(CallError, match="is of step 4, not of the step in its name"):
        load(copy, step=2)


def test_what_is_missing_or_wrong_is_said(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"step is 3; the series of .* has the steps 0, 1, 2, 4, 8, 16, 24"):
        load(copy, step=3)
    with pytest.raises(CallError, match="has no series of checkpoints"):
        load(tmp_path / "nothing", step=3)
    with pytest.raises(CallError, match="has no series of checkpoints"):
        load(f"{tmp_path}/nothing@3")
    (series_of(copy) / LIST).write_text("no sum\n")
    with pytest.raises(CallError, match="is not a list of SHA-256 sums"):
        load(copy, step=2)
    (series_of(copy) / LIST).unlink()
    with pytest.raises(CallError, match="cannot be verified"):
        load(copy, step=2)
