"""``data.global_batch``: the rows of a step are held however many processes share them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.share import micro_batches
from lightning_gpt.errors import CallError
from tests.processes import must_run, run_command, scalars, tiny_config, tiny_corpus, write_config

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
EXACT = {"precision": "64-true", "val_check_interval": 4}

SAME_ROWS = """
from lightning.pytorch.strategies import DDPStrategy


class SameRows(DDPStrategy):
    data_rank, data_size = 0, 1
"""
"""Two processes that read the same rows, as those do that share one copy of a model."""


def config_of(folder: Path, **init: Any) -> str:
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=6, **EXACT)
    content["data"]["global_batch"] = 8
    content["model"]["init_args"] |= init
    content["model"]["init_args"]["optimization"] = {"schedule": "constant", "warmup": 0.0}
    return str(write_config(folder / "tiny.yaml", content))


def last(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return loaded


def test_a_run_goes_on_with_another_number_of_processes_as_if_nothing_had_changed(tmp_path: Path) -> None:
    """In float64, where sums in another order differ by 1e-16. Dropout is each process's own, so without it."""
    config = config_of(tmp_path, dropout=0.0)
    must_run("fit", "--config", config, "--name", "whole", cwd=tmp_path)
    half = ("--trainer.max_steps", "3", "--name", "half")
    must_run("fit", "--config", config, *half, cwd=tmp_path)
    saved = str(tmp_path / "runs/half/version_0/checkpoints/last.ckpt")
    more = ("--trainer.max_steps", "6", "--name", "rest")
    done = must_run("fit", "--ckpt_path", saved, *more, *TWO, cwd=tmp_path)
    assert "8 rows per step (batch_size 4 × 2 processes × 1 accumulated), cpu" in done.stderr
    assert "rows_per_step" not in done.stderr, "the batch was to be held"

    whole, rest = (tmp_path / f"runs/{name}/version_0" for name in ("whole", "rest"))
    ours, theirs = last(rest), last(whole)
    assert ours["global_step"] == theirs["global_step"] == 6
    assert ours["TextData"]["cursor"] == theirs["TextData"]["cursor"]
    assert ours["TextData"]["cursor"]["rows"] == 48
    for name, weight in theirs["state_dict"].items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(ours["state_dict"][name], weight, atol=1e-10, rtol=0)
    ours, theirs = scalars(rest), scalars(whole)
    compared = [key for key in theirs if key in ours and key[1] > 3 and key[0] in ("train/grad_norm", "val/loss")]
    assert {name for name, _ in compared} == {"train/grad_norm", "val/loss"}
    for key in compared:  # event files hold single precision
        assert ours[key] == pytest.approx(theirs[key], rel=1e-6), key


def test_processes_that_read_the_same_rows_draw_the_same_dropout(tmp_path: Path) -> None:
    """Their gradients are equal to the bit, so the mean of two is the one of a single process."""
    (tmp_path / "same_rows.py").write_text(SAME_ROWS)
    config = config_of(tmp_path, dropout=0.2, memory={"kind": "segment", "length": 16}, position="rotary")
    lanes = ("--data.packing", "lanes", "--config", config)
    must_run("fit", *lanes, "--name", "one", cwd=tmp_path)
    write_config(tmp_path / "two.yaml", {"trainer": {"strategy": {"class_path": "same_rows.SameRows"}, "devices": 2}})
    two = ("--config", "two.yaml", "--trust", "same_rows", "--name", "two")
    must_run("fit", *lanes, *two, cwd=tmp_path)
    one, both = (last(tmp_path / f"runs/{name}/version_0") for name in ("one", "two"))
    assert both["TextData"]["cursor"] == one["TextData"]["cursor"]
    for key in ("state_dict", "lightning_gpt_memory"):
        assert one[key].keys() == both[key].keys()
        assert all(torch.equal(both[key][name], tensor) for name, tensor in one[key].items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            ("--data.global_batch", "10"),
            "data.global_batch is 10 rows, but a micro-batch has 4 (batch_size 4 × 1 process), which does not divide "
            "it: use global_batch 8 or 12, or batch_size 2",
        ),
        (
            ("--data.global_batch", "12", *TWO),
            "data.global_batch is 12 rows, but a micro-batch has 8 (batch_size 4 × 2 processes), which does not divide "
            "it: use global_batch 8 or 16, or batch_size 3",
        ),
        (
            ("--trainer.accumulate_grad_batches", "2"),
            "data.global_batch 8 and trainer.accumulate_grad_batches 2 cannot both be given: leave "
            "accumulate_grad_batches out; it follows from the other, here 2",
        ),
    ],
)
def test_what_does_not_divide_is_refused(tmp_path: Path, call: tuple[str, ...], message: str) -> None:
    done = run_command("fit", "--config", config_of(tmp_path), *call, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("config.yaml")), "nothing was to be started"


@pytest.mark.parametrize(
    ("rows", "batch_size", "size", "works"),
    [(6, 4, 2, "global_batch 8, or batch_size 3"), (7, 4, 2, "global_batch 8$"), (9, 8, 1, "8 or 16, or batch_size 3")],
)
def test_the_refusal_names_numbers_that_work(rows: int, batch_size: int, size: int, works: str) -> None:
    with pytest.raises(CallError, match=works):
        micro_batches(rows, batch_size, size)


def test_without_a_trainer_the_step_has_the_global_batch() -> None:
    data = TextData(batch_size=4, global_batch=24)
    assert (data.step_rows, data.micro_batch_rows, data.share.accumulated) == (24, 4, 6)
