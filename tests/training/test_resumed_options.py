"""A resumed run trains with the options of its config, and reports what changed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_gpt.data.tokenizer import Tokenizer
from tests.processes import must_run, run_command, scalars, tiny_config, tiny_corpus, write_config

STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose last checkpoint is of step 20 of 40."""
    folder = tmp_path_factory.mktemp("resumed")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS)
    content |= {"diagnostics": {"enabled": False}}
    content["model"]["init_args"] |= {"optimization": {"lr": 1e-3, "schedule": "constant", "warmup": 0.0}}
    write_config(folder / "tiny.yaml", content)
    must_run("fit", "--config", "tiny.yaml", "--trainer.max_steps", "20", cwd=folder)
    return folder


def resume(folder: Path, *options: str, name: str) -> tuple[Path, str]:
    """The folder of a run resumed with ``options``, and what it reported."""
    last = ("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt")
    done = must_run("fit", "--config", "tiny.yaml", "--name", name, *last, *options, cwd=folder)
    return folder / "runs" / name / "version_0", done.stderr


def test_a_new_learning_rate_applies_and_is_reported(folder: Path) -> None:
    run, said = resume(folder, "--model.optimization.lr", "5e-4", name="rate")
    assert re.search(
        r"resuming after step 20 with changed options: max_steps 40 \(was 20\), lr 0.0005 \(was 0.001\)", said
    )
    rates = {step: rate for (tag, step), rate in scalars(run).items() if tag == "train/lr"}
    assert set(rates) == set(range(21, STEPS + 1))
    assert all(rate == pytest.approx(5e-4) for rate in rates.values())
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["optimization"]["lr"] == 5e-4


def test_another_number_of_epochs_is_reported(folder: Path) -> None:
    _, said = resume(folder, "--trainer.max_epochs", "3", name="epochs")
    assert "changed options: max_steps 40 (was 20), max_epochs 3 (was -1)" in said


def test_the_first_resumed_step_has_the_new_rate(folder: Path) -> None:
    """With a rate of almost nothing, the weights stay where they are from the first step on."""
    run, _ = resume(folder, "--model.optimization.lr", "1e-30", name="still")
    before, after = (
        torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for each in (folder / "runs/tiny/version_0", run)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_options_of_the_optimizer_apply(folder: Path) -> None:
    options = ("--model.optimization.weight_decay", "0.3", "--model.optimization.betas", "[0.8, 0.99]")
    run, said = resume(folder, *options, name="others")
    assert "weight_decay 0.3 (was 0.1), betas [0.8, 0.99] (was [0.9, 0.95])" in said
    groups = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(group["weight_decay"], tuple(group["betas"])) for group in groups] == [
        (0.3, (0.8, 0.99)),
        (0.0, (0.8, 0.99)),
    ]


def test_it_reports_where_it_resumes_and_with_what(folder: Path) -> None:
    """A changed batch too, since it changes what a step is; the data continues where it was."""
    run, said = resume(folder, "--data.batch_size", "2", "--trainer.gradient_clip_val", "0.5", name="half")
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    rows = "2 rows per step (batch_size 2 × 1 process × 1 accumulated)"
    assert f"resuming after step 20 of 40 from {last}: {rows}, cpu, precision 32-true\n" in said
    changed = "resuming after step 20 with changed options: max_steps 40 (was 20), rows_per_step 2 (was 4), "
    assert f"{changed}gradient_clip_val 0.5 (was 1.0)\n" in said
    cursor = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["TextData"]["cursor"]
    assert cursor["rows"] == 20 * 4 + 20 * 2


def test_resuming_a_finished_run_is_reported(folder: Path) -> None:
    last = ("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--trainer.max_steps", "20")
    done = must_run("fit", "--config", "tiny.yaml", *last, "--name", "finished", cwd=folder)
    said = "nothing to train: the checkpoint is of step 20, where this run ends (max_steps is 20 and max_epochs is -1)"
    assert said in done.stderr
    past = (*last[:-1], "19")
    done = must_run("fit", "--config", "tiny.yaml", *past, "--name", "finished", cwd=folder)
    assert "of step 20, past the step at which this run ends (max_steps is 19 and max_epochs is -1)" in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("layers.json", b"garbage", "does not hold layer diagnostics: move it away to resume without the earlier ones"),
        ("layers.json", b'{"steps": 3}', "does not hold layer diagnostics"),
        ("layers.json", b"null", "does not hold layer diagnostics"),
        ("layers.json", b'[{"step": null}]', "does not hold layer diagnostics"),
        (
            "metrics.jsonl",
            b'{"step": 1, "seconds": 1.0}\n\xff\xfe{}\n',
            "is not a line of metrics: repair or delete it",
        ),
        ("metrics.jsonl", b"[3]\n", "error: line 1 of "),
    ],
)
def test_a_damaged_file_beside_the_checkpoint_is_named_and_leaves_no_folder(
    file: str, content: bytes, said: str, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/tiny/version_0"
    shutil.copytree(folder / "runs/tiny/version_0", run)
    (run / file).write_bytes(content)
    last = (
        "--ckpt_path",
        str(run / "checkpoints/last.ckpt"),
        "--trainer.max_steps",
        "22",
        "--diagnostics.enabled",
        "true",
    )
    done = run_command("fit", "--config", str(folder / "tiny.yaml"), *last, cwd=tmp_path)
    assert (done.returncode, said in done.stderr, str(run / file) in done.stderr) == (2, True, True), done.stderr
    assert [each.name for each in run.parent.iterdir()] == ["version_0"]
    if file == "layers.json":
        last = (*last[:-1], "false")
        must_run("fit", "--config", str(folder / "tiny.yaml"), *last, cwd=tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("optimizer", "muon", "optimizer changed from adamw to muon, and the checkpoint holds the state of the former"),
        (
            "batch_warmup",
            "0.2",
            "batch_warmup changed from 0.0 to 0.2, and it determines which rows each step has taken",
        ),
        (
            "mup",
            "{base_dim: 16, base_head_dim: 16}",
            "mup changed from None to .*, and it determines the initial weights",
        ),
    ],
)
def test_what_cannot_change_is_refused(option: str, value: Any, said: str, folder: Path) -> None:
    last = ("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--name", "refused")
    done = run_command("fit", "--config", "tiny.yaml", *last, f"--model.optimization.{option}", value, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"error: cannot resume: optimization.{said}; set it back, or start", done.stderr.splitlines()[-1])


def test_another_tokenizer_is_refused(folder: Path) -> None:
    other = Tokenizer.train([" ".join(f"other words {number}" for number in range(999))], 300).save(folder)
    last = ("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--name", "refused")
    done = run_command("fit", "--config", "tiny.yaml", *last, "--data.tokenizer", str(other), cwd=folder)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: cannot resume: tokenizer changed from \w+ to \w+,", done.stderr.splitlines()[-1])


def test_another_limit_of_tokens_is_refused(folder: Path) -> None:
    def with_limit(tokens: int) -> tuple[str, str]:
        files = {"paths": "corpus.jsonl", "weight": 1.0, "max_tokens": tokens}
        return "--data.sources", json.dumps([{"class_path": "Files", "init_args": files}])

    run = ("--config", "tiny.yaml", "--trainer.max_steps", "2", "--name", "limited")
    must_run("fit", *run, *with_limit(5000), cwd=folder)
    last = ("--ckpt_path", "runs/limited/version_0/checkpoints/last.ckpt")
    done = run_command("fit", *run, *last, *with_limit(4000), cwd=folder)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: cannot resume: max_tokens changed from .* 5000\} to .* 4000\}", done.stderr)
