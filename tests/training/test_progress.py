"""The progress of a run on narrow terminals: the steps and the time left are always in sight."""

import io
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from rich.console import Console
from rich.progress import Progress

from lightning_gpt import console
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.training.callbacks import RunProgress, StepMetrics, progress
from lightning_gpt.training.module import GPTModule
from tests.processes import tiny_corpus


class Stop(L.Callback):
    """Ends a long run after its eighth step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 8


class Drawn(Progress):
    """A bar that is drawn at every change, and not ten times a second."""

    def update(self, *args: Any, **fields: Any) -> None:
        super().update(*args, **{**fields, "refresh": True})


def output(folder: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> str:
    """What a run of 100,000 steps shows in its first eight."""
    file = io.StringIO()
    console.file = file
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "Progress", Drawn)
    metrics = StepMetrics()
    module = GPTModule(n_layer=1, n_head=2, dim=16, block_size=16, vocab_size=300)
    source = Files(str(tiny_corpus(folder / "corpus.jsonl")))
    data = TextData([source], tokenizer=300, block_size=16, batch_size=4, val_share=0.1)
    L.Trainer(
        max_steps=100_000,
        accelerator="cpu",
        devices=1,
        callbacks=[metrics, RunProgress(metrics), Stop()],
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        enable_model_summary=False,
        val_check_interval=4,
        limit_val_batches=2,
    ).fit(module, data)
    return file.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_on_a_terminal(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, force_interactive=True, width=columns, height=40, color_system=None)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", output(tmp_path, monkeypatch, console))  # each redraws the line
    bars = [line for line in re.split(r"[\r\n]+", shown) if "/100000" in line]
    assert bars, shown[:400]
    for bar in bars:
        assert len(bar) <= columns
        assert re.match(r"(step|validating) +\d/100000 [━╸╺ ]+ (\d+ days?, )?(\d+:\d\d:\d\d|-:--:--) left", bar), bar
    assert any(bar.startswith("validating") for bar in bars)
    figures = {60: "left", 80: "left  loss", 160: "MFU"}
    assert any(figures[columns] in bar for bar in bars), bars
    assert "…" not in shown


def test_elsewhere_a_line_begins_with_the_steps_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    said = output(tmp_path, monkeypatch, Console(width=80))
    lines = [line for line in said.splitlines() if "tokens/s" in line]
    assert len(lines) == 8
    for number, line in enumerate(lines, 1):
        assert re.match(rf"step {number}/100,000  (\d+ days?, )?\d+:\d\d:\d\d left  loss \d", line), line
        assert "MFU" in line


def test_lines_of_long_works_are_at_least_15_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 114.9, 115.0, 129.9, 131.0, 145.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(moments))
    pace = console.LinePace()
    assert [pace.is_due() for _ in range(5)] == [False, True, False, True, False]
