"""``metrics.jsonl`` holds what was logged, each step once, whatever happened to the run."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.training.callbacks import MetricsFile, StepMetrics
from lightning_gpt.training.metrics_jsonl import FIELDS, read_metrics
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.optim import Optimization
from tests.processes import must_run, scalars, start_command, tiny_config, tiny_corpus, write_config

STEPS = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("metrics") / "corpus.jsonl")


@pytest.fixture(scope="module")
def config(corpus: Path) -> Path:
    content = tiny_config(corpus, max_steps=STEPS, accumulate_grad_batches=2, val_check_interval=40)
    content["diagnostics"] = {"enabled": True}
    return write_config(corpus.parent / "tiny.yaml", content)


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    """A run that was left alone."""
    must_run("fit", "--config", str(config), cwd=config.parent)
    return config.parent / "runs/tiny/version_0"


def series(run: Path) -> dict[tuple[str, int], float | None]:
    """Every scalar by tag and step, without those that no two runs share; fails where one is there twice."""
    found: dict[tuple[str, int], float | None] = {}
    for line in read_metrics(run / "metrics.jsonl"):
        for tag in set(line) - FIELDS:
            key = (tag, line["step"])
            assert key not in found, f"{key} is there twice"
            if tag not in ("train/tokens_per_second", "train/mfu", "layers/share_of_time") and "cost/" not in tag:
                found[key] = line[tag]
    return found


def test_it_holds_the_scalars_of_the_event_file(run: Path) -> None:
    events = scalars(run)
    # but those that repeat another: see BoardLogger
    kept = {key: np.float32(value) for key, value in series(run).items() if "perplexity" not in key[0]}
    assert kept == events
    tags = {tag for tag, _ in events}
    assert tags >= {"train/loss", "train/lr", "train/grad_norm", "val/loss", "initial/loss", "layers/rms/layer_02"}


def test_each_line_says_how_far_the_run_was(run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    assert all(set(line) > FIELDS for line in lines), "a line holds no scalar"
    assert all(line["steps"] == STEPS for line in lines)
    assert [line["rows"] for line in lines] == [line["step"] * 4 * 2 for line in lines]  # 4 rows, 2 micro-batches
    assert [line["tokens"] for line in lines] == [line["rows"] * 32 for line in lines]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert all(line["split"] == "train" and line["train/tokens_per_second"] > 0 for line in lines if "train/lr" in line)
    assert [(line["step"], line["split"]) for line in lines if "val/loss" in line] == [(20, "val"), (40, "val")]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_killed_and_resumed_each_step_is_there_once(config: Path, run: Path, tmp_path: Path) -> None:
    process = start_command("fit", "--config", str(config), cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    end = time.monotonic() + 180
    while not (first / "checkpoints/last.ckpt").exists():
        assert time.monotonic() < end, "no checkpoint was saved"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved < STEPS
    with (first / "metrics.jsonl").open("a") as file:  # as left by a kill after the save, in the middle of a line
        file.write(json.dumps({"step": saved + 1, "steps": STEPS, "seconds": 1.0, "train/loss": -1.0}) + "\n")
        file.write('{"step": 99, "train/lo')
    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), cwd=tmp_path)
    second = tmp_path / "runs/tiny/version_1"
    assert series(second) == series(run)
    seconds = [line["seconds"] for line in read_metrics(second / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def fit(corpus: Path, folder: Path, optimization: Optimization = Optimization(), **trainer: Any) -> None:
    module = GPTModule(optimization, n_layer=1, n_head=2, dim=32, block_size=16, vocab_size=300)
    data = TextData([Files(str(corpus))], tokenizer=300, block_size=16, batch_size=4, val_share=0.1)
    options: dict[str, Any] = {
        "max_steps": 4, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None, "devices": 1,
        "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": folder,
    }  # fmt: skip
    Trainer(**options | trainer, callbacks=[MetricsFile(), StepMetrics()]).fit(module, data)


def test_what_is_not_finite_is_null(corpus: Path, tmp_path: Path) -> None:
    fit(corpus, tmp_path, Optimization(lr=1e30, warmup=0.0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = next(tmp_path.rglob("metrics.jsonl")).read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [line["val/loss"] for line in lines if "val/loss" in line] == [None, None]


@pytest.mark.parametrize("trainer", [{"logger": False}, {"fast_dev_run": True}], ids=str)
def test_a_run_that_keeps_no_log_writes_none(corpus: Path, tmp_path: Path, trainer: dict[str, Any]) -> None:
    fit(corpus, tmp_path, **trainer)
    assert list(tmp_path.rglob("metrics.jsonl")) == []


def test_every_logger_gets_the_validation(corpus: Path, tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "a"), CSVLogger(tmp_path, "b", flush_logs_every_n_steps=1)]
    fit(corpus, tmp_path, logger=loggers)
    assert [line["step"] for line in read_metrics(tmp_path / "a/version_0/metrics.jsonl") if "val/loss" in line] == [
        2,
        4,
    ]
    assert {step for tag, step in scalars(tmp_path / "a/version_0") if tag == "val/loss"} == {2, 4}
    assert "val/loss" in (tmp_path / "b/version_0/metrics.csv").read_text().splitlines()[0]


def test_of_two_processes_the_first_writes(corpus: Path, tmp_path: Path) -> None:
    content = tiny_config(corpus, max_steps=4, val_check_interval=2, devices=2, strategy="ddp")
    write_config(tmp_path / "tiny.yaml", content | {"diagnostics": {"enabled": False}})
    must_run("fit", "--config", "tiny.yaml", cwd=tmp_path)
    lines = read_metrics(tmp_path / "runs/tiny/version_0/metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert [line["rows"] for line in lines if "train/loss" in line] == [8, 16, 24, 32]
    assert [line["step"] for line in lines if "val/loss" in line] == [2, 4]
